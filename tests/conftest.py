"""What several tests need: timm's script, and Fashion-MNIST's official layout filled with the shipped images."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commandline import run as run
from local_hub import hub as hub
from PIL import Image
from published import published as published
from published import run_folder as run_folder

from sdzoo.models.datasets import DATASETS
from sdzoo.samples import class_indices, read_samples

# The tests run one process a core: one thread in each, and in the processes they start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")


def provided(variable: str, what: str) -> Path:
    """Return the path that an environment variable names; skip the test where it does not."""
    if not (path := os.environ.get(variable)):
        pytest.skip(f"set {variable} to {what}")
    return Path(path)


@pytest.fixture(scope="session")
def timm_script() -> Path:
    return provided("SDZOO_TIMM_TRAIN", "timm's train.py (it is not in timm's wheel)")


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    return provided(
        "SDZOO_CIFAR10", "a folder with CIFAR-10's official files, and its test images as the results name them"
    )


@pytest.fixture(scope="session")
def cifar10_test_images(cifar10_root: Path) -> dict[str, Path]:
    """The folders that shipped results were measured on: a lossless part of the test split, and all of it as JPEG."""
    folders = {"test": cifar10_root / "test_first_1000", "test_compressed": cifar10_root / "test_jpeg"}
    if missing := [str(folder) for folder in folders.values() if not folder.is_dir()]:
        pytest.skip(f"the test images that the results were measured on are not there: {', '.join(missing)}")
    return folders


@pytest.fixture(scope="session")
def fashion_mnist_files() -> Path:
    return provided("SDZOO_FASHION_MNIST", "a folder with the whole Fashion-MNIST, as `sdzoo data` writes it")


def write_idx(file: Path, array: np.ndarray) -> None:
    """Write unsigned bytes in the idx format: magic number 0x0800 + dimensions, sizes big-endian, then the bytes."""
    header = np.array([0x0800 + array.ndim, *array.shape], dtype=">u4").tobytes()
    file.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="session")
def write_fashion_mnist() -> Callable[[Path, int], Path]:
    """Return a function that fills a data folder with so many training images: the shipped test images, repeated."""
    samples = read_samples()
    images = np.array([np.array(Image.open(sample.path).convert("L")) for sample in samples])
    labels = np.array(class_indices(samples, DATASETS["fashion_mnist"].labels))
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order], labels[order]

    def write(root: Path, n_train: int) -> Path:
        raw = root / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        repeated = np.resize(np.arange(len(labels)), n_train)
        write_idx(raw / "train-images-idx3-ubyte", images[repeated])
        write_idx(raw / "train-labels-idx1-ubyte", labels[repeated])
        write_idx(raw / "t10k-images-idx3-ubyte", images)
        write_idx(raw / "t10k-labels-idx1-ubyte", labels)
        return root

    return write


@pytest.fixture(scope="session")
def fashion_mnist_root(tmp_path_factory: pytest.TempPathFactory, write_fashion_mnist: Callable) -> Path:
    """A data folder with 512 images to train on, 5,000 to validate and 200 to test."""
    return write_fashion_mnist(tmp_path_factory.mktemp("data"), 5_512)
