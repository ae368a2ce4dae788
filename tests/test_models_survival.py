"""Survival probabilities against the paper's formula."""

import math

import pytest

from sdzoo import survival_probabilities
from sdzoo.models.survival import describe


@pytest.mark.parametrize("L", [1, 9, 54, 600])
@pytest.mark.parametrize("p_L", [0.2, 0.5, 1.0])
def test_linear_decay_is_the_papers_formula(L: int, p_L: float) -> None:
    survival = survival_probabilities(L, p_L)
    assert len(survival) == L
    for block, p_l in enumerate(survival, start=1):
        assert math.isclose(p_l, 1 - block / L * (1 - p_L))
    assert math.isclose(survival[-1], p_L)


def test_known_values_of_resnet110() -> None:
    survival = survival_probabilities(54, 0.5)
    assert round(survival[0], 4) == 0.9907
    assert math.isclose(sum(survival), (3 * 54 - 1) / 4)


def test_uniform_and_own_sequence() -> None:
    assert survival_probabilities(3, 0.8, "uniform") == (0.8, 0.8, 0.8)
    assert survival_probabilities(3, 0.5, [1, 0.9, 0.1]) == (1.0, 0.9, 0.1)


def test_schedules_in_words() -> None:
    assert describe(survival_probabilities(54, 0.5)) == "p_L = 0.5"
    assert describe(survival_probabilities(54, 0.1)) == "p_L = 0.1"
    assert describe(survival_probabilities(54, 0.8, "uniform")) == "p_L = 0.8, uniform"
    assert describe((0.5, 0.9)) == "p_L = 0.9, every p_l given"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, 0.5), "0, must be at least 1"),
        ((3, 0.0), "0.0 of block 1 is outside (0, 1]"),
        ((3, 1.1), "1.1 of block 1 is outside (0, 1]"),
        ((3, float("nan")), "nan of block 1 is outside (0, 1]"),
        ((3, 0.5, "cosine"), "'cosine', must be one of linear, uniform"),
        ((3, 0.5, [0.5, 0.5]), "2 probabilities, must have 3"),
        ((3, 0.5, [0.5, 0.0, 0.5]), "0.0 of block 2 is outside (0, 1]"),
    ],
)
def test_errors_name_value_and_range(arguments: tuple, said: str) -> None:
    with pytest.raises(ValueError) as error:
        survival_probabilities(*arguments)
    assert said in str(error.value)
