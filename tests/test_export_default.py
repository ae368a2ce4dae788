"""The main job: the default model, its shipped weights, every command without an option."""

from pathlib import Path

import pytest
from commandline import sdzoo

from sdzoo.checkpoints import load_model
from sdzoo.export.verify import compare
from sdzoo.runtime import Classifier
from sdzoo.samples import FASHION_MNIST, read_samples


def test_the_default_export_is_verified_found_by_its_tag_and_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sdzoo("export")
    assert f"written: {tmp_path / 'sd_resnet20.onnx'}" in capsys.readouterr().out
    sdzoo("verify", "sd_resnet20.onnx")
    assert "written from sd_resnet20.fashion_mnist" in capsys.readouterr().out
    sdzoo("classify", "sd_resnet20.onnx", FASHION_MNIST / "bag" / "00018.png")
    assert "Bag" in capsys.readouterr().out
    classifier = Classifier("sd_resnet20.onnx", "cpu")
    comparison = compare(classifier, load_model("sd_resnet20.fashion_mnist"), read_samples())
    # At least 92 % on the whole test split; 200 images may fall 2.5 standard errors (1.9 points each) short of that.
    accuracy = comparison.accuracy(comparison.onnx)
    assert accuracy is not None and accuracy > 0.87
    assert comparison.agreement > 0.99
