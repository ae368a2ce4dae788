"""Stochastic depth that saves time, in any network whose branches pass through timm's DropPath (paper, section 3).

timm's DropPath computes a branch and multiplies it by zero. ``skip_drop_path`` lets the network skip it instead:
weights, names and evaluation stay timm's.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from sdzoo.models.gates import Gates
from sdzoo.models.skip_block import Skip, SkippingBlock, residual
from sdzoo.models.skip_class import Adapted, adapt, restore
from sdzoo.models.skip_cut import Plan, plan_of
from sdzoo.models.skip_draws import MODES, Draws
from sdzoo.models.skip_rates import has_places, place, take_back
from sdzoo.models.skip_trace import CannotConvertError, drop_paths_of
from sdzoo.models.survival import RULES as SCHEDULES
from sdzoo.models.survival import survival_probabilities

Model = TypeVar("Model", bound=nn.Module)

RULES = ("inverted", "paper")
ENTRIES = ("forward", "forward_features", "forward_intermediates")
Plans = dict[str, Plan]


class SkippingNetwork(Adapted):
    """A network that draws for all its paths at the start of a training forward, and counts the draws."""

    _draws: Draws

    @property
    def survival(self) -> tuple[float, ...]:
        """Survival probabilities of the residual paths, in their order."""
        return self._draws.gates.survival

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        self._draws.gates.save(destination, prefix)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._draws.gates.load(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _enter(
    network: SkippingNetwork, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    if network._draws.running:
        return original(network, *args, **kwargs)
    return network._draws.forward(original, network, *args, **kwargs)


SkippingNetwork.enters = dict.fromkeys(ENTRIES, _enter)


def skip_drop_path(
    model: Model,
    *,
    mode: str = "batch",
    rule: str = "inverted",
    schedule: str | None = None,
    sampling: str = "bernoulli",
    gate_seed: int = 0,
    strict: bool = True,
) -> Model:
    """Let a network skip the branches that its DropPaths drop, in place; return it (paper, section 3).

    Args:
        model: A timm model created with ``drop_path_rate`` above 0, or any module whose residual branches pass
            through timm's DropPath.
        mode: ``"batch"``: one gate for each path and mini-batch (paper). ``"sample"``: each path computes a part of
            the samples, every sample's survival probability is exactly p_l.
        rule: ``"inverted"`` (timm): an open branch counts 1/p_l times in training, once in evaluation.
            ``"paper"``: once in training, p_l times in evaluation (paper, equation 5).
        schedule: ``"linear"`` or ``"uniform"`` gives all residual paths their survival probability anew, those
            without a DropPath too; p_L is that of the highest rate in the model. None keeps each DropPath's.
        sampling: ``"bernoulli"`` (paper) or ``"systematic"`` (the number of open paths is steady).
        gate_seed: Key of the gate sequence, in [0, 2**64).
        strict: Whether a block that cannot be converted is an error; else it stays as timm's, with a warning.

    Raises:
        ValueError: An argument is outside its range, the model is already converted, or no branch of it passes
            through a DropPath.
        CannotConvertError: A block cannot be converted; the message names it and the reason.
    """
    # Differs from paper: timm's rule is the default, so that its weights and recipes stay what they are.
    _check_options(model, mode, rule, schedule)
    draws = Draws(Gates((), sampling, gate_seed), mode)
    if not _drops_something(model):
        warnings.warn("every DropPath has rate 0: nothing to skip, the model stays as it is", stacklevel=2)
        return model
    if rule == "paper" or schedule is not None:
        place(model, paper=rule == "paper", everywhere=schedule is not None)
    try:
        plans = _plan_all(model, strict)
        drop_paths = _drop_paths(model, plans)
        if not drop_paths:
            take_back(model)
            warnings.warn("no residual path passes through a DropPath: the model stays as it is", stacklevel=2)
            return model
        if schedule is not None:
            _reschedule(drop_paths, schedule, _p_last(model))
        draws.gates.survival = tuple(map(_survival, drop_paths))
    except ValueError:
        take_back(model)
        raise
    take_back(model, but=drop_paths)
    _convert(model, plans, drop_paths, draws)
    return model


def unskip(model: Model) -> Model:
    """Give a converted network back to timm, in place; return it.

    Raises:
        ValueError: The network is not converted.
    """
    if not isinstance(model, SkippingNetwork):
        raise ValueError(f"this {type(model).__name__} skips no paths: there is nothing to undo")
    for module in model.modules():
        restore(module)
        for attribute in ("_skip", "_draws"):
            vars(module).pop(attribute, None)
    take_back(model)
    return model


def _check_options(model: nn.Module, mode: str, rule: str, schedule: str | None) -> None:
    options = {"mode": (mode, [*MODES]), "rule": (rule, RULES), "schedule": (schedule, [None, *SCHEDULES])}
    for option, (value, allowed) in options.items():
        if value not in allowed:
            raise ValueError(f"{option} is {value!r}, must be one of {', '.join(map(str, allowed))}")
    if any(isinstance(module, Adapted) for module in model.modules()):
        raise ValueError("this model already skips its paths; unskip(model) first to convert it anew")


def _drops_something(model: nn.Module) -> bool:
    rates = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    if not rates and not has_places(model):
        raise ValueError(f"no branch of this {type(model).__name__} passes through timm's DropPath: nothing to skip")
    return any(rates)


def _plan_all(model: nn.Module, strict: bool) -> Plans:
    """Return the plans of all blocks that have residual paths, by name."""
    plans, left = {}, []
    for name, block in _blocks(model):
        try:
            plans[name] = plan_of(block, residual)
            reasons: Iterable[Any] = plans[name].left
        except CannotConvertError as reason:
            reasons = [reason]
        left += [f"block {name} ({type(block).__name__}): {reason}" for reason in reasons]
    if left and (strict or not any(plan.paths for plan in plans.values())):
        raise CannotConvertError(f"{left[0]}; strict=False leaves such paths as timm's")
    if left:
        warnings.warn(f"{len(left)} of timm's DropPaths stay, the first in {left[0]}", stacklevel=3)
    return {name: plan for name, plan in plans.items() if plan.paths}


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if drop_paths_of(module) and not isinstance(module, nn.Sequential | nn.ModuleList):
            yield name, module


def _drop_paths(model: nn.Module, plans: Plans) -> list[DropPath]:
    """Return the DropPath of every path; a shared one as often as it has paths."""
    return [
        drop_paths_of(model.get_submodule(name))[path.drop_path] for name, plan in plans.items() for path in plan.paths
    ]


def _p_last(model: nn.Module) -> float:
    rates = [float(module.drop_prob) for module in model.modules() if isinstance(module, DropPath)]
    return 1.0 - max(rates)


def _reschedule(drop_paths: list[DropPath], schedule: str, p_L: float) -> None:
    """Set the rates; paths that share a DropPath count as one."""
    different = list(dict.fromkeys(drop_paths))
    survival = survival_probabilities(len(different), p_L, schedule)
    for drop_path, p_l in zip(different, survival, strict=True):
        drop_path.drop_prob = 1.0 - p_l


def _survival(drop_path: DropPath) -> float:
    p_l = 1.0 - drop_path.drop_prob
    if not 0.0 < p_l <= 1.0:
        raise ValueError(f"a DropPath has rate {drop_path.drop_prob}, so p = {p_l}, must be in (0, 1]")
    return float(p_l)


def _scale(drop_path: DropPath) -> Tensor | None:
    """Return 1/p, rounded as timm rounds it, as a tensor: torch.compile would make a graph for every number."""
    if not drop_path.scale_by_keep or drop_path.drop_prob == 0.0:
        return None
    return torch.ones(()).div_(1.0 - drop_path.drop_prob)


def _convert(model: nn.Module, plans: Plans, drop_paths: list[DropPath], draws: Draws) -> None:
    first = 0
    for name, plan in plans.items():
        block: Any = model.get_submodule(name)
        last = first + len(plan.paths)
        scales = tuple(map(_scale, drop_paths[first:last]))
        block._skip = Skip(draws, name, first, scales, plans={plan.constants: plan})
        adapt(block, SkippingBlock)
        first = last
    model._draws = draws  # type: ignore[assignment]
    adapt(model, SkippingNetwork)
