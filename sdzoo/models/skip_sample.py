"""Stochastic depth per sample without computing what is dropped: a path takes a part of the mini-batch.

Path l computes floor(B * p_l + u) of the B rows: a window that starts anywhere and wraps around. u and the start are
drawn from the counter, u the same on every rank (equal work), the start not. So each row survives with exactly p_l,
and the work of a step hardly changes from step to step.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sdzoo.models.gates import BITS, Gates


class Window(NamedTuple):
    """Rows start, start + 1, ... of a batch, the first row following the last."""

    start: int
    rows: int


def _separately(expected: Sequence[int], uniform: Sequence[int]) -> list[int]:
    """Round each path's expected number of rows up or down on its own."""
    return [(e + u) >> BITS for e, u in zip(expected, uniform, strict=True)]


def _together(expected: Sequence[int], uniform: Sequence[int]) -> list[int]:
    """Round so that the sum over all paths is one of two neighbouring integers."""
    sums = [(c + uniform[0]) >> BITS for c in accumulate(expected, initial=0)]
    return [after - before for before, after in pairwise(sums)]


ROUNDINGS = {"bernoulli": _separately, "systematic": _together}


def sample_windows(gates: Gates, batch: int) -> list[Window]:
    """Return the rows of each path at the current step of the gates, for a batch of the given size."""
    expected = [batch * threshold for threshold in gates.thresholds.tolist()]
    rows = ROUNDINGS[gates.sampling](expected, gates.uniform(gates.step).tolist())
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    starts = gates.uniform(gates.step, stream=1 + rank).tolist()
    return [Window((batch * start) >> BITS, count) for start, count in zip(starts, rows, strict=True)]


def take(x: Tensor, window: Window) -> Tensor:
    """Return the rows of a window; its gradient is zero in the other rows."""
    taken: Tensor = _Take.apply(x, window)
    return taken


@torch.compiler.disable  # every window would be a graph
def add_rows(x: Tensor, window: Window, rows: Tensor) -> Tensor:
    """Return x with ``rows`` added to the rows of the window."""
    added: Tensor = _AddRows.apply(x, window, rows)
    return added


def _parts(window: Window, batch: int) -> list[tuple[slice, slice]]:
    """Return where the rows of a window lie: one slice of the batch, or two if it wraps, and their place in it."""
    start, rows = window
    head = min(rows, batch - start)
    parts = [(slice(start, start + head), slice(0, head))]
    return parts if head == rows else [*parts, (slice(0, rows - head), slice(head, rows))]


def _taken(x: Tensor, window: Window) -> Tensor:
    parts = [x[source] for source, _ in _parts(window, len(x))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window) -> Tensor:
        ctx.window = window
        ctx.batch = len(x)
        return _taken(x, window)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        whole = grad.new_zeros((ctx.batch, *grad.shape[1:]))
        for target, part in _parts(ctx.window, ctx.batch):
            whole[target] = grad[part]
        return whole, None


class _AddRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window, rows: Tensor) -> Tensor:
        ctx.window = window
        out = x.clone()
        for target, part in _parts(window, len(x)):
            out[target] += rows[part]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
        return grad, None, _taken(grad, ctx.window)
