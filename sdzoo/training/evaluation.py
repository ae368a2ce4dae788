"""Top-1 of a network on a split or a folder of images, with its uncertainty."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from sdzoo.errors import InputError
from sdzoo.models.datasets import DATASETS
from sdzoo.training.data import SplitDataset, open_split

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
        return 100 * (center - half), 100 * (center + half)


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
    labels = labels_of(model)
    sources = [source for source, info in DATASETS.items() if info.labels == labels]
    if not sources:
        raise InputError("these weights name no data set that sdzoo knows; evaluate on a folder with --images")
    dataset = open_split(f"sd_{sources[0]}", name, root)
    dataset.transform = preprocessing(model)
    return dataset


def folder(root: Path, model: nn.Module) -> ImageFolder:
    """Open a class-per-folder tree; a folder belongs to the label that reads the same but for case and punctuation.

    Raises:
        InputError: No images, or a folder that is none of the labels.
    """
    try:
        images = ImageFolder(str(root), preprocessing(model))
    except FileNotFoundError as error:
        raise InputError(f"{root}: not a tree of images with a folder for each class ({error})") from error
    positions = {_plain(label): position for position, label in enumerate(labels_of(model))}
    for name in images.classes:
        if _plain(name) not in positions:
            raise InputError(f"{root / name}: not one of the labels {', '.join(labels_of(model))}")
    images.target_transform = lambda index: positions[_plain(images.classes[index])]
    return images


def labels_of(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the classes that travel with the weights."""
    return tuple(model.pretrained_cfg.get("label_names") or ())  # type: ignore[operator, union-attr]


def preprocessing(model: nn.Module) -> Callable[[Any], Tensor]:
    """Return timm's evaluation transform for a network: resize, crop, scale and normalise."""
    transform: Callable[[Any], Tensor] = create_transform(**resolve_data_config({}, model=model))
    return transform


def onnx_network(path: Path) -> Callable[[Tensor], Tensor]:
    """Return an ONNX file as a function from images to logits."""
    from sdzoo.runtime import session

    run = session(path).run
    return lambda images: torch.from_numpy(run(["logits"], {"images": images.numpy()})[0])


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
