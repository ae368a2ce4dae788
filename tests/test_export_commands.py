"""The walk of a user: export, verify, classify, and what each says of bad input."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
from commandline import Run
from disk import file_size_limit, unwritable
from networks import network
from PIL import Image

from sdzoo.checkpoints import load_model
from sdzoo.export import write_onnx
from sdzoo.export.commands import OTHER_LABELS
from sdzoo.export.graph import build
from sdzoo.export.verify import compare
from sdzoo.runtime import Classifier
from sdzoo.samples import FASHION_MNIST, folder_name, read_samples

FEW = read_samples()[::10]
BAG = FASHION_MNIST / "bag" / "00018.png"
EXPORT = ("export", "--model", "sd_resnet20")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "trained.safetensors"
    safetensors.torch.save_file(network(p_L=0.8).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def exported(weights: Path) -> Path:
    path = weights.with_name("exported.onnx")
    write_onnx(load_model("sd_resnet20", checkpoint=weights), path)
    return path


# --- export


def test_export_verifies_and_says_where_the_file_is(run: Run, weights: Path, tmp_path: Path) -> None:
    printed = run(*EXPORT, "--checkpoint", weights)
    assert "p_L = 0.8" in printed
    assert "200 images" in printed
    assert OTHER_LABELS in printed and "accuracy of" not in printed
    assert f"written: {tmp_path / 'sd_resnet20.onnx'}" in printed
    assert list(tmp_path.iterdir()) == [tmp_path / "sd_resnet20.onnx"]
    comparison = compare(Classifier("sd_resnet20.onnx", "cpu"), network(p_L=0.8), FEW)
    comparison.check()


def test_export_verifies_on_images_of_the_user(run: Run, tmp_path: Path) -> None:
    named = ("--model", "sd_resnet20.fashion_mnist")
    (tmp_path / "photos" / "bag").mkdir(parents=True)
    shutil.copy(BAG, tmp_path / "photos" / "bag" / "one.png")
    printed = run("export", *named, "--images", "photos")
    assert "1 images" in printed
    assert printed.count("100.0%") == 3  # same class, and both right
    assert "no images" in run("export", *named, "--images", tmp_path / "photos" / "bag", fails=True)
    assert "leave --no-verify out" in run("export", *named, "--images", "photos", "--no-verify", fails=True)


def test_export_hands_every_option_on(run: Run, tmp_path: Path) -> None:
    options = ["--no-pretrained", "--drop-path", "0.2", "--size", "30", "34", "--input", "uint8", "--softmax"]
    options += ["--top", "2", "--batch", "4", "--opset", "21"]
    printed = run("export", "--model", "sd_resnet32", *options, "--no-verify", "--output", "net.onnx")
    assert "onnxruntime" not in printed
    classifier = Classifier(tmp_path / "net.onnx", "cpu")
    assert classifier.metadata.model == "sd_resnet32"
    assert classifier.metadata.p_L == pytest.approx(0.8)
    assert classifier.size == (30, 34)
    assert classifier.raw
    assert classifier.batch == 4
    outputs = [output.name for output in classifier.session.get_outputs()]
    assert outputs == ["logits", "probabilities", "top_probabilities", "top_classes"]
    assert onnx.load("net.onnx").opset_import[0].version == 21


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "sd_resnet21"], "sd_resnet20"),
        (["--checkpoint", "missing.pth"], "missing.pth"),
        (["--checkpoint", "WEIGHTS", "--drop-path", "0.5"], "p_L = 0.8"),
        (["--checkpoint", "WEIGHTS", "--model", "sd_resnet32"], "layer1.3"),
        (["--checkpoint", "WEIGHTS", "--size", "4", "32"], "4 x 32"),
        (["--checkpoint", "WEIGHTS", "--input", "int4"], "'int4'"),
        (["--no-pretrained", "--drop-path", "1.5"], "1.5"),
    ],
)
def test_export_refuses_and_leaves_the_old_file(
    arguments: list[str], message: str, run: Run, weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "old.onnx").write_bytes(b"old")
    given = [str(weights) if argument == "WEIGHTS" else argument for argument in arguments]
    assert message in run(*EXPORT, *given, "--output", "old.onnx", fails=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "old.onnx"]
    assert (tmp_path / "old.onnx").read_bytes() == b"old"


def test_export_onto_its_own_checkpoint(run: Run, weights: Path, tmp_path: Path) -> None:
    copy = shutil.copy(weights, tmp_path / "copy.safetensors")
    (tmp_path / "link").symlink_to(copy)
    for output in (copy, "link"):
        assert "is the file to read" in run(*EXPORT, "--checkpoint", copy, "--output", output, fails=True)
    assert copy.read_bytes() == weights.read_bytes()


def test_export_into_a_folder_that_is_missing_or_locked(run: Run, weights: Path, tmp_path: Path) -> None:
    assert "no folder" in run(*EXPORT, "--checkpoint", weights, "--output", "missing/net.onnx", fails=True)
    locked = unwritable(tmp_path) / "net.onnx"
    assert "cannot write" in run(*EXPORT, "--checkpoint", weights, "--output", locked, fails=True)


def test_export_onto_a_full_disk(run: Run, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "old.onnx").write_bytes(b"old")
    with file_size_limit(500_000):
        assert "File too large" in run(*EXPORT, "--checkpoint", weights, "--output", "old.onnx", fails=True)
    assert list(tmp_path.iterdir()) == [tmp_path / "old.onnx"]


def test_export_of_a_file_that_fails_verification(
    run: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdzoo.export.verify.TOLERANCE", 1e-12)
    (tmp_path / "old.onnx").write_bytes(b"old")
    assert "allowed are 1e-12" in run(*EXPORT, "--checkpoint", weights, "--output", "old.onnx", fails=True)
    assert (tmp_path / "old.onnx").read_bytes() == b"old"


def test_export_without_onnxruntime(run: Run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "sdzoo[cpu]" in run(*EXPORT, "--checkpoint", weights, fails=True)
    assert not list(tmp_path.iterdir())
    run(*EXPORT, "--checkpoint", weights, "--no-verify")
    assert list(tmp_path.iterdir()) == [tmp_path / "sd_resnet20.onnx"]


# --- verify


def test_verify_prints_what_it_found(run: Run, exported: Path, weights: Path) -> None:
    printed = run("verify", exported, "--checkpoint", weights)
    for row in ("200 images", "largest difference of two logits", "same top-1 class", "accuracy unknown"):
        assert row in printed
    assert "100.0%" in printed


def test_verify_on_images_of_the_user(run: Run, exported: Path, weights: Path, tmp_path: Path) -> None:
    labels = Classifier(exported, "cpu").metadata.labels
    for label in labels[:3]:
        folder = tmp_path / "photos" / folder_name(label)
        folder.mkdir(parents=True)
        Image.open(BAG).resize((50, 70)).save(folder / "one.jpg")
    printed = run("verify", exported, "--checkpoint", weights, "--images", "photos")
    assert "3 images" in printed and "accuracy of onnxruntime" in printed and "accuracy of PyTorch" in printed
    # Three equal images under three labels: at most one of them can be right.
    assert "33.3%" in printed or "0.0%" in printed


def test_verify_of_another_checkpoint_s_file(run: Run, exported: Path, tmp_path: Path) -> None:
    safetensors.torch.save_file(network(p_L=0.8, seed=1).state_dict(), tmp_path / "other.safetensors")
    assert "digest" in run("verify", exported, "--checkpoint", "other.safetensors", fails=True)


def test_verify_of_a_file_from_a_checkpoint_asks_for_it(run: Run, exported: Path) -> None:
    assert "--checkpoint" in run("verify", exported, fails=True)


def test_verify_finds_a_changed_weight(run: Run, exported: Path, weights: Path, tmp_path: Path) -> None:
    """The digest in the metadata is of the weights before folding; only the logits show a damaged graph."""
    proto = onnx.load(exported)
    (weight,) = [tensor for tensor in proto.graph.initializer if tensor.name == "layer2.1.conv2.weight"]
    weight.raw_data = weight.raw_data[:-4] + np.float32(1).tobytes()
    onnx.save(proto, tmp_path / "damaged.onnx")
    assert "differ by" in run("verify", "damaged.onnx", "--checkpoint", weights, fails=True)


def test_verify_of_a_file_whose_labels_a_tag_named(run: Run, weights: Path) -> None:
    named = "--model", "sd_resnet20.fashion_mnist", "--checkpoint", weights
    run("export", *named, "--no-verify", "--output", "net.onnx")
    run("verify", "net.onnx", *named)


def test_verify_finds_changed_labels(run: Run, exported: Path, weights: Path) -> None:
    proto = onnx.load(exported)
    (labels,) = [entry for entry in proto.metadata_props if entry.key == "labels"]
    labels.value = json.dumps(json.loads(labels.value)[::-1])
    onnx.save(proto, "changed.onnx")
    assert "its metadata has labels" in run("verify", "changed.onnx", "--checkpoint", weights, fails=True)


def test_verify_without_images(run: Run, exported: Path, weights: Path, tmp_path: Path) -> None:
    assert "no images" in run("verify", exported, "--checkpoint", weights, "--images", tmp_path, fails=True)


@pytest.mark.parametrize("command", ["verify", "classify"])
def test_a_file_that_is_not_ours(command: str, run: Run, tmp_path: Path) -> None:
    images = [BAG] if command == "classify" else []
    for content in (None, b"", b"text"):
        if content is not None:
            (tmp_path / "foreign.onnx").write_bytes(content)
        assert "foreign.onnx" in run(command, "foreign.onnx", *images, fails=True)
    foreign = build(network())
    foreign.producer_name = "pytorch"
    (tmp_path / "foreign.onnx").write_bytes(foreign.SerializeToString())
    assert "not an ONNX file written by sdzoo" in run(command, "foreign.onnx", *images, fails=True)


# --- classify


def test_classify_prints_a_table(run: Run, exported: Path, tmp_path: Path) -> None:
    Image.open(BAG).resize((64, 48)).save(tmp_path / "photo.jpg")
    printed = run("classify", exported, "photo.jpg", "--top", "2")
    classifier = Classifier(exported, "cpu")
    (prediction,) = classifier(["photo.jpg"])
    for label in list(prediction.probabilities)[:2]:
        assert label in printed
    assert f"{prediction.probability:.1%}" in printed
    assert "resized from 64 x 48" in " ".join(printed.split())
    H, W = classifier.size
    assert f"{W} x {H} pixels" in printed


def test_classify_prints_json(run: Run, exported: Path, tmp_path: Path) -> None:
    H, W = Classifier(exported, "cpu").size
    Image.open(BAG).resize((W, H)).save(tmp_path / "fits.png")
    Image.open(BAG).resize((64, 48)).save(tmp_path / "large.png")
    records = json.loads(run("classify", exported, "large.png", "fits.png", "--json"))
    assert [record["file"] for record in records] == ["large.png", "fits.png"]
    assert [record["resized_from"] for record in records] == [[64, 48], None]
    for record in records:
        assert record["label"] == max(record["probabilities"], key=record["probabilities"].get)
        assert sum(record["probabilities"].values()) == pytest.approx(1)


@pytest.mark.parametrize("name", ["LICENSE", "missing.png"])
def test_classify_names_what_is_not_an_image(name: str, run: Run, exported: Path, tmp_path: Path) -> None:
    shutil.copy(FASHION_MNIST / "LICENSE", tmp_path / "LICENSE")
    assert name in run("classify", exported, BAG, name, fails=True)


def test_classify_never_changes_the_device(run: Run, exported: Path) -> None:
    assert "'npu'" in run("classify", exported, BAG, "--device", "npu", fails=True)
