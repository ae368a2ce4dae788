"""The same networks, weights and schedule under the other ways of closing a block that people use.

Under torch.compile the branches of all of them are compiled, never a network for a gate pattern. The rules of the
masking ones stay outside: they would be compiled anew for every survival probability, beyond torch's limit.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers import drop_path
from torch import Tensor
from torchvision.ops import stochastic_depth

from sdzoo import SdResNet

Loop = Callable[..., list[Tensor]]
not_compiled: Callable[[Loop], Loop] = torch.compiler.disable(recursive=False)

# How a block's branch counts in one training step: (branch, open?, survival probability) -> what is added.
Rule = Callable[[Tensor, bool, float], Tensor]

MASKING: dict[str, Rule] = {
    "timm DropPath": lambda f, is_open, p_l: drop_path(f, 1 - p_l, training=True),
    "per-batch masking": lambda f, is_open, p_l: f * float(is_open),
    "torchvision batch": lambda f, is_open, p_l: stochastic_depth(f, 1 - p_l, mode="batch", training=True),
}


class Masking(SdResNet):
    """Computes every branch, then multiplies it: what timm's DropPath and torchvision's stochastic_depth do."""

    rule: Rule

    @not_compiled
    def _train_stages(self, x: Tensor) -> list[Tensor]:
        gates = iter(zip(self.gates.draw(), self.survival, strict=True))
        outputs = []
        for stage in self._stages():
            for block in stage:
                is_open, p_l = next(gates)
                x = F.relu(self.rule(block.residual(x), is_open, p_l) + block.shortcut(x), inplace=True)
            outputs.append(x)
        return outputs


class Untied(SdResNet):
    """Skips closed blocks and leaves their gradients None, which DDP takes with ``find_unused_parameters`` only."""

    @not_compiled
    def _train_stages(self, x: Tensor) -> list[Tensor]:
        gates = iter(self.gates.draw())
        outputs = []
        for stage in self._stages():
            for block in stage:
                x = block(x) if next(gates) else block.shortcut(x)
            outputs.append(x)
        return outputs


def peer(name: str, depth: int, drop_path_rate: float) -> SdResNet:
    """Return a network by the name of its arm: ``constant``, ours with either sampling, or a peer."""
    if name == "constant":
        return SdResNet(depth, drop_path_rate=0.0)
    if name in OURS:
        return SdResNet(depth, drop_path_rate=drop_path_rate, sampling=name)
    if name == "skip, gradients None":
        return Untied(depth, drop_path_rate=drop_path_rate)
    network = Masking(depth, drop_path_rate=drop_path_rate)
    network.rule = torch.compiler.disable(MASKING[name])
    return network


OURS = ("bernoulli", "systematic")
ARMS = ("constant", *OURS, *MASKING, "skip, gradients None")


def needs_unused(name: str) -> bool:
    """Return whether DistributedDataParallel must search for parameters without gradient."""
    return name == "skip, gradients None"


def torch_seeded(name: str, depth: int, drop_path_rate: float) -> SdResNet:
    """Return the same network for the same arm on every rank."""
    torch.manual_seed(0)
    return peer(name, depth, drop_path_rate)
