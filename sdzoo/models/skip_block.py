"""A block that runs its open residual paths only (paper, section 3)."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdzoo.models.checkpointing import frozen_statistics
from sdzoo.models.skip_class import Adapted, original_class
from sdzoo.models.skip_cut import Path, Plan, plan_of
from sdzoo.models.skip_draws import Draws, Step
from sdzoo.models.skip_sample import Window, add_rows, take
from sdzoo.models.skip_trace import CannotConvertError, is_constant

# Arguments of timm's blocks that belong to positions, not to samples, whatever the size of their dimension 0.
POSITIONAL = {"attn_mask", "rel_pos_bias", "rope", "shared_rel_pos", "shared_rel_pos_bias"}


@dataclass
class Skip:
    """What a block knows of its paths.

    Attributes:
        draws: The draws of its network.
        name: Name of the block in the network.
        first: Index of the block's first path among those of the network.
        scales: What each branch is multiplied by in training, None for nothing.
        plan: How the block runs with the arguments it was called with last.
    """

    draws: Draws
    name: str
    first: int
    scales: tuple[Tensor | None, ...]
    plan: Plan | None = None
    plans: dict[Any, Plan] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the plans: they are code, made again where they are needed."""
        return {**self.__dict__, "plan": None, "plans": {}}


class SkippingBlock(Adapted):
    """A block whose training forward skips its closed paths; its evaluation is its own."""

    _skip: Skip


@torch.compiler.disable(recursive=False)
def _enter(block: SkippingBlock, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if block._skip.draws.running:
        return _run(block, args, kwargs)
    if _in_backward():
        with frozen_statistics(block):
            return _run(block, args, kwargs)
    # Called on its own there is no draw for it: it is timm's block, with timm's DropPath.
    return original(block, *args, **kwargs)


SkippingBlock.enters = {"forward": _enter}


@torch.compiler.disable(recursive=False)  # compiled, it would be one function with a graph for every block
def _run(block: SkippingBlock, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    plan, inputs = _plan(block, args, kwargs)
    return plan.forward(block, *inputs)


@torch.compiler.disable
def _plan(block: SkippingBlock, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Plan, list[Any]]:
    """Return the plan for the constants among the arguments, and the other arguments."""
    skip = block._skip
    bound = inspect.signature(original_class(block).forward).bind(block, *args, **kwargs)
    bound.apply_defaults()
    constants = tuple((name, value) for name, value in bound.arguments.items() if is_constant(value))
    plan = skip.plans.get(constants)
    if plan is None or plan.by_shape:
        shapes = tuple(x.shape for x in bound.arguments.values() if isinstance(x, Tensor))
        plan = skip.plans.get((constants, shapes)) or plan_of(block, residual, dict(constants), bound.arguments)
        _check_paths(skip, plan)
        skip.plans[(constants, shapes) if plan.by_shape else constants] = plan
    skip.plan = plan
    return skip.plan, [bound.arguments[name] for name in skip.plan.inputs]


def _check_paths(skip: Skip, plan: Plan) -> None:
    if len(plan.paths) != len(skip.scales):
        raise CannotConvertError(
            f"block {skip.name}: this call has {len(plan.paths)} residual paths, {len(skip.scales)} were converted"
        )


@torch.compiler.disable(recursive=False)
def residual(block: SkippingBlock, index: int, shortcut: Tensor, *inputs: Any) -> Tensor:
    """Return shortcut + f(inputs) for the rows that are drawn for a path, the shortcut for the others."""
    skip = block._skip
    assert skip.plan is not None
    path, scale = skip.plan.paths[index], skip.scales[index]
    step = skip.draws.now
    window = step.windows[skip.first + index]
    if window.rows == 0:
        skip.draws.close([*path.parameters(block), *_others(skip.plan, path, inputs)])
        return shortcut.clone() if path.fresh else shortcut
    if window.rows == step.batch:
        return path.branch(block, shortcut, scale, *inputs)
    _check_rows(skip, step, shortcut)
    part = _part(path, inputs, step, window)
    total: Tensor = add_rows(shortcut, window, path.branch(block, None, scale, *part))
    return total


@torch.compiler.disable
def _part(path: Path, inputs: Iterable[Any], step: Step, window: Window) -> list[Any]:
    """Return the inputs of a branch with the rows of a window alone."""
    return [take(x, window) if _is_batched(name, x, step) else x for name, x in zip(path.inputs, inputs, strict=True)]


def _others(plan: Plan, path: Path, inputs: Iterable[Any]) -> list[Tensor]:
    """Return what a branch takes besides the block's main input: it may come from parameters nothing else uses."""
    others = plan.inputs[1:]
    return [x for name, x in zip(path.inputs, inputs, strict=True) if name in others and isinstance(x, Tensor)]


def _is_batched(name: str, value: Any, step: Step) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == step.batch and name not in POSITIONAL


def _check_rows(skip: Skip, step: Step, shortcut: Tensor) -> None:
    if len(shortcut) != step.batch:
        raise RuntimeError(
            f"block {skip.name} has {len(shortcut)} rows for a batch of {step.batch}: it does not keep the samples "
            'in dimension 0, so mode="sample" does not apply; use mode="batch"'
        )


def _in_backward() -> bool:
    """Whether autograd runs this thread: then a forward is a recomputation of gradient checkpointing."""
    return torch._C._current_graph_task_id() != -1
