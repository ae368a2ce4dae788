"""The residual block against the paper's formula, written out with functional calls."""

import pytest
import torch
import torch.nn.functional as F

from sdzoo.models.blocks import ResidualBlock, ShortcutA, parameters_of


def formula(block: ResidualBlock, x: torch.Tensor, p_l: float) -> torch.Tensor:
    """ReLU(p_l f(x) + s(x)) with the statistics of the batch if p_l is 1 in training, else the running ones."""

    def norm(bn: torch.nn.BatchNorm2d, y: torch.Tensor) -> torch.Tensor:
        if block.training:
            mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)
        else:
            mean, var = bn.running_mean, bn.running_var
        y = (y - mean[:, None, None]) / torch.sqrt(var + bn.eps)[:, None, None]
        return y * bn.weight[:, None, None] + bn.bias[:, None, None]

    stride = block.conv1.stride[0]
    f = norm(block.bn1, F.conv2d(x, block.conv1.weight, stride=stride, padding=1)).relu()
    f = norm(block.bn2, F.conv2d(f, block.conv2.weight, padding=1))
    shortcut = x
    if stride == 2:
        shortcut = torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).mean(0)
        shortcut = torch.cat([shortcut, shortcut.new_zeros(len(x), f.shape[1] - x.shape[1], *shortcut.shape[2:])], 1)
    return (p_l * f + shortcut).relu()


def random_block(stride: int, p_l: float) -> ResidualBlock:
    torch.manual_seed(0)
    block = ResidualBlock(8, 8 * stride, stride, p_l).double()
    for bn in (block.bn1, block.bn2):
        bn.weight.data.uniform_(0.5, 1.5)
        bn.bias.data.normal_()
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 1.5)
    return block


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("p_l", [1.0, 0.75, 0.2])
def test_evaluation_is_the_papers_test_rule(stride: int, p_l: float) -> None:
    block = random_block(stride, p_l).eval()
    x = torch.rand(3, 8, 12, 12, dtype=torch.float64)
    p_l32 = torch.tensor(p_l, dtype=torch.float32).double().item()
    torch.testing.assert_close(block(x), formula(block, x, p_l32))


@pytest.mark.parametrize("stride", [1, 2])
def test_training_counts_an_open_branch_in_full(stride: int) -> None:
    block = random_block(stride, 0.2).train()
    x = torch.rand(3, 8, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(block(x), formula(block, x, 1.0))


def test_input_is_not_written_to() -> None:
    block = random_block(1, 0.5)
    x = torch.rand(3, 8, 12, 12, dtype=torch.float64)
    before = x.clone()
    block(x).sum().backward()
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", [8, 9, 15, 28, 33])
def test_shortcut_a_pads_and_pools_to_the_convolutions_size(size: int) -> None:
    x = torch.rand(2, 4, size, size)
    shortcut = ShortcutA(4)(x)
    convolution = F.conv2d(x, torch.zeros(8, 4, 3, 3), stride=2, padding=1)
    assert shortcut.shape == convolution.shape
    assert torch.equal(shortcut[:, :4], F.avg_pool2d(x, 2, ceil_mode=True))
    assert not shortcut[:, 4:].any()


def test_half_precision_does_not_round_the_survival_probability() -> None:
    block = ResidualBlock(8, 8, 1, 0.9907).bfloat16()
    assert block.conv1.weight.dtype == torch.bfloat16
    assert block.p_l == torch.tensor(0.9907)
    assert block(torch.rand(1, 8, 8, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert block.float().p_l == torch.tensor(0.9907)


def test_survival_probability_is_configuration_not_a_weight() -> None:
    assert not any("p_l" in name for name in ResidualBlock(8, 8, 1, 0.5).state_dict())


def test_parameters_of_blocks_are_found_at_any_depth() -> None:
    block = ResidualBlock(16, 16, 1, 0.5)
    torch.nn.utils.parametrizations.weight_norm(block.conv1)
    assert {id(p) for p in parameters_of([block])} == {id(p) for p in block.parameters()}
