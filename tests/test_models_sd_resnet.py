"""The networks: what is computed in training, by whichever way it is run, and bad arguments."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from networks import NAMES, blocks_of, noise
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from sdzoo import SdResNet, survival_probabilities

DDP_WORKER = Path(__file__).parent / "ddp_worker.py"


def test_zoo_has_the_seven_names() -> None:
    assert set(timm.list_models("sd_*")) == set(NAMES)
    assert len(NAMES) == 7


@pytest.mark.parametrize("name", NAMES)
def test_every_network_creates_trains_a_step_and_evaluates_finite(name: str) -> None:
    model = timm.create_model(name, num_classes=10)
    depth = int(name.removeprefix("sd_resnet"))
    n = (depth - 2) // 6
    assert model.survival == survival_probabilities(3 * n, 0.5)
    widths = [16] * n + [32] * n + [64] * n
    before = [16, *widths[:-1]]
    expected = (
        3 * 9 * 16 + 2 * 16 + 64 * 10 + 10 + sum(9 * w * (b + w) + 4 * w for b, w in zip(before, widths, strict=True))
    )
    assert sum(p.numel() for p in model.parameters()) == expected
    x = noise(2)
    model.train()(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert model.eval()(x).isfinite().all()


def test_closed_blocks_are_not_called_and_open_ones_once() -> None:
    model = timm.create_model("sd_resnet56", drop_path_rate=0.5).train()
    calls: list[int] = []
    for index, block in enumerate(blocks_of(model)):
        block.register_forward_hook(lambda *_, index=index: calls.append(index))
        block.conv1.register_forward_hook(lambda *_, index=index: calls.append(index))
    for step in range(4):
        calls.clear()
        model(noise())
        is_open = [index for index, gate in enumerate(model.gates.at(step)) if gate]
        assert 0 < len(is_open) < 27
        assert sorted(calls) == sorted(2 * is_open)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_closed_blocks_get_zero_gradients_and_keep_their_statistics(checkpointing: bool) -> None:
    model = timm.create_model("sd_resnet32", drop_path_rate=0.8).train()
    model.set_grad_checkpointing(checkpointing)
    model(noise()).square().mean().backward()
    gates = model.gates.at(0)
    assert True in gates
    assert False in gates
    for block, is_open in zip(blocks_of(model), gates, strict=True):
        assert all(p.grad.any() == is_open for p in (block.conv1.weight, block.conv2.weight))
        assert block.bn1.num_batches_tracked == block.bn2.num_batches_tracked == is_open


def test_weight_decay_and_momentum_act_on_closed_blocks() -> None:
    model = timm.create_model("sd_resnet20", survival=[1.0] * 8 + [1e-12]).train()
    weight = model.layer3[2].conv1.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    expected, velocity = weight.detach().clone(), torch.zeros_like(weight)
    for _ in range(3):
        optimizer.zero_grad()
        model(noise()).mean().backward()
        optimizer.step()
        velocity = 0.9 * velocity + 0.01 * expected
        expected = expected - 0.1 * velocity
    torch.testing.assert_close(weight.detach(), expected)


def test_training_output_is_that_of_the_open_blocks_alone() -> None:
    """The paper's training rule from functional calls: a closed block is its shortcut, no scaling anywhere."""
    model = timm.create_model("sd_resnet44", drop_path_rate=0.7).double().train()
    x = noise().double()

    def norm(bn: nn.BatchNorm2d, y: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(y, None, None, bn.weight, bn.bias, training=True, eps=bn.eps)

    h = norm(model.bn1, F.conv2d(x, model.conv1.weight, padding=1)).relu()
    for block, is_open in zip(blocks_of(model), model.gates.at(0), strict=True):
        stride = block.conv1.stride[0]
        shortcut = h if stride == 1 else F.pad(F.avg_pool2d(h, 2), (0, 0, 0, 0, 0, h.shape[1]))
        f = torch.zeros_like(shortcut)
        if is_open:
            f = norm(block.bn1, F.conv2d(h, block.conv1.weight, stride=stride, padding=1)).relu()
            f = norm(block.bn2, F.conv2d(f, block.conv2.weight, padding=1))
        h = (f + shortcut).relu()
    expected = F.linear(h.mean((2, 3)), model.fc.weight, model.fc.bias)
    torch.testing.assert_close(model(x), expected)


def test_constant_depth_opens_everything() -> None:
    model = timm.create_model("sd_resnet20", drop_path_rate=0.0)
    assert model.survival == (1.0,) * 9
    assert all(all(model.gates.draw()) for _ in range(100))


def test_gradient_checkpointing_changes_nothing() -> None:
    plain = timm.create_model("sd_resnet20").train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    for _ in range(3):
        for model in (plain, saving):
            model.zero_grad()
            model(noise()).square().mean().backward()
        for ours, theirs in zip(saving.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours.grad, theirs.grad)
    for (name, ours), theirs in zip(saving.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_initialisation_is_the_authors() -> None:
    torch.manual_seed(0)
    model = timm.create_model("sd_resnet110")
    weights = torch.cat([m.weight.flatten() for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
    assert 0 <= weights.min() < 0.01
    assert 0.99 < weights.max() <= 1
    assert abs(weights.mean() - 0.5) < 5 * 12**-0.5 / len(weights) ** 0.5
    conv = model.layer3[5].conv2.weight
    assert abs(conv.std() / (2 / (64 * 9)) ** 0.5 - 1) < 5 / (2 * conv.numel()) ** 0.5
    assert model.fc.weight.abs().max() <= 64**-0.5
    assert model.fc.bias.abs().max() <= 64**-0.5


def test_untrained_1202_layers_evaluate_finite() -> None:
    torch.manual_seed(0)
    model = timm.create_model("sd_resnet1202").eval()
    with torch.inference_mode():
        assert model(noise(1, 8)).isfinite().all()


def test_plain_ddp_of_two_ranks_agrees_over_ten_steps(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ran = subprocess.run([*launcher, DDP_WORKER, tmp_path / "rank"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"rank.{rank}").read_text()) for rank in (0, 1))
    assert first == second
    assert first["step"] == 10
    assert any(False in gates for gates in first["gates"])


@pytest.mark.parametrize("depth", [20, 110, pytest.param(1202, marks=pytest.mark.slow)])
def test_compiled_evaluation_is_one_graph(depth: int) -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")
    model = timm.create_model(f"sd_resnet{depth}").eval()
    with torch.no_grad():
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        assert torch.equal(compiled(noise()), model(noise()))
    assert counter.frame_count == 1


def test_channels_last_stays_channels_last() -> None:
    model = timm.create_model("sd_resnet20").to(memory_format=torch.channels_last).train()
    x = noise(2, 32).contiguous(memory_format=torch.channels_last)
    assert model.forward_features(x).is_contiguous(memory_format=torch.channels_last)


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"depth": 21}, "depth is 21, must be 6n + 2"),
        ({"depth": 2}, "depth is 2, must be 6n + 2"),
        ({"num_classes": -1}, "num_classes is -1, must be at least 0"),
        ({"in_chans": 0}, "in_chans is 0, at least 1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0, must be in [0, 1)"),
        ({"drop_path_rate": -0.1}, "drop_path_rate is -0.1, must be in [0, 1)"),
        ({"drop_rate": 1.5}, "drop_rate is 1.5, must be in [0, 1)"),
        ({"survival": [0.5] * 8}, "8 probabilities, must have 9"),
        ({"survival": "cosine"}, "'cosine', must be one of linear, uniform"),
        ({"survival": [0.5] * 9, "drop_path_rate": 0.2}, "survival ends with p_L = 0.5"),
        ({"sampling": "sobol"}, "'sobol', must be one of bernoulli, systematic"),
        ({"gate_seed": -1}, "gate_seed is -1"),
    ],
)
def test_errors_name_value_and_range(arguments: dict, said: str) -> None:
    with pytest.raises(ValueError) as error:
        SdResNet(**{"depth": 20, **arguments})
    assert said in str(error.value)


def test_unknown_argument_is_an_error() -> None:
    with pytest.raises(TypeError, match="drop_block_rate"):
        timm.create_model("sd_resnet20", drop_block_rate=0.1)
