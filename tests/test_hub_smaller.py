"""Quantised files in a repository: verified before they are published, and told in card and results."""

import json
from pathlib import Path

import pytest
from commandline import sdzoo
from local_hub import LocalHub
from published import REPOSITORY, contents

from sdzoo.errors import InputError
from sdzoo.hub.folder import find_source, load, write_folder
from sdzoo.hub.pull import pull
from sdzoo.hub.smaller import Order
from sdzoo.models.digest import digest
from sdzoo.runtime import Classifier

# Random weights answer nearly at random, but for every picture the same: their int8 file loses nothing.
SMALLER = {"onnx/model_int8.onnx": "int8", "onnx/model_fp16.onnx": "fp16"}


def write(folder: Path, run: Path, *kinds: str, calibration: Path | None = None) -> Path:
    folder.mkdir()
    source = find_source(str(run))
    write_folder(folder, REPOSITORY, source, load(source), None, Order(kinds, calibration))
    return folder


def test_files_results_and_card_of_what_was_asked_for(published: Path, run_folder: Path, tmp_path: Path) -> None:
    files = contents(write(tmp_path / "folder", run_folder, "int8", "fp16", "int8"))
    assert files.keys() - contents(published).keys() == {*SMALLER, "results/onnx.json"}
    number = digest(load(find_source(str(run_folder))).state_dict())
    for name, kind in SMALLER.items():
        metadata = Classifier(tmp_path / "folder" / name, "cpu").metadata
        assert (metadata.precision, metadata.digest) == (kind, number)
        assert f"`{name}` | {len(files[name]) / 1e6:.2f} |" in files["README.md"].decode()
        assert f"  {name}" in files["SHA256SUMS"].decode()
    noted = json.loads(files["results/onnx.json"])
    assert noted["model_int8.onnx"]["bytes"] == len(files["onnx/model_int8.onnx"])
    assert noted["model_int8.onnx"]["smaller"]["n"] == 200
    assert str(tmp_path) not in files["README.md"].decode() + files["results/onnx.json"].decode()


def test_nothing_changes_where_none_is_asked_for(published: Path, run_folder: Path, tmp_path: Path) -> None:
    assert contents(write(tmp_path / "folder", run_folder)) == contents(published)


def test_a_file_that_loses_too_much_is_not_published(
    hub: LocalHub, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdzoo.hub.smaller.MAX_LOSS", -101)
    with pytest.raises(InputError, match="fp16 loses"):
        write(tmp_path / "folder", run_folder, "fp16")
    sdzoo("push", run_folder, "--repo", REPOSITORY, "--quantize", "fp16", expect=1)
    assert REPOSITORY not in hub.repositories


def test_an_unknown_kind_or_no_images(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'int4'"):
        write(tmp_path / "int4", run_folder, "int4")
    with pytest.raises(InputError, match="no such folder"):
        write(tmp_path / "int8", run_folder, "int8", calibration=tmp_path / "missing")


def test_push_and_pull(hub: LocalHub, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for done in ("published", "nothing changed"):
        sdzoo("push", run_folder, "--repo", REPOSITORY, "--quantize", "int8", "--quantize", "fp16")
        assert done in capsys.readouterr().out
    pulled = pull(REPOSITORY, onnx=True)
    assert {*SMALLER, "onnx/model.onnx"} <= set(pulled.files)


def test_shipped_weights_are_measured_on_the_whole_test_set(
    fashion_mnist_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    given = ["--repo", REPOSITORY, "--quantize", "int8", "--data-dir", fashion_mnist_root, "--dry-run"]
    sdzoo("push", "sd_resnet20.fashion_mnist", *given, "--output", folder)
    assert "200 images, the whole test set of Fashion-MNIST" in capsys.readouterr().out
    quality = json.loads((folder / "results" / "onnx.json").read_text())["model_int8.onnx"]
    assert quality["smaller"]["correct"] > 180 and quality["agreement"] > 98
