"""Draw docs/gates.svg: which of ResNet-110's residual blocks are computed in its first training steps."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from sdzoo import survival_probabilities
from sdzoo.models.gates import SAMPLINGS, Gates

STEPS = 40
L = 54


def main() -> None:
    """Write the picture beside this file."""
    plt.rcParams["svg.hashsalt"] = "sdzoo"  # the same bytes every time
    survival = survival_probabilities(L, 0.5)
    figure, (top, *panels) = plt.subplots(3, 1, figsize=(8, 6), sharex=True, height_ratios=[1, 2, 2])
    blocks = np.arange(1, L + 1)
    top.plot(blocks, survival, color="black")
    top.set(ylabel="p", ylim=(0, 1.05), title="ResNet-110, linear decay to p_L = 0.5: survival probability of block l")
    for panel, sampling in zip(panels, SAMPLINGS, strict=True):
        gates = Gates(survival, sampling)
        drawn = np.array([gates.draw() for _ in range(STEPS)])
        panel.imshow(drawn, aspect="auto", cmap="Greys", extent=(0.5, L + 0.5, STEPS, 0), interpolation="none")
        low, high = drawn.sum(axis=1).min(), drawn.sum(axis=1).max()
        panel.set(
            ylabel="training step",
            title=f"{sampling}: computed (black) and skipped, {low} to {high} blocks open a step",
        )
    panels[-1].set_xlabel("residual block l")
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
