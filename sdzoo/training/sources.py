"""Read the official files of a data set: images [N, H, W, 3] as uint8, labels [N] as int64.

Every reader takes the folder the user gives as ``--data-dir`` and accepts the layouts named in its error.
"""

import hashlib
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import CIFAR10, CIFAR100, SVHN, FashionMNIST
from torchvision.datasets.utils import download_url

from sdzoo.errors import InputError

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Reader = Callable[[Path, bool, bool], tuple[Images, Labels]]

CIFAR10_BINARY = "cifar-10-batches-bin"
CIFAR10_RECORD = 1 + 3 * 32 * 32

DAMAGED = (ValueError, TypeError, KeyError, IndexError, OSError, EOFError, NotImplementedError, MemoryError, zlib.error)
SVHN_FOLDER = "SVHN"
SVHN_FILES = {file: (url, md5) for url, file, md5 in SVHN.split_list.values()}
SVHN_HELD_OUT = {"train_32x32.mat": 400, "extra_32x32.mat": 200}  # images of every class in the validation split


def _fashion_mnist(root: Path, train: bool, download: bool) -> tuple[Images, Labels]:
    """Read the four idx files as torchvision keeps them; grey images get three equal channels."""
    try:
        dataset = FashionMNIST(str(root), train=train, download=download)
    except (RuntimeError, ValueError, AssertionError, KeyError) as error:
        raw = root / "FashionMNIST" / "raw"
        problem = f"damaged Fashion-MNIST in {raw}" if any(raw.glob("*-ubyte")) else f"no Fashion-MNIST in {root}"
        raise InputError(
            f"{problem}: put the idx files into {raw} with `sdzoo data fashion-mnist --from FOLDER --to {root}`"
        ) from error
    return np.repeat(dataset.data.numpy()[..., None], 3, axis=3), dataset.targets.numpy().astype(np.int64)


def _cifar10(root: Path, train: bool, download: bool) -> tuple[Images, Labels]:
    """Read the binary version, else the python version; the first of which all batches of the split are there."""
    md5s = dict(CIFAR10.train_list if train else CIFAR10.test_list)
    binary = [root / CIFAR10_BINARY / f"{batch}.bin" for batch in md5s]
    python = [root / CIFAR10.base_folder / batch for batch in md5s]
    if all(file.is_file() for file in binary):
        return _joined([_cifar_binary(file) for file in binary])
    if download and not all(file.is_file() for file in python):
        CIFAR10(str(root), train=train, download=True)
    if all(file.is_file() for file in python):
        return _joined([_cifar_python(file, md5s[file.name]) for file in python])
    absent = [files for files in (binary, python) if any(file.is_file() for file in files)] or [binary]
    raise InputError(
        f"no CIFAR-10 {'training' if train else 'test'} images in {root}, "
        f"{next(file.name for file in absent[0] if not file.is_file())} is missing: put the official files into "
        f"{binary[0].parent} or {python[0].parent} with `sdzoo data cifar10 --from FOLDER --to {root}`"
    )


def _cifar100(root: Path, train: bool, download: bool) -> tuple[Images, Labels]:
    """Read the python version with its 100 fine labels."""
    ((name, md5),) = CIFAR100.train_list if train else CIFAR100.test_list
    file = root / CIFAR100.base_folder / name
    if download and not file.is_file():
        CIFAR100(str(root), train=train, download=True)
    if not file.is_file():
        raise InputError(
            f"no CIFAR-100 {'training' if train else 'test'} images in {root}: put the official files into "
            f"{file.parent} with `sdzoo data cifar100 --from FOLDER --to {root}`"
        )
    return _joined([_cifar_python(file, md5, "fine_labels")])


def _joined(batches: list[tuple[Images, NDArray[np.uint8]]]) -> tuple[Images, Labels]:
    """Join batches of colour planes [N, 3 * 32 * 32] to images [N, 32, 32, 3]."""
    planes, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels.astype(np.int64)


def _cifar_binary(file: Path) -> tuple[Images, NDArray[np.uint8]]:
    """Read records of one label byte and 3,072 bytes of pixels: 32 x 32 of red, of green, of blue."""
    content = np.fromfile(file, dtype=np.uint8)
    if content.size == 0 or content.size % CIFAR10_RECORD:
        raise InputError(f"{file} has {content.size} bytes, must be a multiple of {CIFAR10_RECORD}")
    records = content.reshape(-1, CIFAR10_RECORD)
    return records[:, 1:], records[:, 0]


def _cifar_python(file: Path, md5: str, key: str = "labels") -> tuple[Images, NDArray[np.uint8]]:
    """Read a pickled batch. A pickle can run code, so nothing but the official bytes is opened."""
    content = file.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise InputError(f"{file} is not the official file, its MD5 must be {md5}")
    batch = pickle.loads(content, encoding="latin1")
    return batch["data"], np.array(batch[key], dtype=np.uint8)


def _svhn(root: Path, train: bool, download: bool) -> tuple[Images, Labels]:
    """Read the cropped digits: train and extra together with the customary validation images last, or test.

    Those are the last 400 of every class in train and the last 200 of every class in extra. The images of train and
    extra take 1.9 GB of memory, and three times as much while they are read.
    """
    names = list(SVHN_HELD_OUT) if train else ["test_32x32.mat"]
    files = [root / SVHN_FOLDER / name for name in names]
    if download:
        for file in files:
            url, md5 = SVHN_FILES[file.name]
            download_url(url, str(file.parent), file.name, md5)
    for file in files:
        if not file.is_file():
            raise InputError(
                f"no {file.name} in {file.parent}: put SVHN's official files there "
                f"with `sdzoo data svhn --from FOLDER --to {root}`"
            )
    parts = [_svhn_file(file) for file in files]
    held_out = [
        _last_of_every_class(labels, SVHN_HELD_OUT.get(f.name, 0)) for f, (_, labels) in zip(files, parts, strict=True)
    ]
    return _held_out_last(parts, held_out)


def _svhn_file(file: Path) -> tuple[Images, Labels]:
    """Read a MATLAB file with X [32, 32, 3, N] and y [N, 1], where the digit 0 has the label 10."""
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise InputError("reading SVHN's .mat files needs scipy: pip install 'sdzoo[svhn]'") from error
    try:
        content = loadmat(file, variable_names=("X", "y"))
        return content["X"].transpose(3, 0, 1, 2), content["y"].ravel().astype(np.int64) % 10
    except (*DAMAGED, MatReadError) as error:
        raise InputError(f"{file} is damaged, it must have X and y in MATLAB's format ({error})") from error


def _last_of_every_class(labels: Labels, n: int) -> NDArray[np.bool_]:
    """Mark the last n images of every class."""
    mask = np.zeros(len(labels), dtype=np.bool_)
    for label in np.unique(labels):
        mask[np.flatnonzero(labels == label)[::-1][:n]] = True
    return mask


def _held_out_last(parts: list[tuple[Images, Labels]], held_out: list[NDArray[np.bool_]]) -> tuple[Images, Labels]:
    """Join parts, what is not held out first."""
    pieces = [(part, mask == last) for last in (False, True) for part, mask in zip(parts, held_out, strict=True)]
    images = np.concatenate([images[chosen] for (images, _), chosen in pieces])
    return images, np.concatenate([labels[chosen] for (_, labels), chosen in pieces])


READERS: dict[str, Reader] = {
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "svhn": _svhn,
}
