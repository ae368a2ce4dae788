"""Folding: the folded network is the network, in float32 rounded once."""

import numpy as np
import pytest
import reference
import torch
from networks import images, network
from numpy.typing import NDArray

from sdzoo.errors import InputError
from sdzoo.export import fold
from sdzoo.export.fold import Conv, FoldedNet

# Weights are rounded to float32 once, 2**-24 = 6e-8 relative; the rest of both sides is float64.
ROUNDED_ONCE = 1e-6


def folded_logits(net: FoldedNet, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Run a folded network with the arithmetic of the reference."""

    def apply(conv: Conv, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return reference.convolve(x, conv.weight, conv.stride) + conv.bias[:, None, None]

    x = reference.relu(apply(net.stem, x))
    for block in net.blocks:
        f = apply(block.conv2, reference.relu(apply(block.conv1, x)))
        x = reference.relu(f + reference.shortcut(x, f.shape[1], block.conv1.stride))
    return x.mean(axis=(2, 3)) @ net.head.weight.T + net.head.bias


@pytest.mark.parametrize("p_L", [1.0, 0.5, 0.2])
def test_the_folded_network_computes_the_paper_s_test_rule(p_L: float) -> None:
    model = network("sd_resnet32", p_L)
    x = images(2, 20, 20)
    expected = reference.logits(model.state_dict(), x)
    error = np.abs(folded_logits(fold(model), x) - expected).max() / np.abs(expected).max()
    assert error < ROUNDED_ONCE


def test_the_reference_and_the_network_agree() -> None:
    model = network("sd_resnet32", 0.5).double()
    x = images(2, 21, 20)
    with torch.inference_mode():
        ours = model(torch.from_numpy(x).double()).numpy()
    expected = reference.logits(model.state_dict(), x)
    # The network keeps p_l as float32: 6e-8 relative.
    assert np.abs(ours - expected).max() < 1e-6 * np.abs(expected).max()


def test_weights_are_float64_rounded_once() -> None:
    model = network()
    block, p_l = model.layer2[1], np.longdouble(model.survival[4])
    W, gamma, var = (
        tensor.detach().numpy().astype(np.longdouble)
        for tensor in (block.conv2.weight, block.bn2.weight, block.bn2.running_var)
    )
    exact = (p_l * gamma / np.sqrt(var + np.longdouble(1e-5)))[:, None, None, None] * W
    weight = fold(model).blocks[4].conv2.weight
    assert weight.dtype == np.float32
    # Half a unit in the last place, and what float64 (2**-53 against 2**-24) may add to it.
    assert (np.abs(weight - exact) <= 0.5001 * np.spacing(np.abs(weight))).all()


def test_survival_probabilities_stay_float64_in_a_bfloat16_network() -> None:
    model = network("sd_resnet110")
    torch.nn.init.ones_(model.layer1[0].conv2.weight)
    torch.nn.init.ones_(model.layer1[0].bn2.weight)
    torch.nn.init.ones_(model.layer1[0].bn2.running_var)
    weight = fold(model.bfloat16()).blocks[0].conv2.weight
    p_1 = 1 - 0.5 / 54  # 0.9907; bfloat16 has 0.9922
    assert np.unique(weight) == pytest.approx(p_1 / np.sqrt(1 + 1e-5), rel=1e-7)


def test_input_divisor_goes_into_the_first_convolution() -> None:
    model = network()
    x = images(2, 16, 16).astype(np.float64)
    divisor = [2.0, 3.0, 5.0]
    plain = folded_logits(fold(model), x)
    divided = folded_logits(fold(model, input_divisor=divisor), x * np.array(divisor)[:, None, None])
    assert np.abs(plain - divided).max() < ROUNDED_ONCE * np.abs(plain).max()


def test_folding_leaves_the_network_alone_and_does_not_depend_on_its_mode() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluated, trained = fold(model), fold(model.train())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert evaluated.blocks and all(
        (a.conv2.weight == b.conv2.weight).all() for a, b in zip(evaluated.blocks, trained.blocks, strict=True)
    )


def test_names_and_geometry() -> None:
    net = fold(network("sd_resnet20"))
    assert [block.name for block in net.blocks] == [f"layer{s}.{i}" for s in (1, 2, 3) for i in range(3)]
    assert [block.name for block in net.blocks if block.halves] == ["layer2.0", "layer3.0"]
    assert [block.new_channels for block in net.blocks] == [0, 0, 0, 16, 0, 0, 32, 0, 0]
    assert net.blocks[3].conv1.name == "layer2.0.conv1"


@pytest.mark.parametrize("kwargs", [{"num_classes": 0}, {"global_pool": "max"}])
def test_a_network_that_the_graph_cannot_hold_is_refused(kwargs: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"classifier|global_pool"):
        fold(network(**kwargs))


def test_a_pruned_network_is_refused() -> None:
    model = network()
    model.prune_intermediate_layers(1)
    with pytest.raises(InputError, match="classifier"):
        fold(model)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [("layer1.0.conv1.weight", float("nan")), ("layer3.1.bn2.running_var", -1.0), ("fc.bias", float("inf"))],
)
def test_weights_that_are_not_finite_are_refused_by_name(parameter: str, value: float) -> None:
    model = network()
    model.state_dict()[parameter].view(-1)[0] = value
    with pytest.raises(InputError, match=parameter.split(".bn")[0]):
        fold(model)
