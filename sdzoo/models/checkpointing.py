"""Gradient checkpointing that leaves BatchNorm statistics as a run without it would."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm count the batch on copies of its statistics, which are then thrown away.

    Switching the tracking off instead would save fewer tensors than the first run did, which checkpointing refuses.
    """
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    statistics = [dict(norm._buffers) for norm in norms]
    for norm, kept in zip(norms, statistics, strict=True):
        norm._buffers.update({name: buffer.clone() for name, buffer in kept.items() if buffer is not None})
    try:
        yield
    finally:
        for norm, kept in zip(norms, statistics, strict=True):
            norm._buffers.update(kept)


def checkpoint_block(block: nn.Module, x: Tensor) -> Tensor:
    """Return ``block(x)`` without keeping its activations; the backward recomputes them.

    Checkpointing runs the block twice; the second run must not move the running statistics again.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), frozen_statistics(block)

    output: Tensor = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
    return output
