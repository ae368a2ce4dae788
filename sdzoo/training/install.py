"""Bring the official files of a data set into the folder that training reads, checked to the last byte."""

import gzip
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets.utils import calculate_md5

from sdzoo.errors import InputError
from sdzoo.training.sources import CIFAR10_BINARY, READERS, SVHN_FILES, SVHN_FOLDER


@dataclass(frozen=True)
class Layout:
    """One official version of a data set: its folder, and the MD5 of every file in it.

    Attributes:
        folder: Where the files belong, relative to the data folder.
        files: File name to MD5; a source may have them gzipped, the MD5 is that of the content.
        optional: Files that may be absent, and what then cannot be done.
    """

    folder: str
    files: dict[str, str]
    optional: dict[str, str] = field(default_factory=dict)


NO_TEST = "the test split cannot be evaluated"
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "fashion-mnist": (
        Layout(
            "FashionMNIST/raw",
            {
                "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
                "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
                "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
                "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
            },
        ),
    ),
    "cifar10": (
        Layout(
            CIFAR10_BINARY,
            {
                "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
                "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
                "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
                "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
                "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
                "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
            },
            {"test_batch.bin": NO_TEST},
        ),
        Layout(CIFAR10.base_folder, dict(CIFAR10.train_list + CIFAR10.test_list), {"test_batch": NO_TEST}),
    ),
    "cifar100": (Layout(CIFAR100.base_folder, dict(CIFAR100.train_list + CIFAR100.test_list), {"test": NO_TEST}),),
    "svhn": (Layout(SVHN_FOLDER, {name: md5 for name, (_, md5) in SVHN_FILES.items()}, {"test_32x32.mat": NO_TEST}),),
}


@dataclass(frozen=True)
class Installed:
    """What ``install`` did: the folder it filled, and optional files that the source does not have."""

    folder: Path
    absent: dict[str, str]


def install(dataset: str, source: Path, root: Path) -> Installed:
    """Copy a data set's official files from a folder or archive into the data folder, all of them or none.

    Args:
        dataset: Key of ``LAYOUTS``.
        source: Folder with the files (gzipped or not, at any depth), or a tar archive of it.
        root: Data folder; what training takes as ``--data-dir``.

    Raises:
        InputError: An unknown data set, a source without the files, or a file that is missing or damaged.
    """
    dataset = _checked(dataset)
    with _unpacked(source) as folder:
        layout, found = _recognise(dataset, source, folder)
        target = root / layout.folder
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target, prefix=".incoming-") as incoming:
            for name, file in found.items():
                _copy_checked(file, Path(incoming) / name, layout.files[name], f"{source}: {file.relative_to(folder)}")
            for name in found:
                (Path(incoming) / name).replace(target / name)
    return Installed(target, {name: why for name, why in layout.optional.items() if not (target / name).exists()})


def download(dataset: str, root: Path) -> Installed:
    """Let torchvision download a data set into the data folder.

    Raises:
        InputError: An unknown data set, or no answer from its server.
    """
    dataset = _checked(dataset)
    try:
        for train in (True, False):
            READERS[dataset.replace("-", "_")](root, train, True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot download {dataset} ({error}); give its official files with --from") from error
    return Installed(root, {})


def _checked(dataset: str) -> str:
    """Return a data set's name with hyphens for underscores, which tags and recipes have."""
    name = dataset.replace("_", "-")
    if name not in LAYOUTS:
        raise InputError(f"unknown data set {dataset!r}, must be one of {', '.join(LAYOUTS)}")
    return name


@contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise InputError(f"{source}: no such folder or archive")
    with tempfile.TemporaryDirectory() as folder:
        try:
            with tarfile.open(source) as archive:
                archive.extractall(folder, filter="data")
        except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            raise InputError(f"{source}: not a tar archive, or damaged ({error})") from error
        yield Path(folder)


def _recognise(dataset: str, source: Path, folder: Path) -> tuple[Layout, dict[str, Path]]:
    """Return the first layout that the folder has completely, and its files by name."""
    files = {path.name.removesuffix(".gz"): path for path in sorted(folder.rglob("*")) if path.is_file()}
    incomplete = ""
    for layout in LAYOUTS[dataset]:
        found = {name: files[name] for name in layout.files if name in files}
        missing = [name for name in layout.files if name not in found and name not in layout.optional]
        if found and not missing:
            return layout, found
        incomplete = incomplete or (missing[0] if found else "")
    if incomplete:
        raise InputError(f"{source}: {incomplete} is missing")
    wanted = " or ".join(next(iter(layout.files)) for layout in LAYOUTS[dataset])
    raise InputError(f"{source}: no {dataset} here, looked for {wanted} and so on")


def _copy_checked(file: Path, target: Path, md5: str, said: str) -> None:
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rb") as content, target.open("wb") as copy:
            shutil.copyfileobj(content, copy)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{said}: damaged ({error})") from error
    found = calculate_md5(target)
    if found != md5:
        raise InputError(f"{said}: wrong or short, its MD5 is {found}, the official one is {md5}")
