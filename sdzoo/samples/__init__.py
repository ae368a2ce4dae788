"""Labelled images as files: a folder for each class, with images inside.

Two sets of 200, 20 a class, ship with the package, named by their index in the official files: Fashion-MNIST test
images to measure on (every 50th of each class), and training images to calibrate with (evenly spaced among the 55,000
that are trained on). ``python -m sdzoo.samples.make DATA_DIR`` writes both; ``fashion_mnist/LICENSE`` (MIT) is theirs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdzoo.errors import InputError

FASHION_MNIST = Path(__file__).parent / "fashion_mnist"
CALIBRATION = Path(__file__).parent / "fashion_mnist_train"
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True)
class Sample:
    """An image file and the name of its class's folder."""

    path: Path
    class_name: str


def read_samples(folder: Path = FASHION_MNIST) -> list[Sample]:
    """Return the images, at any depth and not hidden, of a folder that has a folder for each class, in a fixed order.

    Raises:
        InputError: There are none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    images = (file.relative_to(folder) for file in folder.glob("*/**/*") if file.suffix.lower() in SUFFIXES)
    files = sorted(file for file in images if not any(part.startswith(".") for part in file.parts))
    if not files:
        raise InputError(f"{folder}: no images in it; it must have a folder for each class with images inside")
    return [Sample(folder / file, file.parts[0]) for file in files]


def class_indices(samples: Sequence[Sample], labels: Sequence[str]) -> list[int] | None:
    """Return the index of every sample's class, None unless every folder is named after a label."""
    index = {folder_name(label): number for number, label in enumerate(labels)}
    if not all(folder_name(sample.class_name) in index for sample in samples):
        return None
    return [index[folder_name(sample.class_name)] for sample in samples]


def folder_name(label: str) -> str:
    """Return a label as the name of a folder: ``T-shirt/top`` becomes ``t_shirt_top``."""
    return re.sub(r"[^a-z0-9]+", "_", label.lower())
