"""The paper's data protocol as data sets of timm: its splits, its crop and flip (paper, section 4).

timm's script knows a training and an evaluation split, the protocol has three: ``torch/sd_cifar10`` gives train and
validation, ``torch/sd_cifar10_test`` the test split, which is for the end alone.

The crop of an image depends on (seed, epoch, image) only, whatever the number of workers. So does the order, as long
as the main process loads the images (``--workers 0``): a resumed run then sees exactly the batches that the
uninterrupted one would have seen. With workers PyTorch draws one number more in the first epoch of a process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import dataset_factory
from timm.utils import random_seed
from torch.utils.data import Dataset

from sdzoo.errors import InputError
from sdzoo.models.datasets import DATASETS
from sdzoo.training.sources import READERS, Images, Labels

PADDING = 4
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Protocol:
    """How the official training images are split and augmented.

    Attributes:
        source: Key of ``DATASETS`` and ``READERS``.
        validation: Images held out at the end of the official training set.
        train: Images trained on, the first so many; None for all that are not held out.
        augment: Pad by 4, crop at random, flip with probability 1/2.
    """

    source: str
    validation: int = 5_000
    train: int | None = None
    augment: bool = True


PROTOCOLS = {
    "sd_cifar10": Protocol("cifar10"),
    "sd_cifar10_plain": Protocol("cifar10", augment=False),
    "sd_cifar10_few": Protocol("cifar10", train=4_000, augment=False),
    "sd_cifar100": Protocol("cifar100"),
    "sd_cifar100_plain": Protocol("cifar100", augment=False),
    "sd_fashion_mnist": Protocol("fashion_mnist"),
    "sd_fashion_mnist_few": Protocol("fashion_mnist", validation=1_000, train=2_000, augment=False),
    "sd_svhn": Protocol("svhn", validation=6_000, augment=False),
}


class SplitDataset(Dataset[tuple[Any, int]]):
    """Images of one split in memory; timm sets ``transform``.

    Args:
        images: [N, H, W, 3], uint8.
        labels: [N], in 0..classes-1.
        padding_color: Augment with this colour around the image; None does not augment.
    """

    def __init__(self, images: Images, labels: Labels, padding_color: tuple[int, int, int] | None = None) -> None:
        self.images = images
        self.labels = labels
        self.padding_color = padding_color
        self.transform: Callable[[Image.Image], Any] | None = None
        self.seed = torch.initial_seed() % 2**64
        # Shared memory: timm's data loading workers live as long as the run and would not see a plain attribute change.
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch: timm's script calls this, and what is random from here on depends on (seed, epoch) only."""
        self.epoch.fill_(epoch)
        random_seed(int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0]))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return one transformed image and its label."""
        image = Image.fromarray(self.images[index])
        if self.padding_color is not None:
            image = self._crop_and_flip(image, index, self.padding_color)
        return (self.transform(image) if self.transform else image), int(self.labels[index])

    def _crop_and_flip(self, image: Image.Image, index: int, color: tuple[int, int, int]) -> Image.Image:
        generator = np.random.Philox(key=self.seed, counter=[0, 0, int(self.epoch), index])
        offsets, flip = divmod(int(generator.random_raw()), 2)
        top, left = divmod(offsets % (2 * PADDING + 1) ** 2, 2 * PADDING + 1)
        padded = ImageOps.expand(image, PADDING, fill=color)
        crop = padded.crop((left, top, left + image.width, top + image.height))
        return ImageOps.mirror(crop) if flip else crop


def open_split(name: str, split: str, root: Path, download: bool = False) -> SplitDataset:
    """Open one split of a data set.

    Args:
        name: Key of ``PROTOCOLS``.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        root: Folder with the official files.
        download: Let torchvision fetch what is missing.

    Raises:
        InputError: An unknown split, or files that are missing or damaged.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}, must be one of {', '.join(SPLITS)}")
    protocol = PROTOCOLS[name]
    images, labels = READERS[protocol.source](root, split != "test", download)
    held_out = len(labels) - protocol.validation
    ranges = {
        "train": slice(0, held_out if protocol.train is None else protocol.train),
        "validation": slice(held_out, None),
        "test": slice(None),
    }
    color = DATASETS[protocol.source].mean_color if protocol.augment and split == "train" else None
    return SplitDataset(images[ranges[split]], labels[ranges[split]], color)


def _open(name: str, root: str | None, train: bool, download: bool = False) -> SplitDataset:
    return open_split(name, "train" if train else "validation", Path(root or "data"), download)


def _open_test(name: str, root: str | None, train: bool, download: bool = False) -> SplitDataset:
    if train:
        raise InputError(f"torch/{name}_test has the test split alone; train on torch/{name}")
    return open_split(name, "test", Path(root or "data"), download)


def register() -> None:
    """Make ``torch/sd_*`` and ``torch/sd_*_test`` known to timm's data set factory."""
    for name in PROTOCOLS:
        dataset_factory._TORCH_BASIC_DS[name] = partial(_open, name)
        dataset_factory._TORCH_BASIC_DS[f"{name}_test"] = partial(_open_test, name)
