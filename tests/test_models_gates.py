"""Gates: exact at the ends, right marginals in between, a pure function of seed and step."""

import math
import subprocess
import sys

import numpy as np
import pytest

from sdzoo import survival_probabilities
from sdzoo.models.gates import SAMPLINGS, Gates

DRAWS = 4_000
SEQUENCE = """
import sys, torch
from sdzoo import survival_probabilities
from sdzoo.models.gates import Gates
torch.manual_seed(int(sys.argv[1]))
gates = Gates(survival_probabilities(54, 0.5), seed=3)
print([gates.draw() for _ in range(20)])
"""


def drawn(survival: tuple[float, ...], sampling: str, seed: int = 0) -> np.ndarray:
    gates = Gates(survival, sampling, seed)
    return np.array([gates.draw() for _ in range(DRAWS)])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_probability_one_is_always_open(sampling: str) -> None:
    survival = (0.3, 1.0, 0.7, 1.0, 1.0)
    assert drawn(survival, sampling)[:, [1, 3, 4]].all()
    assert drawn((1.0,) * 600, sampling)[:100].all()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_tiny_probability_is_never_open_in_few_draws(sampling: str) -> None:
    assert not drawn((2.0**-52,) * 9, sampling).any()


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("p_L", [0.2, 0.5, 0.9])
def test_marginals_within_binomial_bound(sampling: str, p_L: float) -> None:
    survival = np.array(survival_probabilities(54, p_L))
    rate = drawn(tuple(survival), sampling).mean(axis=0)
    # five standard deviations: 54 blocks exceed it together in one of 30,000 seeds
    bound = 5 * np.sqrt(survival * (1 - survival) / DRAWS)
    assert (np.abs(rate - survival) <= bound).all()


def test_bernoulli_blocks_are_independent() -> None:
    gates = drawn((0.5,) * 20, "bernoulli").astype(float)
    correlations = np.corrcoef(gates.T)[np.triu_indices(20, k=1)]
    assert np.abs(correlations).max() < 5 / math.sqrt(DRAWS)


def test_steps_are_independent() -> None:
    gates = drawn((0.5,) * 20, "bernoulli").astype(float)
    for block in gates.T:
        assert abs(np.corrcoef(block[:-1], block[1:])[0, 1]) < 5 / math.sqrt(DRAWS)


@pytest.mark.parametrize("p_L", [0.2, 0.5, 0.77])
def test_systematic_opens_one_of_two_neighbouring_numbers(p_L: float) -> None:
    survival = survival_probabilities(54, p_L)
    expected = sum(survival)
    counts = set(drawn(survival, "systematic").sum(axis=1).tolist())
    assert counts <= {math.floor(expected), math.ceil(expected)}


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_against_the_definition_in_exact_arithmetic(sampling: str) -> None:
    from fractions import Fraction

    survival = survival_probabilities(30, 0.5)
    gates = Gates(survival, sampling, seed=11)
    for step in range(50):
        raw = np.random.Philox(key=11, counter=[0, 0, step, 0]).random_raw(30).tolist()
        u = [Fraction(number >> 11, 2**53) for number in raw]
        p = [Fraction(p_l) for p_l in survival]
        if sampling == "bernoulli":
            expected = [u_l < p_l for u_l, p_l in zip(u, p, strict=True)]
        else:
            c = [sum(p[:l], Fraction(0)) for l in range(31)]  # noqa: E741
            expected = [math.floor(c[l + 1] + u[0]) > math.floor(c[l] + u[0]) for l in range(30)]  # noqa: E741
        assert gates.at(step) == expected


def test_same_sequence_in_processes_with_other_torch_seeds() -> None:
    runs = [subprocess.run([sys.executable, "-c", SEQUENCE, seed], capture_output=True, text=True) for seed in "01"]
    assert runs[0].returncode == 0, runs[0].stderr
    assert runs[0].stdout == runs[1].stdout
    assert "True" in runs[0].stdout


def test_seed_and_step_matter() -> None:
    survival = survival_probabilities(54, 0.5)
    gates = Gates(survival, seed=1)
    assert gates.at(0) == Gates(survival, seed=1).at(0)
    assert gates.at(0) != gates.at(1)
    assert gates.at(0) != Gates(survival, seed=2).at(0)


def test_draw_advances_and_at_does_not() -> None:
    gates = Gates(survival_probabilities(54, 0.5))
    assert [gates.draw(), gates.draw()] == [gates.at(0), gates.at(1)]
    assert gates.step == 2


def test_global_random_state_is_untouched() -> None:
    import torch

    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    Gates(survival_probabilities(54, 0.5)).draw()
    assert (torch.rand(1), np.random.rand()) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sampling": "sobol"}, "'sobol', must be one of bernoulli, systematic"),
        ({"seed": -1}, "-1, must be an integer in [0, 2**64)"),
        ({"seed": 2**64}, "must be an integer in [0, 2**64)"),
        ({"seed": 1.0}, "1.0, must be an integer"),
        ({"seed": True}, "True, must be an integer"),
        ({"survival": (0.5,) * 2047}, "2047 residual blocks, at most 2046"),
    ],
)
def test_errors_name_value_and_range(arguments: dict, said: str) -> None:
    with pytest.raises(ValueError) as error:
        Gates(**{"survival": (0.5,), **arguments})
    assert said in str(error.value)
