"""Gradient checkpointing that leaves BatchNorm statistics as a run without it would."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Normalise with the batch's statistics as in training, but count the batch nowhere."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def checkpoint_block(block: nn.Module, x: Tensor) -> Tensor:
    """Return ``block(x)`` without keeping its activations; the backward recomputes them.

    Checkpointing runs the block twice; the second run must not move the running statistics again.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_statistics(block)

    output: Tensor = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
    return output
