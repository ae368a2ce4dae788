"""Memory of a training step: what autograd keeps for the backward, and the most that is allocated at any moment."""

from collections.abc import Callable, Iterable
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], object]


def saved_bytes(step: Step, besides: Iterable[Tensor] = ()) -> int:
    """Return the bytes that autograd keeps for the backward of one step, every storage once.

    Args:
        step: Takes one training step.
        besides: Tensors that exist anyway and do not count: the parameters.
    """
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    held = {tensor.untyped_storage().data_ptr() for tensor in besides}
    return sum(size for storage, size in storages.items() if storage not in held)


def peak_bytes(step: Step) -> int:
    """Return the most bytes that one step has allocated at any moment, over what there was before it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events = profiled.profiler.kineto_results.events()
    changes: list[tuple[int, int]] = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(size for _, size in changes))
