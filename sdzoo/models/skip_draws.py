"""Which rows of the mini-batch each residual path computes in a training forward.

One draw at the start of the forward decides for the whole network. The parameters of closed paths get zero gradients
(as with the authors, so that weight decay and momentum act on them), and a backward that recomputes blocks sees the
draw of its own forward again.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from sdzoo.models.gates import Gates
from sdzoo.models.skip_sample import Window, sample_windows
from sdzoo.models.tie import tie_zero_gradients


def batch_windows(gates: Gates, batch: int) -> list[Window]:
    """Return all rows for an open path and none for a closed one: one gate a path and mini-batch (paper)."""
    return [Window(0, batch if is_open else 0) for is_open in gates.at(gates.step)]


MODES: dict[str, Callable[[Gates, int], list[Window]]] = {"batch": batch_windows, "sample": sample_windows}


@dataclass(frozen=True)
class Step:
    """The draw of one training forward: the rows of the batch that each path computes."""

    batch: int
    windows: Sequence[Window]


class Draws:
    """The sequence of draws of one network, shared by all its blocks.

    Args:
        gates: The gate sequence; its step counts the training forwards.
        mode: ``"batch"`` or ``"sample"``.

    Attributes:
        now: The draw that blocks look at: of the running forward, or of the one whose backward recomputes them.
        running: Whether a training forward of the network is under way.
    """

    def __init__(self, gates: Gates, mode: str) -> None:
        self.gates = gates
        self.mode = mode
        self.now = Step(0, ())
        self.running = False
        self._closed: list[Tensor] = []

    @torch.compiler.disable(recursive=False)
    def forward(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return ``run(*args, **kwargs)`` under a new draw, its results tied to the closed parameters."""
        step = self._begin(_batch_of((args, kwargs)))
        try:
            output = run(*args, **kwargs)
        finally:
            self.running = False
            closed, self._closed = self._closed, []
        return self._finish(output, step, closed)

    def close(self, tensors: Iterable[Tensor]) -> None:
        """Note what a closed path would have given gradients; a recomputation notes nothing twice."""
        if self.running:
            self._closed += tensors

    @torch.compiler.disable
    def _begin(self, batch: int) -> Step:
        self.now = Step(batch, MODES[self.mode](self.gates, batch))
        self.gates.step += 1
        self.running = True
        return self.now

    @torch.compiler.disable
    def _finish(self, output: Any, step: Step, closed: list[Tensor]) -> Any:
        def recall(grad: Tensor) -> None:
            self.now = step

        def tie(x: Tensor) -> Tensor:
            x = tie_zero_gradients(x, closed) if x.is_floating_point() else x
            if x.requires_grad:
                x.register_hook(recall)
            return x

        return _map_tensors(output, tie)


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return the same lists, tuples and dicts with every tensor mapped."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return type(value)((key, _map_tensors(item, function)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_map_tensors(item, function) for item in value)
    return value


def _batch_of(inputs: Any) -> int:
    """Return the size of dimension 0 of the first tensor."""
    sizes: list[int] = []
    map_aggregate(inputs, lambda x: sizes.append(len(x)) if isinstance(x, Tensor) and x.ndim else None)
    return sizes[0] if sizes else 1
