"""The main job: the default model, its shipped weights, every command without an option."""

import shutil
from pathlib import Path

import pytest
import skimage
from commandline import sdzoo

from sdzoo.checkpoints import load_model
from sdzoo.export import write_onnx
from sdzoo.export.commands import OTHER_LABELS
from sdzoo.export.verify import compare
from sdzoo.runtime import Classifier
from sdzoo.samples import FASHION_MNIST, read_samples

CAT = Path(skimage.__file__).parent / "data" / "chelsea.png"  # a photograph of 451 x 300 pixels


def test_the_default_export_is_verified_found_by_its_tag_and_knows_a_cat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sdzoo("export")
    printed = capsys.readouterr().out
    assert f"written: {tmp_path / 'sd_resnet110.onnx'}" in printed
    assert OTHER_LABELS in printed and "accuracy of" not in printed
    sdzoo("verify", "sd_resnet110.onnx")
    assert "written from sd_resnet110.cifar10" in capsys.readouterr().out
    shutil.copy(CAT, "cat.png")
    sdzoo("classify", "sd_resnet110.onnx", "cat.png", "--top", 1)
    printed = capsys.readouterr().out
    assert "(resized from 451 x 300)" in printed
    assert "│ cat " in printed


def test_shipped_weights_are_right_on_the_shipped_images(tmp_path: Path) -> None:
    model = load_model("sd_resnet20.fashion_mnist")
    write_onnx(model, tmp_path / "model.onnx")
    comparison = compare(Classifier(tmp_path / "model.onnx", "cpu"), model, read_samples(FASHION_MNIST))
    # At least 92 % on the whole test split; 200 images may fall 2.5 standard errors (1.9 points each) short of that.
    accuracy = comparison.accuracy(comparison.onnx)
    assert accuracy is not None and accuracy > 0.87
    assert comparison.agreement > 0.99
