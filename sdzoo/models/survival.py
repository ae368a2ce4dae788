"""Survival probabilities: how likely residual block l of L is open in a training step (paper, section 3).

Linear decay, the paper's rule: ``p_l = 1 - (l / L) * (1 - p_L)``, l = 1..L counted from the input.
Uniform: ``p_l = p_L``. A sequence of L numbers gives every block its own.
"""

import math
from collections.abc import Callable, Sequence

Survival = str | Sequence[float]

RULES: dict[str, Callable[[int, int, float], float]] = {
    "linear": lambda block, L, p_L: 1 - (block / L) * (1 - p_L),
    "uniform": lambda block, L, p_L: p_L,
}


def survival_probabilities(L: int, p_L: float, survival: Survival = "linear") -> tuple[float, ...]:
    """Return the survival probabilities p_1..p_L of L residual blocks (paper, section 3, equation 4).

    Args:
        L: Number of residual blocks, at least 1.
        p_L: Survival probability of the last block, in (0, 1]. Unused where ``survival`` is a sequence.
        survival: ``"linear"``, ``"uniform"``, or a sequence of L probabilities in (0, 1].

    Raises:
        ValueError: A probability is outside (0, 1], the sequence has not L entries, or the rule is unknown.
    """
    if L < 1:
        raise ValueError(f"number of residual blocks is {L}, must be at least 1")
    if not isinstance(survival, str):
        return _checked(tuple(float(p_l) for p_l in survival), L)
    if survival not in RULES:
        raise ValueError(f"survival is {survival!r}, must be one of {', '.join(RULES)} or a sequence of {L} floats")
    _checked((p_L,), 1)
    return tuple(float(RULES[survival](block, L, p_L)) for block in range(1, L + 1))


def describe(survival: Sequence[float]) -> str:
    """Return a schedule in words: ``p_L = 0.5`` for linear decay, ``p_L = 0.5, uniform``, or that it is a list."""
    p_L = survival[-1]
    for rule in RULES:
        if all(map(math.isclose, survival_probabilities(len(survival), p_L, rule), survival)):
            return f"p_L = {p_L:g}" if rule == "linear" else f"p_L = {p_L:g}, {rule}"
    return f"p_L = {p_L:g}, every p_l given"


def _checked(probabilities: tuple[float, ...], L: int) -> tuple[float, ...]:
    if len(probabilities) != L:
        raise ValueError(f"survival has {len(probabilities)} probabilities, must have {L}, one a residual block")
    for block, p_l in enumerate(probabilities, start=1):
        if not 0 < p_l <= 1:
            raise ValueError(f"survival probability {p_l} of block {block} is outside (0, 1]")
    return probabilities
