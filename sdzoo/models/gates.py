"""Gates: which residual blocks are open in a training step (paper, section 3, ``b_l``).

One draw opens and closes the blocks of the whole network for one mini-batch. It is a pure function of
(seed, step): a counter-based generator (Philox) keyed by the seed and positioned by the step. So all ranks of a
distributed run have the same gates without talking to each other, a resumed run continues the same sequence, and
no global random state is touched.

The arithmetic is integer and exact: a probability p is the threshold round(p * 2**53), a uniform number is 53 bits
of the generator.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

BITS = 53
MAX_BLOCKS = 2 ** (64 - BITS) - 2  # the running sum of thresholds plus one uniform number fits 64 bits
STEP_KEY = "gate_step"

Thresholds = NDArray[np.uint64]


def _bernoulli(thresholds: Thresholds, uniform: Thresholds) -> NDArray[np.bool_]:
    """Open independently: u_l < p_l, as in the paper."""
    gates: NDArray[np.bool_] = uniform < thresholds
    return gates


def _systematic(thresholds: Thresholds, uniform: Thresholds) -> NDArray[np.bool_]:
    """Open where floor(c_l + u) > floor(c_{l-1} + u), c the running sum of p and u one number for all blocks.

    The marginals are exactly p_l, and the number of open blocks is one of two neighbouring integers.
    """
    # Differs from paper: the gates of one step are not independent of each other.
    c = np.zeros(len(thresholds) + 1, dtype=np.uint64)
    np.cumsum(thresholds, out=c[1:])
    whole = (c + uniform[0]) >> np.uint64(BITS)
    crossed: NDArray[np.bool_] = whole[1:] != whole[:-1]
    return crossed


SAMPLINGS: dict[str, Callable[[Thresholds, Thresholds], NDArray[np.bool_]]] = {
    "bernoulli": _bernoulli,
    "systematic": _systematic,
}


class Gates:
    """The gate sequence of one network: call ``draw`` once per training-mode forward.

    Args:
        survival: Survival probabilities p_1..p_L, each in (0, 1].
        sampling: ``"bernoulli"`` (the paper's independent draws) or ``"systematic"`` (steady step time).
        seed: Key of the sequence, in [0, 2**64). Two networks with the same seed draw the same gates.

    Attributes:
        step: Number of draws made so far; saved with the weights, so that a resumed run goes on from there.

    Raises:
        ValueError: An unknown sampling, a seed out of range, or more than 2,046 blocks.
    """

    def __init__(self, survival: Sequence[float], sampling: str = "bernoulli", seed: int = 0) -> None:
        if sampling not in SAMPLINGS:
            raise ValueError(f"sampling is {sampling!r}, must be one of {', '.join(SAMPLINGS)}")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise ValueError(f"gate_seed is {seed!r}, must be an integer in [0, 2**64)")
        self.sampling = sampling
        self.seed = seed
        self.step = 0
        self.survival = tuple(survival)

    @property
    def survival(self) -> tuple[float, ...]:
        """Survival probabilities p_1..p_L in float64."""
        return self._survival

    @survival.setter
    def survival(self, survival: tuple[float, ...]) -> None:
        if len(survival) > MAX_BLOCKS:
            raise ValueError(f"{len(survival)} residual blocks, at most {MAX_BLOCKS} can be drawn")
        self._survival = survival
        self.thresholds = np.array([round(p_l * 2**BITS) for p_l in survival], dtype=np.uint64)

    def at(self, step: int) -> list[bool]:
        """Return the gates of one step, True where the block is open; changes nothing."""
        gates: list[bool] = SAMPLINGS[self.sampling](self.thresholds, self.uniform(step)).tolist()
        return gates

    def uniform(self, step: int, stream: int = 0) -> Thresholds:
        """Return a uniform number of 53 bits for every block; each stream of a step has its own."""
        generator = np.random.Philox(key=self.seed, counter=[0, stream, step, 0])
        return generator.random_raw(len(self._survival)) >> np.uint64(64 - BITS)

    def save(self, destination: dict[str, Any], prefix: str) -> None:
        """Write the step into a state dict."""
        destination[prefix + STEP_KEY] = torch.tensor(self.step)

    def load(self, state_dict: dict[str, Any], prefix: str) -> None:
        """Take the step out of a state dict; without one the sequence stays where it is."""
        step = state_dict.pop(prefix + STEP_KEY, None)
        if step is not None:
            self.step = int(step)

    @torch.compiler.disable
    def draw(self) -> list[bool]:
        """Return the gates of the current step and advance to the next."""
        gates = self.at(self.step)
        self.step += 1
        return gates
