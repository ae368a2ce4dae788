"""Checkpointing recomputes a block and counts its batch once."""

import copy

import pytest
import torch
from torch import nn

from sdzoo.models.blocks import ResidualBlock
from sdzoo.models.checkpointing import checkpoint_block


def test_same_gradients_and_statistics_as_without() -> None:
    torch.manual_seed(0)
    plain = ResidualBlock(8, 16, 2, 0.5)
    saved = copy.deepcopy(plain)
    x = torch.rand(4, 8, 10, 10, requires_grad=True)
    plain(x).square().sum().backward()
    expected, x.grad = x.grad, None
    checkpoint_block(saved, x).square().sum().backward()
    assert torch.equal(x.grad, expected)
    for (name, ours), theirs in zip(saved.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
    assert saved.bn1.num_batches_tracked == 1
    for (name, ours), theirs in zip(saved.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_statistics_are_the_modules_own_again_after_an_error() -> None:
    class Fails(nn.Sequential):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls == 2:
                raise ArithmeticError
            return super().forward(x)

    block = Fails(nn.BatchNorm2d(2))
    statistics = block[0].running_mean
    output = checkpoint_block(block, torch.rand(2, 2, 3, 3, requires_grad=True))
    with pytest.raises(ArithmeticError):
        output.sum().backward()
    assert block[0].running_mean is statistics
