"""Shipped weights: what their results say is what anyone measures again."""

import hashlib
import json
from pathlib import Path

import pytest
import timm
import torch
from commandline import sdzoo

from sdzoo import survival_probabilities
from sdzoo.checkpoints import load_model
from sdzoo.models.digest import digest
from sdzoo.training.evaluation import evaluate, labels_of, onnx_network, split
from sdzoo.training.launch import find_recipe
from sdzoo.weights import FOLDER

SHIPPED = sorted(FOLDER.glob("*.safetensors"))
NAMES = [file.stem for file in SHIPPED]


def results_of(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def test_weights_ship_and_timm_lists_them() -> None:
    assert "sd_resnet20.fashion_mnist" in NAMES
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
    assert {"seed", "epochs", "training_hours", "hardware", "validation_top1"} <= set(results)


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_loads_and_adapts_as_in_timm(name: str) -> None:
    plain = timm.create_model(name, pretrained=True).eval()
    other = timm.create_model(name, pretrained=True, num_classes=5, in_chans=1).eval()
    assert other.fc.weight.shape == (5, 64)
    # timm adapts to grey images by summing over the channels, so that grey input gives the same features
    grey = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(other.forward_features(grey), plain.forward_features(grey.expand(2, 3, 28, 28)))


def test_fashion_mnist_weights_reach_the_accuracy_they_promise() -> None:
    assert results_of("sd_resnet20.fashion_mnist")["test"]["top1"] >= 92
    assert results_of("sd_resnet20.fashion_mnist")["test"]["n"] == 10_000


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
