"""Read the official files of a data set: images [N, H, W, 3] as uint8, labels [N] as int64.

Every reader takes the folder the user gives as ``--data-dir`` and accepts the layouts named in its error.
"""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10, FashionMNIST

from sdzoo.errors import InputError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Reader = Callable[[Path, bool, bool], tuple[Images, Labels]]

CIFAR10_BINARY = "cifar-10-batches-bin"
CIFAR10_RECORD = 1 + 3 * 32 * 32


def _fashion_mnist(root: Path, train: bool, download: bool) -> tuple[Images, Labels]:
    """Read the four idx files as torchvision keeps them; grey images get three equal channels."""
    try:
        dataset = FashionMNIST(str(root), train=train, download=download)
    except RuntimeError as error:
        raise InputError(
            f"no Fashion-MNIST in {root}: put the idx files into {root / 'FashionMNIST' / 'raw'} "
            f"with `sdzoo data fashion-mnist --from FOLDER --to {root}`"
        ) from error
    return np.repeat(dataset.data.numpy()[..., None], 3, axis=3), dataset.targets.numpy().astype(np.int64)


def _cifar10(root: Path, train: bool, download: bool) -> tuple[Images, Labels]:
    """Read the binary version, else the python version; the first of which all batches of the split are there."""
    if download:
        CIFAR10(str(root), train=train, download=True)
    md5s = dict(CIFAR10.train_list if train else CIFAR10.test_list)
    binary = [root / CIFAR10_BINARY / f"{batch}.bin" for batch in md5s]
    python = [root / CIFAR10.base_folder / batch for batch in md5s]
    if all(file.is_file() for file in binary):
        batches = [_cifar_binary(file) for file in binary]
    elif all(file.is_file() for file in python):
        batches = [_cifar_python(file, md5s[file.name]) for file in python]
    else:
        raise InputError(
            f"no CIFAR-10 {'training' if train else 'test'} images in {root}: put the official files into "
            f"{binary[0].parent} or {python[0].parent} with `sdzoo data cifar10 --from FOLDER --to {root}`"
        )
    planes, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels.astype(np.int64)


def _cifar_binary(file: Path) -> tuple[Images, NDArray[np.uint8]]:
    """Read records of one label byte and 3,072 bytes of pixels: 32 x 32 of red, of green, of blue."""
    content = np.fromfile(file, dtype=np.uint8)
    if content.size == 0 or content.size % CIFAR10_RECORD:
        raise InputError(f"{file} has {content.size} bytes, must be a multiple of {CIFAR10_RECORD}")
    records = content.reshape(-1, CIFAR10_RECORD)
    return records[:, 1:], records[:, 0]


def _cifar_python(file: Path, md5: str) -> tuple[Images, NDArray[np.uint8]]:
    """Read a pickled batch. A pickle can run code, so nothing but the official bytes is opened."""
    content = file.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise InputError(f"{file} is not the official file, its MD5 must be {md5}")
    batch = pickle.loads(content, encoding="latin1")
    return batch["data"], np.array(batch["labels"], dtype=np.uint8)


READERS: dict[str, Reader] = {"fashion_mnist": _fashion_mnist, "cifar10": _cifar10}
