"""Data sets: the paper's splits, its crop and flip, and randomness that depends on (seed, epoch) only."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, dataset_factory
from torchvision.datasets import CIFAR10, CIFAR100

from sdzoo.errors import InputError
from sdzoo.models.datasets import DATASETS
from sdzoo.training.data import PADDING, PROTOCOLS, SPLITS, SplitDataset, open_split
from sdzoo.training.install import download


def test_every_protocol_is_registered_with_timm() -> None:
    sources = {protocol.source for protocol in PROTOCOLS.values()}
    assert sources == set(DATASETS) == {"cifar10", "cifar100", "fashion_mnist", "svhn"}
    assert {"sd_cifar10_few", "sd_fashion_mnist_few", "sd_cifar10_plain", "sd_cifar100_plain"} <= set(PROTOCOLS)
    for name in PROTOCOLS:
        assert name in dataset_factory._TORCH_BASIC_DS
        assert f"{name}_test" in dataset_factory._TORCH_BASIC_DS


def test_splits_do_not_overlap_and_use_every_image(tmp_path: Path) -> None:
    write_cifar(tmp_path, per_batch=1_200)
    train, validation = (open_split("sd_cifar10", split, tmp_path) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (1_000, 5_000)
    everything = np.concatenate([train.images, validation.images])
    assert np.array_equal(everything, cifar_images(6_000))
    assert np.array_equal(np.concatenate([train.labels, validation.labels]), np.arange(6_000) % 10)
    assert len(open_split("sd_cifar10", "test", tmp_path)) == 300


def test_few_images_of_fashion_mnist(fashion_mnist_root: Path) -> None:
    train, validation = (open_split("sd_fashion_mnist_few", split, fashion_mnist_root) for split in SPLITS[:2])
    assert (len(train), len(validation), train.padding_color) == (2_000, 1_000, None)


def test_few_images_are_the_first_and_not_augmented(tmp_path: Path) -> None:
    write_cifar(tmp_path, per_batch=2_000)
    few = open_split("sd_cifar10_few", "train", tmp_path)
    assert len(few) == 4_000
    assert np.array_equal(np.array(few[17][0]), cifar_images(10_000)[17])


def test_grey_images_get_three_equal_channels(fashion_mnist_root: Path) -> None:
    image, label = open_split("sd_fashion_mnist", "test", fashion_mnist_root)[0]
    pixels = np.array(image)
    assert pixels.shape == (28, 28, 3)
    assert (pixels == pixels[..., :1]).all()
    assert 0 <= label < 10


@pytest.mark.parametrize(("name", "crops"), [("sd_cifar10", True), ("sd_cifar10_plain", False)])
def test_plain_protocols_leave_the_images_alone(tmp_path: Path, name: str, crops: bool) -> None:
    write_cifar(tmp_path, per_batch=1_010)
    train = open_split(name, "train", tmp_path)
    changed = [not np.array_equal(np.array(train[index][0]), train.images[index]) for index in range(50)]
    assert sum(changed) > 40 if crops else not any(changed)


def test_cifar100_has_its_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar100(tmp_path, 5_200, monkeypatch)
    train, validation, test = (open_split("sd_cifar100", split, tmp_path) for split in SPLITS)
    assert (len(train), len(validation), len(test)) == (200, 5_000, 40)
    assert np.array_equal(np.concatenate([train.images, validation.images]), cifar_images(5_200))
    assert train.labels.tolist() == [i % 100 for i in range(200)]
    assert train.padding_color == (129, 124, 112)
    assert open_split("sd_cifar100_plain", "train", tmp_path).padding_color is None
    assert len(set(DATASETS["cifar100"].labels)) == 100


def test_svhn_joins_train_and_extra_and_holds_out_600_a_class(tmp_path: Path) -> None:
    """The paper's numbers follow: 73,257 + 531,131 - 10 x (400 + 200) = 598,388 images to train on."""
    files = write_svhn(tmp_path, n_train=4_130, n_extra=2_070)
    train, validation, test = (open_split("sd_svhn", split, tmp_path) for split in SPLITS)
    assert (len(train), len(validation), len(test)) == (200, 6_000, 50)
    images, labels = files["train_32x32.mat"]
    # Labels go round, so the last 400 of every class are the last 4,000 images.
    assert np.array_equal(train.images[:130], images[:130])
    assert np.array_equal(validation.images[:4_000], images[130:])
    assert train.labels[:130].tolist() == (labels[:130] % 10).tolist()
    assert np.bincount(validation.labels).tolist() == [600] * 10
    images, labels = files["extra_32x32.mat"]
    assert np.array_equal(train.images[130:], images[:70])
    assert np.array_equal(validation.images[4_000:], images[70:])
    assert np.array_equal(np.array(train[131][0]), images[1])  # no augmentation


