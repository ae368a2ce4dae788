"""Does a converted network compute what timm's would, with the same paths dropped?

The other side is timm's own network: each of its DropPaths multiplies what passes through it by the number that the
gate of the path stands for, 0 or 1/p (1 with the paper's rule).
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate

from sdzoo.models.gates import Gates
from sdzoo.models.skip import SkippingNetwork, unskip
from sdzoo.models.skip_block import Skip

Pattern = Sequence[bool]
NEARLY_ZERO = 1e-3


@dataclass(frozen=True)
class Comparison:
    """How far the converted network is from timm's, over some gate patterns.

    Attributes:
        paths: Number of residual paths.
        outputs: Largest difference of an output, relative to the largest output.
        gradients: The same of a parameter's gradient.
        missing: Parameters that have a gradient on one side only.
    """

    paths: int
    outputs: float
    gradients: float
    missing: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether every bit agrees."""
        return self.outputs == 0 and self.gradients == 0 and not self.missing


def compare(network: nn.Module, *inputs: Any) -> Comparison:
    """Run a converted network and timm's with all paths closed, and with each half of them open.

    The network must be in training mode, without dropout. It is left as it was.

    Raises:
        ValueError: The network is not converted.
    """
    if not isinstance(network, SkippingNetwork):
        raise ValueError("the network is not converted: skip_drop_path(network) first")
    L = len(network._draws.gates.survival)
    patterns = [False] * L, [index % 2 == 0 for index in range(L)], [index % 2 == 1 for index in range(L)]
    results = [_compare(network, pattern, inputs) for pattern in patterns]
    outputs, gradients, missing = zip(*results, strict=True)
    return Comparison(L, max(outputs), max(gradients), tuple(dict.fromkeys(name for m in missing for name in m)))


def stir(model: nn.Module) -> None:
    """Give weights that start at zero, or nearly so, a size at which the branches they scale are seen."""
    for name, parameter in model.named_parameters():
        if not name.endswith("bias") and parameter.abs().max() < NEARLY_ZERO:
            nn.init.normal_(parameter, std=0.1)


def with_gates(network: SkippingNetwork, pattern: Pattern) -> nn.Module:
    """Return a copy whose every training forward has these gates."""
    fixed = copy.deepcopy(network)
    fixed._draws.gates = _FixedGates(pattern)
    return fixed


def timm_with_gates(network: SkippingNetwork, pattern: Pattern) -> nn.Module:
    """Return timm's network with the same weights and multiplications in the place of its DropPaths."""
    factors = {name: list(_factors(skip, pattern)) for name, skip in _skips(network)}
    timm = unskip(copy.deepcopy(network))
    for name, skip in _skips(network):
        block = timm.get_submodule(name)
        paths = next(iter(skip.plans.values())).paths
        for drop_path in dict.fromkeys(path.drop_path for path in paths):
            pairs = zip(paths, factors[name], strict=True)
            own = {path.call: factor for path, factor in pairs if path.drop_path == drop_path}
            parent, _, attribute = drop_path.rpartition(".")
            setattr(block.get_submodule(parent), attribute, _Times(own))
    return timm


class _FixedGates(Gates):
    def __init__(self, pattern: Pattern) -> None:
        super().__init__([1.0] * len(pattern))
        self.pattern = list(pattern)

    def at(self, step: int) -> list[bool]:
        return self.pattern


class _Times(nn.Module):
    """Multiplies by one number after the other in one forward; by none in a call that is not a converted path's."""

    def __init__(self, factors: dict[int, Tensor]) -> None:
        super().__init__()
        self.factors = factors
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        factor = self.factors.get(self.calls)
        self.calls += 1
        return x if factor is None else x * factor


def _skips(network: nn.Module) -> Iterator[tuple[str, Skip]]:
    return ((name, module._skip) for name, module in network.named_modules() if hasattr(module, "_skip"))


def _factors(skip: Skip, pattern: Pattern) -> Iterator[Tensor]:
    for index, scale in enumerate(skip.scales, start=skip.first):
        factor = torch.ones(()) if scale is None else scale
        yield factor if pattern[index] else torch.zeros(())


def _compare(network: SkippingNetwork, pattern: Pattern, inputs: Any) -> tuple[float, float, list[str]]:
    our_outputs, ours = _run(with_gates(network, pattern), inputs)
    outputs, timms = _run(timm_with_gates(network, pattern), inputs)
    missing = [name for name in ours if (ours[name] is None) != (timms[name] is None)]
    pairs = zip(ours.values(), timms.values(), strict=True)
    gradients = [(our, their) for our, their in pairs if our is not None and their is not None]
    return _farthest(zip(our_outputs, outputs, strict=True)), _farthest(gradients), missing


def _run(model: nn.Module, inputs: Any) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """Return the outputs and the gradients of one step."""
    outputs: list[Tensor] = []
    map_aggregate(model(*inputs), lambda x: outputs.append(x) if isinstance(x, Tensor) else None)
    sum(output.square().mean() for output in outputs).backward()  # type: ignore[union-attr]
    return [output.detach() for output in outputs], {name: p.grad for name, p in model.named_parameters()}


def _farthest(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the largest difference relative to the largest number; NaN in the same place is no difference."""
    with torch.no_grad():
        different = [(a.nan_to_num(), b.nan_to_num()) for a, b in pairs if not _equal(a, b)]
        if not different:
            return 0.0
        return float(max((a - b).abs().max() for a, b in different) / max(b.abs().max() for _, b in different))


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())
