"""An ONNX file beside its network: the figures of a comparison, and what does not pass."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from networks import FASHION, network

from sdzoo import SdResNet
from sdzoo.errors import InputError
from sdzoo.export import write_onnx
from sdzoo.export.verify import TOLERANCE, Comparison, check_weights, compare
from sdzoo.metadata import Metadata
from sdzoo.runtime import Classifier
from sdzoo.samples import read_samples

FEW = read_samples()[::10]


def fashion_network(**kwargs: object) -> SdResNet:
    return network(cfg=FASHION, **kwargs)


@pytest.mark.parametrize("kwargs", [{}, {"input": "uint8"}, {"size": (33, 30), "softmax": True}])
def test_a_graph_is_compared_on_the_same_pixels(kwargs: dict[str, object], tmp_path: Path) -> None:
    model = fashion_network()
    write_onnx(model, tmp_path / "model.onnx", **kwargs)
    comparison = compare(Classifier(tmp_path / "model.onnx", "cpu"), model, FEW)
    assert comparison.onnx.shape == comparison.torch.shape == (20, 10)
    assert comparison.share < TOLERANCE
    comparison.check()


def test_a_wrong_schedule_is_beyond_the_tolerance(tmp_path: Path) -> None:
    """The smallest mistake worth finding: one block's probability taken from its neighbour."""
    model = fashion_network()
    write_onnx(model, tmp_path / "model.onnx")
    first, second, *rest = model.survival
    model.set_survival((second, first, *rest))
    comparison = compare(Classifier(tmp_path / "model.onnx", "cpu"), model, FEW)
    with pytest.raises(InputError, match=r"differ by .* allowed are 2e-05"):
        comparison.check()


def test_the_figures_of_a_comparison() -> None:
    torch_ = np.array([[1, 0], [0, 4], [2, 0], [3, 0]], dtype=np.float32)
    onnx = np.array([[1, 0], [0, 4], [0, 2], [3, 0.5]], dtype=np.float32)
    comparison = Comparison(onnx, torch_, np.array([0, 1, 1, 1]))
    assert comparison.difference == 2
    assert comparison.share == 0.5
    assert comparison.agreement == 0.75
    assert comparison.accuracy(onnx) == 0.75
    assert comparison.accuracy(torch_) == 0.5
    assert Comparison(onnx, torch_, None).accuracy(onnx) is None
    assert Comparison(onnx, np.zeros_like(onnx), None).share == 4
    assert Comparison(np.zeros_like(onnx), np.zeros_like(onnx), None).share == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_never_pass(value: float) -> None:
    logits = np.array([[1, value]], dtype=np.float32)
    with np.errstate(invalid="ignore"), pytest.raises(InputError):
        Comparison(logits, logits, None).check()


def test_accuracy_needs_folders_named_after_the_labels(tmp_path: Path) -> None:
    write_onnx(fashion_network(), tmp_path / "fashion.onnx")
    comparison = compare(Classifier(tmp_path / "fashion.onnx", "cpu"), fashion_network(), FEW)
    assert comparison.targets is not None
    write_onnx(network(), tmp_path / "cifar.onnx")
    assert compare(Classifier(tmp_path / "cifar.onnx", "cpu"), network(), FEW).targets is None


@pytest.mark.parametrize("change", [{"seed": 1}, {"p_L": 0.6}])
def test_other_weights_or_another_schedule_are_not_the_file_s(change: dict[str, float], tmp_path: Path) -> None:
    write_onnx(network(), tmp_path / "model.onnx")
    metadata = Classifier(tmp_path / "model.onnx", "cpu").metadata
    check_weights("model.onnx", metadata, network())
    with pytest.raises(InputError, match=r"model\.onnx: written from weights with digest [0-9a-f]{64}"):
        check_weights("model.onnx", metadata, network(**change))


@pytest.mark.parametrize(
    ("field", "value"), [("labels", tuple("jihgfedcba")), ("mean", (0.1, 0.2, 0.3)), ("std", (1.0,) * 3), ("p_L", 0.4)]
)
def test_metadata_that_are_not_the_network_s(field: str, value: object) -> None:
    metadata = replace(Metadata.of(network()), version="0.0.0", tag="other")
    check_weights("model.onnx", metadata, network())
    with pytest.raises(InputError, match=rf"model\.onnx: its metadata has {field} "):
        check_weights("model.onnx", replace(metadata, **{field: value}), network())
