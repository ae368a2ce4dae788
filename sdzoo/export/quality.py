"""What a smaller file costs and what it saves: accuracy, agreement, bytes and time beside the float32 file's."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdzoo.errors import InputError
from sdzoo.metadata import Metadata
from sdzoo.models.datasets import DATASETS, dataset_of
from sdzoo.pictures import Picture
from sdzoo.runtime import Classifier
from sdzoo.samples import CALIBRATION, FASHION_MNIST, class_indices, read_samples
from sdzoo.training.evaluation import Score

BATCHES = (1, 8, 32)
ROUNDS = 20
MAX_LOSS = 0.5  # points of top-1


@dataclass(frozen=True)
class Labelled:
    """Images with the indices of their classes.

    Attributes:
        pictures: At least one image.
        targets: Its class, for each.
        origin: Where they come from, in words.
    """

    pictures: Sequence[Picture]
    targets: NDArray[np.int64]
    origin: str


@dataclass(frozen=True)
class Quality:
    """Two files on the same images.

    Attributes:
        float32: Right answers of the float32 file.
        smaller: Right answers of the smaller file.
        agreement: Percent of the images that both give the same class.
        origin: Where the images come from, in words.
    """

    float32: Score
    smaller: Score
    agreement: float
    origin: str

    @property
    def loss(self) -> float:
        """Points of top-1 lost, negative where some were won."""
        return self.float32.top1 - self.smaller.top1

    def check(self, kind: str, max_loss: float = MAX_LOSS) -> None:
        """Raise InputError where the loss is beyond what is allowed."""
        if not round(self.loss, 9) <= max_loss:
            raise InputError(
                f"{kind} loses {self.loss:.2f} points of top-1 on {self.smaller.n:,} images, allowed are {max_loss:g}"
            )


def measure(float32: Classifier, smaller: Classifier, images: Labelled) -> Quality:
    """Classify all images with both files."""
    before, after = (classifier.logits(images.pictures).argmax(axis=1) for classifier in (float32, smaller))
    agreement = 100 * float((before == after).mean())
    return Quality(_score(before, images.targets), _score(after, images.targets), agreement, images.origin)


def _score(classes: NDArray[np.int64], targets: NDArray[np.int64]) -> Score:
    return Score(int((classes == targets).sum()), len(targets))


def times(float32: Path, smaller: Path, pictures: Sequence[Picture]) -> dict[int, float]:
    """Return the smaller file's time as a share of the float32 file's, on one thread, for each batch.

    It is the shortest of interleaved runs, which what else the machine does disturbs least.
    """
    before, after = Classifier(float32, "cpu", threads=1), Classifier(smaller, "cpu", threads=1)
    pixels = before.pixels(pictures[: max(BATCHES)])
    ratios = {}
    for batch in [before.batch] if before.batch else BATCHES:
        images = before.images(np.resize(pixels, (batch, *pixels.shape[1:])))
        rounds = [(_seconds(before, images), _seconds(after, images)) for _ in range(ROUNDS)]
        ratios[batch] = min(late for _, late in rounds) / min(early for early, _ in rounds)
    return ratios


def _seconds(classifier: Classifier, images: NDArray[Any]) -> float:
    start = time.perf_counter()
    classifier.session.run(["logits"], {"images": images})
    return time.perf_counter() - start


def images_to_calibrate(metadata: Metadata, folder: Path | None) -> list[Picture]:
    """Return the images to calibrate with: those of a folder, or the shipped ones where they fit the weights.

    Raises:
        InputError: There are none.
    """
    if folder is None and dataset_of(metadata.labels) != "fashion_mnist":
        raise InputError(f"{metadata.name}: no training images of these classes ship; give some with --calibration")
    return [sample.path for sample in read_samples(folder or CALIBRATION)]


def images_to_measure(metadata: Metadata, folder: Path | None, data_dir: Path | None) -> Labelled:
    """Return the images to measure on: of a folder, the whole test split of a data set, or the shipped ones.

    Raises:
        InputError: There are none, or they are not of the classes of the weights.
    """
    dataset = dataset_of(metadata.labels)
    if data_dir is not None and folder is None:
        return _test_split(metadata, dataset, data_dir)
    if folder is None and dataset != "fashion_mnist":
        raise InputError(f"{metadata.name}: no test images of these classes ship; give --images or --data-dir")
    samples = read_samples(folder or FASHION_MNIST)
    targets = class_indices(samples, metadata.labels)
    if targets is None:
        raise InputError(f"{folder}: its folders are not named after the labels {', '.join(metadata.labels)}")
    origin = str(folder) if folder else "the sample of the test set that ships with sdzoo"
    return Labelled([sample.path for sample in samples], np.array(targets), origin)


def _test_split(metadata: Metadata, dataset: str | None, data_dir: Path) -> Labelled:
    from sdzoo.training.data import open_split

    if dataset is None:
        raise InputError(f"{metadata.name}: its labels are of no data set that sdzoo knows; give --images")
    split = open_split(f"sd_{dataset}", "test", data_dir)
    return Labelled(list(split.images), split.labels, f"the whole test set of {DATASETS[dataset].title}")
