"""What one residual block costs, measured: seconds of forward and backward, and bytes kept for the backward.

On plain chains of blocks, without the code that skips them, so that it cannot hide its own cost.
"""

import statistics

from arms import Setup, Step
from interleave import interleaved
from memory import saved_bytes
from torch import nn

from sdzoo.models.blocks import ResidualBlock, ShortcutA

CHANNELS = (16, 32, 64)
STAGES = range(3)


def block_seconds(setup: Setup, rounds: int) -> list[float]:
    """Return the seconds of forward and backward of each block, without its shortcut.

    Blocks of one shape cost the same: the difference of a stage of many and a stage of few, divided by their number.
    """
    n = (setup.depth - 2) // 6
    many = min(n, 9)
    steps = {f"{stage} {count}": _step(setup, stage, *_same(stage, count)) for stage in STAGES for count in (1, many)}
    halving = {f"halving {stage}": _step(setup, stage - 1, _halving(stage)) for stage in STAGES[1:]}
    seconds = interleaved(steps | halving, rounds)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    same = [(median[f"{stage} {many}"] - median[f"{stage} 1"]) / max(many - 1, 1) for stage in STAGES]
    # A block that halves the resolution, alone with its loss: what a block of its output's shape costs, scaled.
    first = [same[0], *(same[stage] * median[f"halving {stage}"] / median[f"{stage} 1"] for stage in STAGES[1:])]
    return _by_block(first, same, n)


def block_bytes(setup: Setup) -> list[float]:
    """Return the bytes that each block keeps for the backward, more than its shortcut in its place.

    Between other blocks: its input and what follows it are kept in either case.
    """

    def kept(stage: int, *blocks: nn.Module) -> int:
        return saved_bytes(_step(setup, stage, *blocks), nn.ModuleList(blocks).parameters())

    def halving(stage: int) -> int:
        def between(block: nn.Module) -> int:
            return kept(stage - 1, *_same(stage - 1, 1), block, *_same(stage, 1))

        return between(_halving(stage)) - between(ShortcutA(CHANNELS[stage] - CHANNELS[stage - 1]))

    same: list[float] = [kept(stage, *_same(stage, 2)) - kept(stage, *_same(stage, 1)) for stage in STAGES]
    return _by_block([same[0], halving(1), halving(2)], same, (setup.depth - 2) // 6)


def _same(stage: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(CHANNELS[stage], CHANNELS[stage], 1, 1.0) for _ in range(count)]


def _halving(stage: int) -> nn.Module:
    return ResidualBlock(CHANNELS[stage - 1], CHANNELS[stage], 2, 1.0)


def _step(setup: Setup, stage: int, *blocks: nn.Module) -> Step:
    """Return forward and backward of a chain of blocks on the activations of a stage."""
    chain = setup.place(nn.Sequential(*blocks)).train()
    images = setup.images(CHANNELS[stage], 32 >> stage).requires_grad_()

    def step() -> None:
        chain(images).sum().backward()
        chain.zero_grad()  # as after a training step: the next gradient is stored, not added
        images.grad = None

    return step


def _by_block(first: list[float], other: list[float], n: int) -> list[float]:
    return [cost for stage in STAGES for cost in (first[stage], *[other[stage]] * (n - 1))]
