"""The sample images: what ships, and folders of the user."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdzoo.errors import InputError
from sdzoo.models.datasets import DATASETS
from sdzoo.samples import FASHION_MNIST, Sample, class_indices, folder_name, read_samples

LABELS = DATASETS["fashion_mnist"].labels


def test_two_hundred_images_twenty_a_class() -> None:
    samples = read_samples()
    assert Counter(sample.class_name for sample in samples) == {folder_name(label): 20 for label in LABELS}
    assert len(LABELS) == 10
    pixels = [np.asarray(Image.open(sample.path)) for sample in samples]
    assert {array.shape for array in pixels} == {(28, 28)}
    assert len({array.tobytes() for array in pixels}) == 200
    assert sum(sample.path.stat().st_size for sample in samples) < 160_000
    assert "MIT License" in (FASHION_MNIST / "LICENSE").read_text()


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
