"""The sample images: what ships, and folders of the user."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdzoo.errors import InputError
from sdzoo.models.datasets import DATASETS
from sdzoo.samples import CALIBRATION, FASHION_MNIST, Sample, class_indices, folder_name, read_samples
from sdzoo.training.data import open_split

LABELS = DATASETS["fashion_mnist"].labels


@pytest.mark.parametrize("folder", [FASHION_MNIST, CALIBRATION])
def test_two_hundred_images_twenty_a_class(folder: Path) -> None:
    samples = read_samples(folder)
    assert Counter(sample.class_name for sample in samples) == {folder_name(label): 20 for label in LABELS}
    assert len(LABELS) == 10
    pixels = [np.asarray(Image.open(sample.path)) for sample in samples]
    assert {array.shape for array in pixels} == {(28, 28)}
    assert len({array.tobytes() for array in pixels}) == 200
    assert sum(sample.path.stat().st_size for sample in samples) < 160_000
    assert "MIT License" in (FASHION_MNIST / "LICENSE").read_text()


def test_images_to_calibrate_with_are_training_images(fashion_mnist_files: Path) -> None:
    train = open_split("sd_fashion_mnist", "train", fashion_mnist_files)
    samples = read_samples(CALIBRATION)
    targets = class_indices(samples, LABELS)
    assert samples and targets is not None
    for sample, target in zip(samples, targets, strict=True):
        index = int(sample.path.stem)
        assert (np.asarray(Image.open(sample.path)) == train.images[index, :, :, 0]).all()
        assert train.labels[index] == target


def test_no_image_is_in_both_sets() -> None:
    measured, calibrated = (
        {np.asarray(Image.open(sample.path)).tobytes() for sample in read_samples(folder)}
        for folder in (FASHION_MNIST, CALIBRATION)
    )
    assert len(measured) == len(calibrated) == 200
    assert not measured & calibrated


def test_classes_are_the_labels_in_their_order() -> None:
    samples = [Sample(Path("x.png"), name) for name in ("ankle_boot", "T-shirt_top", "bag")]
    assert class_indices(samples, LABELS) == [9, 0, 8]
    assert class_indices([*samples, Sample(Path("y.png"), "hat")], LABELS) is None


def test_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_samples(tmp_path / "missing")
    (tmp_path / "bag").mkdir()
    (tmp_path / "bag" / "notes.txt").touch()
    with pytest.raises(InputError, match="a folder for each class"):
        read_samples(tmp_path)
