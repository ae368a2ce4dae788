"""Step time of stochastic depth beside constant depth, its peers and the limit that the block count sets.

    python benchmarks/train_step.py --depth 110 --p-l 0.5
    torchrun --nproc-per-node 2 benchmarks/train_step.py --depth 110 --p-l 0.5

The limit of a step is the constant-depth step minus the cost of the blocks that were closed in it. What a block
costs is measured in the same run, as the difference between networks with more and fewer blocks in its stage. So the
limit holds stem, head, optimiser and all-reduce in full. The memory target likewise: what constant depth keeps for its
backward minus what the closed blocks would have kept. On a GPU the same command uses CUDA events and memory.
``grid.py`` runs many of these.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from arms import Setup, Step, arm, closed_costs
from interleave import interleaved
from limits import block_bytes, block_seconds
from memory import peak_bytes, saved_bytes
from overhead import draw_microseconds, tie_seconds
from peers import ARMS, OURS, needs_unused
from ranks import this_rank
from rich.console import Console
from rich.table import Table
from rows import Row, add_rows
from torch import distributed

from sdzoo import SdResNet
from sdzoo.cli import run_script
from sdzoo.hardware import hardware

WARMUP = 2
DRAWS = range(1_000)


@dataclass(frozen=True)
class StepRow(Row):
    """Results of one arm.

    Attributes:
        target_megabytes: What the step of ``megabytes`` should keep: its constant part and that of its open blocks.
        peak_megabytes: The most that this step allocated at any moment.
        longest: Longest step over mean step.
        longest_draw: The same for 1,000 draws, of the times that the limit gives them.
        largest_draw: The same for 1,000 draws, of the memory target.
        tie: Share of the zero gradients in the step.
        draw_microseconds: Time of drawing all gates.
    """

    target_megabytes: float | None
    peak_megabytes: float
    longest: float
    longest_draw: float | None = None
    largest_draw: float | None = None
    tie: float | None = None
    draw_microseconds: float | None = None


@dataclass(frozen=True)
class Measured:
    """What all rows of one run are computed from."""

    setup: Setup
    rounds: int
    seconds: dict[str, list[float]]
    block_seconds: list[float]
    block_bytes: list[float]
    constant_bytes: int

    @property
    def constant(self) -> float:
        """Mean step time of constant depth."""
        return statistics.mean(self.seconds["constant"])

    def row(self, name: str, network: SdResNet, step: Step) -> StepRow:
        """Return the results of one arm; takes two more steps with it."""
        times = self.seconds[name]
        mean = statistics.mean(times)
        end = network.gates.step
        limit = None
        if name in OURS or needs_unused(name):
            closed = closed_costs(network, self.block_seconds, range(end - self.rounds, end))
            limit = self.constant - statistics.mean(closed)
        kept = saved_bytes(step, network.parameters())
        network.gates.step = end  # the same gates again
        peak = peak_bytes(step)
        return StepRow(
            arm=name,
            seconds=mean,
            ratio=mean / self.constant,
            limit=limit / self.constant if limit else None,
            quotient=mean / limit if limit else None,
            variation=statistics.stdev(times) / mean,
            megabytes=kept / 1e6,
            target_megabytes=self.bytes_at(network, range(end, end + 1))[0] / 1e6 if limit else None,
            peak_megabytes=peak / 1e6,
            longest=max(times) / mean,
            **(self.of_ours(name, network, mean) if name in OURS else {}),
        )

    def bytes_at(self, network: SdResNet, steps: range) -> list[float]:
        """Return the memory target of each of these steps."""
        return [self.constant_bytes - closed for closed in closed_costs(network, self.block_bytes, steps)]

    def of_ours(self, name: str, network: SdResNet, mean: float) -> dict[str, float]:
        """Return what the peers have not: the gates' own cost, and how steady their draws are."""
        drawn = [self.constant - closed for closed in closed_costs(network, self.block_seconds, DRAWS)]
        return {
            "longest_draw": _longest(drawn),
            "largest_draw": _longest(self.bytes_at(network, DRAWS)),
            "tie": tie_seconds(self.setup, name) / mean,
            "draw_microseconds": draw_microseconds(network.gates),
        }


def _longest(values: Sequence[float]) -> float:
    return max(values) / statistics.mean(values)


def measure(setup: Setup, rounds: int) -> list[StepRow]:
    """Run all arms side by side."""
    arms = {name: arm(setup, name) for name in ARMS}
    seconds = interleaved({name: step for name, (_, step) in arms.items()}, rounds, WARMUP)
    network, step = arms["constant"]
    kept = saved_bytes(step, network.parameters())
    measured = Measured(setup, rounds, seconds, block_seconds(setup, rounds), block_bytes(setup), kept)
    return [measured.row(name, network, step) for name, (network, step) in arms.items()]


def report(setup: Setup, rows: list[StepRow], rounds: int, output: Path | None) -> None:
    """Print a table; add its rows to a CSV file."""
    facts = {
        "depth": setup.depth,
        "p_L": setup.p_L,
        "batch": setup.batch,
        "processes": distributed.get_world_size() if distributed.is_initialized() else 1,
        "format": "channels_last" if setup.channels_last else "NCHW",
        "mode": "compiled" if setup.compiled else "eager",
        "steps": rounds,
        "hardware": hardware(),
        "torch": torch.__version__,
    }
    columns = ("arm", "ms", "/ constant", "limit", "/ limit", "variation", "kept MB", "/ target", "peak MB")
    table = Table(*columns, "tie", "draw µs", title=str(facts))
    for row in rows:
        share = row.megabytes / row.target_megabytes if row.target_megabytes else None
        table.add_row(
            row.arm,
            f"{1e3 * row.seconds:.1f}",
            f"{row.ratio:.3f}",
            *map(_number, (row.limit, row.quotient, row.variation, row.megabytes, share, row.peak_megabytes)),
            _number(row.tie, 4),
            _number(row.draw_microseconds, 1),
        )
    Console(width=140).print(table)
    if output:
        add_rows(output, [facts | vars(row) for row in rows])


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def main(
    depth: Annotated[int, typer.Option(help="Depth of the network, 6n + 2.")] = 110,
    p_l: Annotated[float, typer.Option(help="Survival probability of the last block, in (0, 1].")] = 0.5,
    batch: Annotated[int, typer.Option(help="Images a step and process.")] = 32,
    rounds: Annotated[int, typer.Option(min=2, help="Steps of each arm that count.")] = 20,
    channels_last: Annotated[bool, typer.Option(help="Memory format.")] = True,
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile the networks.")] = False,
    output: Annotated[Path | None, typer.Option(help="CSV file to add the rows to.")] = None,
) -> None:
    """Print, and add to a CSV file, the step times of all arms."""
    with this_rank() as (rank, device):
        setup = Setup(depth, p_l, batch, channels_last, compiled, device)
        rows = measure(setup, rounds)
        if rank == 0:
            report(setup, rows, rounds, output)


if __name__ == "__main__":
    run_script(main)
