"""What a smaller file loses and gains: which images count, right answers, times."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import CIFAR, lively_network, network
from PIL import Image

from sdzoo.errors import InputError
from sdzoo.export import write_onnx
from sdzoo.export.quality import BATCHES, Labelled, Quality, images_to_calibrate, images_to_measure, measure, times
from sdzoo.export.quantize import quantize
from sdzoo.runtime import Classifier
from sdzoo.samples import CALIBRATION, FASHION_MNIST, read_samples
from sdzoo.training.evaluation import Score

TEST = [sample.path for sample in read_samples()[::4]]


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quality") / "model.onnx"
    write_onnx(lively_network(), path)
    return path


def test_the_figures() -> None:
    quality = Quality(Score(950, 1000), Score(944, 1000), 99.1, "somewhere")
    assert quality.loss == pytest.approx(0.6)
    quality.check("int8", 0.6)
    with pytest.raises(InputError, match=r"int8 loses 0\.60 points of top-1 on 1,000 images, allowed are 0\.5"):
        quality.check("int8")
    Quality(Score(1, 10), Score(10, 10), 10, "won").check("int8", 0)


def test_measuring_counts_right_answers_and_equal_ones(float32: Path) -> None:
    classifier = Classifier(float32, "cpu")
    classes = classifier.logits(TEST).argmax(axis=1)
    targets = np.where(np.arange(len(TEST)) < 10, (classes + 1) % 10, classes)
    quality = measure(classifier, classifier, Labelled(TEST, targets, "here"))
    assert quality == Quality(Score(40, 50), Score(40, 50), 100.0, "here")


def test_times_are_told_for_the_batches_a_graph_takes(
    float32: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdzoo.export.quality.ROUNDS", 1)
    quantize(float32, tmp_path / "half.onnx", "fp16")
    ratios = times(float32, tmp_path / "half.onnx", TEST[:2])
    assert list(ratios) == list(BATCHES) and all(ratio > 0 for ratio in ratios.values())
    write_onnx(lively_network(), tmp_path / "fixed.onnx", batch=2)
    assert list(times(tmp_path / "fixed.onnx", tmp_path / "fixed.onnx", TEST[:1])) == [2]


def test_which_images(float32: Path, fashion_mnist_root: Path, tmp_path: Path) -> None:
    metadata = Classifier(float32, "cpu").metadata
    assert images_to_calibrate(metadata, None) == [sample.path for sample in read_samples(CALIBRATION)]
    assert images_to_calibrate(metadata, FASHION_MNIST) == [sample.path for sample in read_samples()]
    shipped = images_to_measure(metadata, None, None)
    assert len(shipped.pictures) == len(shipped.targets) == 200 and "sample" in shipped.origin
    split = images_to_measure(metadata, None, fashion_mnist_root)
    assert "whole test set" in split.origin
    by_pixels = {np.asarray(Image.open(path)).tobytes(): t for path, t in zip(*unpacked(shipped), strict=True)}
    assert len(by_pixels) == 200
    for picture, target in zip(*unpacked(split), strict=True):
        assert by_pixels[picture[:, :, 0].tobytes()] == target


def unpacked(images: Labelled) -> tuple[Any, Any]:
    return images.pictures, images.targets


def test_images_of_other_classes_are_refused(tmp_path: Path) -> None:
    write_onnx(network(cfg=CIFAR), tmp_path / "cifar.onnx")
    write_onnx(network(num_classes=3), tmp_path / "other.onnx")
    cifar, other = (Classifier(tmp_path / f"{name}.onnx", "cpu").metadata for name in ("cifar", "other"))
    with pytest.raises(InputError, match="--calibration"):
        images_to_calibrate(cifar, None)
    with pytest.raises(InputError, match="--images or --data-dir"):
        images_to_measure(cifar, None, None)
    with pytest.raises(InputError, match="not named after the labels"):
        images_to_measure(cifar, FASHION_MNIST, None)
    with pytest.raises(InputError, match="no data set"):
        images_to_measure(other, None, tmp_path)
    assert len(images_to_calibrate(cifar, FASHION_MNIST)) == 200
