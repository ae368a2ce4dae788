"""Top-1 of a network on a split or a folder of images, with its uncertainty."""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sdzoo.errors import InputError
from sdzoo.models.datasets import dataset_of
from sdzoo.pictures import open_picture
from sdzoo.samples import class_indices, folder_name, read_samples
from sdzoo.training.data import SplitDataset, open_split

EVALUATIONS = "evaluations.csv"
Z95 = 1.959964  # the 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Score:
    """How many of n images got the right label."""

    correct: int
    n: int

    @property
    def top1(self) -> float:
        """Percent right."""
        return 100 * self.correct / self.n

    @property
    def error(self) -> float:
        """Percent wrong."""
        return 100 - self.top1

    def error_interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the error in percent (Wilson's score interval)."""
        wrong = 1 - self.correct / self.n
        scale = 1 + Z95**2 / self.n
        center = (wrong + Z95**2 / (2 * self.n)) / scale
        half = Z95 / scale * math.sqrt(wrong * (1 - wrong) / self.n + (Z95 / (2 * self.n)) ** 2)
        return max(0.0, 100 * (center - half)), min(100.0, 100 * (center + half))


def evaluate(network: Callable[[Tensor], Tensor], images: Dataset[Any], batch_size: int = 250) -> Score:
    """Count the images whose label has the largest logit.

    Args:
        network: Maps images [N, 3, H, W] to logits [N, classes].
        images: Pairs of a transformed image [3, H, W] and its label.
        batch_size: Images at a time, at least 1.
    """
    correct = n = 0
    with torch.inference_mode():
        for batch, labels in track(DataLoader(images, batch_size), "evaluate", transient=True):
            correct += int((network(batch).argmax(dim=1) == labels).sum())
            n += len(labels)
    return Score(correct, n)


def split(name: str, root: Path, model: nn.Module) -> SplitDataset:
    """Open a split of the data set that the weights were trained on, with their preprocessing.

    Raises:
        InputError: An unknown split, weights of another data set, or files that are missing.
    """
    source = dataset_of(labels_of(model))
    if source is None:
        raise InputError("these weights name no data set that sdzoo knows; evaluate on a folder with --images")
    dataset = open_split(f"sd_{source}", name, root)
    dataset.transform = preprocessing(model)
    return dataset


def folder(root: Path, model: nn.Module) -> "ImageFiles":
    """Open a tree of images with a folder for each class; folders are named after the weights' labels.

    Raises:
        InputError: No images, weights that name no labels, or a folder that is none of them.
    """
    samples, labels = read_samples(root), labels_of(model)
    if not labels:
        raise InputError("these weights name no labels, which the folders of images are named after")
    known = {folder_name(label) for label in labels}
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    unknown = [path for path in folders if folder_name(path.name) not in known]  # without images in it, too
    targets = class_indices(samples, labels)
    if unknown or targets is None:
        raise InputError(f"{unknown[0]}: not one of the labels {', '.join(sorted(known))}")
    return ImageFiles([sample.path for sample in samples], targets, preprocessing(model))


class ImageFiles(Dataset[tuple[Any, int]]):
    """Image files of any size with their labels."""

    def __init__(self, files: Sequence[Path], targets: Sequence[int], transform: Callable[[Any], Tensor]) -> None:
        self.files = files
        self.targets = targets
        self.transform = transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one transformed image and its label."""
        return self.transform(open_picture(self.files[index]).convert("RGB")), self.targets[index]


def note(checkpoint: Path, images: str, score: Score) -> None:
    """Add a score to ``evaluations.csv`` beside the checkpoint, where the report finds it."""
    file = checkpoint.parent / EVALUATIONS
    new = not file.exists()
    with file.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        if new:
            writer.writerow(("checkpoint", "images", "correct", "n", "error"))
        writer.writerow((checkpoint.name, images, score.correct, score.n, f"{score.error:.4f}"))


def noted(checkpoint: Path) -> dict[str, float]:
    """Return the errors in percent that were noted of a checkpoint, by the images it was evaluated on.

    Raises:
        InputError: The file beside the checkpoint is not what ``note`` writes.
    """
    file = checkpoint.parent / EVALUATIONS
    if not file.is_file():
        return {}
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            rows = [row for row in csv.DictReader(lines) if row["checkpoint"] == checkpoint.name]
        return {row["images"]: float(row["error"]) for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file}: not the evaluations of `sdzoo evaluate --record` ({error!r})") from error


def labels_of(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the classes that travel with the weights."""
    return tuple(model.pretrained_cfg.get("label_names") or ())  # type: ignore[operator, union-attr]


def preprocessing(model: nn.Module) -> Callable[[Any], Tensor]:
    """Return timm's evaluation transform for a network: resize, crop, scale and normalise.

    Raises:
        InputError: The network does not take images of three channels.
    """
    config = resolve_data_config({}, model=model)
    if (channels := config["input_size"][0]) != 3:
        raise InputError(f"this network takes images of {channels} channels; evaluated are those with 3")
    transform: Callable[[Any], Tensor] = create_transform(**config)
    return transform


def onnx_network(path: Path, labels: tuple[str, ...]) -> Callable[[Tensor], Tensor]:
    """Return an ONNX file of sdzoo as a function from normalised images to logits.

    Raises:
        InputError: The file is not one of sdzoo's, has other labels or takes raw pixels, or, from the function, images
            of another shape.
    """
    from sdzoo.runtime import Classifier

    classifier = Classifier(path)
    if classifier.raw:
        raise InputError(f"{path}: takes raw pixels; evaluate a file exported with --input float32")
    if classifier.metadata.labels != labels:
        raise InputError(f"{path}: has the labels {', '.join(classifier.metadata.labels)}, not {', '.join(labels)}")
    shape = (classifier.channels, *classifier.size)

    def network(images: Tensor) -> Tensor:
        if images.shape[1:] != shape:
            raise InputError(f"{path}: takes images of {shape}, these are {tuple(images.shape[1:])}")
        return torch.from_numpy(classifier.run_images(images.numpy()))

    return network
