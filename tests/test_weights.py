"""Shipped weights: what their results say is what anyone measures again."""

import hashlib
import json
from pathlib import Path

import pytest
import timm
import torch
from commandline import sdzoo
from torch.utils.data import Subset

from sdzoo import survival_probabilities, weights
from sdzoo.checkpoints import load_model
from sdzoo.export import write_onnx
from sdzoo.models.digest import digest
from sdzoo.training.evaluation import evaluate, folder, labels_of, onnx_network, split
from sdzoo.training.launch import find_recipe
from sdzoo.weights import FOLDER

SHIPPED = sorted(FOLDER.glob("*.safetensors"))
NAMES = [file.stem for file in SHIPPED]
# The validation top-1 in percent that they have at least.
CIFAR10 = {
    "sd_resnet20.cifar10": 91,
    "sd_resnet56.cifar10": 89,
    "sd_resnet110.cifar10": 90,
}


def results_of(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def test_weights_ship_and_timm_lists_them() -> None:
    assert {*CIFAR10, "sd_resnet20.fashion_mnist"} <= set(NAMES)
    assert set(NAMES) == set(timm.list_pretrained("sd_*"))


@pytest.mark.parametrize("name", NAMES)
def test_results_belong_to_the_weights(name: str) -> None:
    results = results_of(name)
    model = load_model(name)
    assert f"{results['model']}.{results['tag']}" == name
    assert hashlib.sha256((FOLDER / f"{name}.safetensors").read_bytes()).hexdigest() == results["sha256"]
    assert digest(model.state_dict()) == results["digest"]
    assert model.survival == survival_probabilities(len(model.survival), results["survival"]["p_L"])
    assert find_recipe(results["recipe"]).values()["model"] == results["model"]
    assert len(results["commit"]) == 40
    assert {"seed", "epochs", "training_hours", "hardware", "precision", "validation_top1"} <= set(results)


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_loads_and_adapts_as_in_timm(name: str) -> None:
    plain = timm.create_model(name, pretrained=True).eval()
    other = timm.create_model(name, pretrained=True, num_classes=5, in_chans=1).eval()
    assert other.fc.weight.shape == (5, 64)
    # timm adapts to grey images by summing over the channels, so that grey input gives the same features
    grey = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(other.forward_features(grey), plain.forward_features(grey.expand(2, 3, 28, 28)))


def test_tags_know_their_repository_where_a_namespace_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sd_resnet20.cifar10.safetensors").touch()
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    file = str(tmp_path / "sd_resnet20.cifar10.safetensors")
    assert weights.weight_sources("sd_resnet20", "cifar10") == {"file": file}
    monkeypatch.setattr(weights, "NAMESPACE", "somebody")
    assert weights.weight_sources("sd_resnet20", "cifar10") == {
        "file": file,
        "hf_hub_id": "somebody/sd_resnet20.cifar10",
        "hf_hub_filename": "model.safetensors",
    }
    assert weights.weight_sources("sd_resnet20", "imagenet") == {}


def test_fashion_mnist_weights_reach_the_accuracy_they_promise() -> None:
    assert results_of("sd_resnet20.fashion_mnist")["test"]["top1"] >= 92
    assert results_of("sd_resnet20.fashion_mnist")["test"]["n"] == 10_000


@pytest.mark.parametrize("name", CIFAR10)
def test_cifar10_weights_are_the_default_and_learnt_their_classes(name: str) -> None:
    model, _, tag = name.partition(".")
    assert timm.models.get_pretrained_cfg(model).tag == tag
    results = results_of(name)
    assert results["validation_top1"] >= CIFAR10[name]
    assert (results["test"]["n"], results["test_compressed"]["n"]) == (1_000, 10_000)
    # Compression costs, and 95 % intervals of errors of 9 % on 1,000 images reach some two points to each side.
    assert results["test_estimate"]["error"] < results["test_compressed"]["error"]
    assert abs(results["test_estimate"]["error"] - results["test"]["error"]) < 2


@pytest.mark.parametrize("name", CIFAR10)
def test_cifar10_errors_are_what_pytorch_and_onnxruntime_measure_again(
    name: str, cifar10_test_images: dict[str, Path], tmp_path: Path
) -> None:
    model = load_model(name)
    write_onnx(model, tmp_path / "model.onnx")
    images = folder(cifar10_test_images["test"], model)
    ours, theirs = (
        evaluate(network, images) for network in (model, onnx_network(tmp_path / "model.onnx", labels_of(model)))
    )
    assert ours == theirs
    assert (ours.top1, ours.n) == (pytest.approx(results_of(name)["test"]["top1"], abs=0.15), 1_000)


@pytest.mark.slow
@pytest.mark.parametrize("name", CIFAR10)
def test_cifar10_errors_on_compressed_images_too(name: str, cifar10_test_images: dict[str, Path]) -> None:
    model, expected = load_model(name), results_of(name)
    images, exact = (folder(cifar10_test_images[tree], model) for tree in ("test_compressed", "test"))
    score = evaluate(model, images)
    assert (score.top1, score.n) == (pytest.approx(expected["test_compressed"]["top1"], abs=0.1), 10_000)
    part = {file.stem for file in exact.files}
    same = evaluate(model, Subset(images, [i for i, file in enumerate(images.files) if file.stem in part]))
    estimate = expected["test_estimate"]
    assert (same.error, same.n) == (pytest.approx(estimate["error_of_the_part_compressed"], abs=0.15), 1_000)
    joined = expected["test_compressed"]["error"] - estimate["error_of_the_part_compressed"] + expected["test"]["error"]
    assert estimate["error"] == pytest.approx(joined, abs=0.015)


@pytest.mark.slow
def test_test_accuracy_is_what_pytorch_and_onnxruntime_measure_again(fashion_mnist_files: Path, tmp_path: Path) -> None:
    name = "sd_resnet20.fashion_mnist"
    model = load_model(name)
    images = split("test", fashion_mnist_files, model)
    sdzoo("export", "--model", name, "--output", tmp_path / "model.onnx")
    expected = results_of(name)["test"]
    for network in (model, onnx_network(tmp_path / "model.onnx", labels_of(model))):
        score = evaluate(network, images)
        # Another processor may round one image in a thousand across a tie.
        assert abs(score.top1 - expected["top1"]) <= 0.1
        assert score.n == expected["n"]