@pytest.mark.parametrize("version", ["binary", "python"])
def test_cifar_versions_read_the_same(tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if version == "binary":
        write_cifar(tmp_path, per_batch=1_100)
    else:
        write_python_cifar(tmp_path, 1_100, monkeypatch)
    train, test = (open_split("sd_cifar10_few", split, tmp_path) for split in ("train", "test"))
    assert np.array_equal(train.images, cifar_images(5_500)[:4_000])
    assert train.labels.tolist() == [i % 10 for i in range(4_000)]
    assert np.array_equal(test.images, cifar_images(300))
    assert test.labels.tolist() == [i % 10 for i in range(300)]


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_what_is_there_is_not_downloaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's own check fails without the file of label names, which `sdzoo data --from` does not bring."""
    {"cifar10": write_python_cifar, "cifar100": write_cifar100}[name](tmp_path, 100, monkeypatch)
    assert download(name, tmp_path).folder == tmp_path
    assert not list(tmp_path.rglob("*.tar.gz"))


def test_a_pickle_that_is_not_the_official_one_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_python_cifar(tmp_path, 10, monkeypatch)
    (folder / "data_batch_2").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="data_batch_2 is not the official file"):
        open_split("sd_cifar10", "train", tmp_path)


def test_crop_and_flip_against_an_array_formula() -> None:
    """Every augmented image is one of the 9 x 9 x 2 windows of the padded array, and all of them occur."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    color = (10, 20, 30)
    n = 4_000
    dataset = SplitDataset(np.broadcast_to(image, (n, 6, 6, 3)), np.zeros(n, dtype=np.int64), color)
    padded = np.empty((14, 14, 3), dtype=np.uint8)
    padded[:] = color
    padded[4:10, 4:10] = image
    windows = {}
    for top in range(2 * PADDING + 1):
        for left in range(2 * PADDING + 1):
            window = padded[top : top + 6, left : left + 6]
            windows[window.tobytes()] = windows[window[:, ::-1].tobytes()] = (top, left)
    seen = [np.array(dataset[index][0]).tobytes() for index in range(n)]
    assert set(seen) == set(windows)
    counts = np.unique([windows[s] for s in seen], axis=0, return_counts=True)[1]
    expected = n / 81
    assert np.square(counts - expected).sum() / expected < 125  # chi-squared, 80 degrees of freedom, 99.9 %


def test_padding_is_zero_after_normalisation() -> None:
    for info in DATASETS.values():
        for channel, mean, std in zip(info.mean_color, info.mean, info.std, strict=True):
            assert abs((channel / 255 - mean) / std) < 0.5 / 255 / std + 1e-9


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_a_function_of_seed_and_number(fashion_mnist_root: Path, workers: int) -> None:
    """A resumed run, which starts at epoch 2, sees what the uninterrupted one saw there."""

    def epochs(first: int) -> list[torch.Tensor]:
        torch.manual_seed(7)
        dataset = create_dataset("torch/sd_fashion_mnist", root=fashion_mnist_root, split="train")
        loader = create_loader(
            dataset,
            (3, 28, 28),
            128,
            is_training=True,
            no_aug=True,
            use_prefetcher=False,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        seen = []
        for epoch in range(first, 4):
            loader.dataset.set_epoch(epoch)
            images = torch.cat([images for images, _ in loader])
            # With workers the order is another in the first epoch of a process, the images are not.
            seen.append(images if workers == 0 else images.flatten(1).sum(1).sort().values)
        return seen

    whole, resumed = epochs(0), epochs(2)
    assert len(whole[2]) == 512
    assert not torch.equal(whole[2], whole[3])
    assert all(map(torch.equal, whole[2:], resumed))


def test_seeds_differ(fashion_mnist_root: Path) -> None:
    pictures = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        dataset = open_split("sd_fashion_mnist", "train", fashion_mnist_root)
        pictures.append(np.stack([np.array(dataset[index][0]) for index in range(20)]))
    assert not np.array_equal(*pictures)


def test_recipes_statistics_are_the_training_images(cifar10_root: Path) -> None:
    images = open_split("sd_cifar10", "train", cifar10_root).images / 255
    np.testing.assert_allclose(images.mean((0, 1, 2)), DATASETS["cifar10"].mean, atol=1e-3)
    np.testing.assert_allclose(images.std((0, 1, 2)), DATASETS["cifar10"].std, atol=1e-3)


# Bad input.


def test_absent_files_say_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no Fashion-MNIST in .*FashionMNIST/raw.*sdzoo data fashion-mnist"):
        open_split("sd_fashion_mnist", "train", tmp_path)
    with pytest.raises(InputError, match=r"no CIFAR-10 training images.*cifar-10-batches-bin.*sdzoo data cifar10"):
        open_split("sd_cifar10", "train", tmp_path)
    with pytest.raises(InputError, match=r"no CIFAR-100 training images.*cifar-100-python.*sdzoo data cifar100"):
        open_split("sd_cifar100", "train", tmp_path)
    with pytest.raises(InputError, match=r"no train_32x32\.mat in .*SVHN: .*sdzoo data svhn"):
        open_split("sd_svhn", "train", tmp_path)


@pytest.mark.parametrize("spoil", [lambda content: content[:-500], lambda content: b"no MATLAB file", lambda _: b""])
def test_a_damaged_mat_file_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    write_svhn(tmp_path, n_train=20, n_extra=20)
    file = tmp_path / "SVHN" / "test_32x32.mat"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(InputError, match=r"test_32x32\.mat is damaged"):
        open_split("sd_svhn", "test", tmp_path)


def test_a_missing_test_batch_stops_the_test_split_alone(tmp_path: Path) -> None:
    write_cifar(tmp_path, per_batch=1_100)
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    assert len(open_split("sd_cifar10", "train", tmp_path)) == 500
    with pytest.raises(InputError, match=r"no CIFAR-10 test images in .*, test_batch\.bin is missing"):
        open_split("sd_cifar10", "test", tmp_path)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin").unlink()
    with pytest.raises(InputError, match=r"no CIFAR-10 training images in .*, data_batch_4\.bin is missing"):
        open_split("sd_cifar10", "train", tmp_path)


def test_a_short_file_is_named(tmp_path: Path) -> None:
    write_cifar(tmp_path, per_batch=10)
    file = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"data_batch_3\.bin has 30729 bytes, must be a multiple of 3073"):
        open_split("sd_cifar10", "train", tmp_path)


def test_a_truncated_idx_file_is_damaged_not_absent(tmp_path: Path, write_fashion_mnist: Callable) -> None:
    root = write_fashion_mnist(tmp_path / "data", 5_100)
    file = root / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged Fashion-MNIST"):
        open_split("sd_fashion_mnist", "train", root)


def test_unknown_split_and_training_on_the_test_split(fashion_mnist_root: Path) -> None:
    with pytest.raises(InputError, match="'dev', must be one of train, validation, test"):
        open_split("sd_fashion_mnist", "dev", fashion_mnist_root)
    with pytest.raises(InputError, match="has the test split alone"):
        create_dataset("torch/sd_fashion_mnist_test", root=fashion_mnist_root, split="train")


class Bomb:
    def __reduce__(self) -> tuple:
        return (exec, ("raise SystemError('a pickle ran code')",))


def cifar_images(n: int) -> np.ndarray:
    """Images with values of their own: pixel (y, x) of image i and channel c is 7i + 31y + 3x + 100c modulo 256."""
    i, y, x, c = np.ogrid[:n, :32, :32, :3]
    return (7 * i + 31 * y + 3 * x + 100 * c).astype(np.uint8)


def write_cifar(root: Path, per_batch: int, n_test: int = 300) -> None:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    images, labels = cifar_images(5 * per_batch), np.arange(5 * per_batch) % 10
    records = np.concatenate([labels[:, None].astype(np.uint8), planes(images)], axis=1)
    for number, batch in enumerate(np.split(records, 5), start=1):
        batch.tofile(folder / f"data_batch_{number}.bin")
    records[:n_test].tofile(folder / "test_batch.bin")


def write_python_cifar(root: Path, per_batch: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the python version, and make the MD5 of what was written the official one."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    images, numbers = planes(cifar_images(5 * per_batch)), range(5 * per_batch)
    batches = {f"data_batch_{k + 1}": slice(first, first + per_batch) for k, first in enumerate(numbers[::per_batch])}
    md5s = {}
    for name, part in {**batches, "test_batch": slice(300)}.items():
        content = pickle.dumps({"data": images[part], "labels": [i % 10 for i in numbers[part]]})
        (folder / name).write_bytes(content)
        md5s[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5s.pop("test_batch")]])
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5] for name, md5 in md5s.items()])
    return folder


def write_cifar100(root: Path, n_train: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the python version of CIFAR-100, and make the MD5 of what was written the official one."""
    folder = root / "cifar-100-python"
    folder.mkdir()
    for name, table, n in (("train", "train_list", n_train), ("test", "test_list", 40)):
        numbers = range(n)
        labels = {"fine_labels": [i % 100 for i in numbers], "coarse_labels": [i % 20 for i in numbers]}
        content = pickle.dumps({"data": planes(cifar_images(n)), **labels})
        (folder / name).write_bytes(content)
        monkeypatch.setattr(CIFAR100, table, [[name, hashlib.md5(content).hexdigest()]])


def write_svhn(root: Path, n_train: int, n_extra: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write SVHN's cropped digits as MATLAB does: X [32, 32, 3, N], y [N, 1] with 10 for the digit 0, compressed."""
    folder = root / "SVHN"
    folder.mkdir()
    files = {}
    for name, n in (("train_32x32.mat", n_train), ("extra_32x32.mat", n_extra), ("test_32x32.mat", 50)):
        images, labels = cifar_images(n), (np.arange(n) % 10 + 1).astype(np.uint8)
        content = {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None]}
        scipy.io.savemat(folder / name, content, do_compression=True)
        files[name] = images, labels
    return files


def planes(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def test_planes_are_red_then_green_then_blue() -> None:
    red = Image.new("RGB", (32, 32), (255, 0, 0))
    assert planes(np.array(red)[None])[0].reshape(3, -1).mean(axis=1).tolist() == [255, 0, 0]
