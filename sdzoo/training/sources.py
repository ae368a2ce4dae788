"""Read the official files of a data set: images as one uint8 array, labels as one int64 array.

Every reader takes the folder the user gives as ``--data-dir`` and accepts the layouts named in its error.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10, FashionMNIST

from sdzoo.errors import InputError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Reader = Callable[[Path, bool, bool], tuple[Images, Labels]]

CIFAR_RECORD = 1 + 3 * 32 * 32
CIFAR10_BATCHES = {True: [f"data_batch_{number}" for number in range(1, 6)], False: ["test_batch"]}


def _fashion_mnist(root: Path, train: bool, download: bool) -> tuple[Images, Labels]:
    """Read the four idx files as torchvision keeps them; grey images get three equal channels."""
    try:
        dataset = FashionMNIST(str(root), train=train, download=download)
    except RuntimeError as error:
        raise InputError(
            f"no Fashion-MNIST in {root}: put the idx files into {root / 'FashionMNIST' / 'raw'} "
            f"with `sdzoo data fashion-mnist --from FOLDER --to {root}`"
        ) from error
    images = dataset.data.numpy()
    return np.repeat(images[..., None], 3, axis=3), dataset.targets.numpy().astype(np.int64)


def _cifar10(root: Path, train: bool, download: bool) -> tuple[Images, Labels]:
    """Read the binary version (``cifar-10-batches-bin``), else the python version through torchvision."""
    files = [root / "cifar-10-batches-bin" / f"{batch}.bin" for batch in CIFAR10_BATCHES[train]]
    if all(file.is_file() for file in files):
        return _cifar_binary(files)
    try:
        dataset = CIFAR10(str(root), train=train, download=download)
    except RuntimeError as error:
        raise InputError(
            f"no CIFAR-10 {'training' if train else 'test'} images in {root}: put the official files into "
            f"{root / 'cifar-10-batches-bin'} or {root / 'cifar-10-batches-py'} with "
            f"`sdzoo data cifar10 --from FOLDER --to {root}`"
        ) from error
    return dataset.data, np.array(dataset.targets, dtype=np.int64)


def _cifar_binary(files: list[Path]) -> tuple[Images, Labels]:
    """Read records of one label byte and 3,072 bytes of pixels: 32 x 32 of red, of green, of blue."""
    for file in files:
        if file.stat().st_size % CIFAR_RECORD:
            raise InputError(f"{file} has {file.stat().st_size} bytes, not a multiple of {CIFAR_RECORD}")
    records = np.concatenate([np.fromfile(file, dtype=np.uint8) for file in files]).reshape(-1, CIFAR_RECORD)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 0].astype(np.int64)


READERS: dict[str, Reader] = {"fashion_mnist": _fashion_mnist, "cifar10": _cifar10}
