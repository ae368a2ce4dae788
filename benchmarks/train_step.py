"""Step time of stochastic depth beside constant depth, its peers and the limit that the block count sets.

    python benchmarks/train_step.py --depth 110 --p-l 0.5
    torchrun --nproc-per-node 2 benchmarks/train_step.py --depth 110 --p-l 0.5

The limit of a step is the constant-depth step minus the cost of the blocks that were closed in it. What a block
costs is measured in the same run, as the difference between networks with more and fewer blocks in its stage. So the
limit holds stem, head, optimiser and all-reduce in full. On a GPU the same command uses CUDA events and memory.
"""

import csv
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from interleave import interleaved
from peers import ARMS, needs_unused, torch_seeded
from rich.console import Console
from rich.table import Table
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from sdzoo import SdResNet
from sdzoo.hardware import hardware
from sdzoo.models.blocks import ResidualBlock

Step = Callable[[], None]
CHANNELS = (16, 32, 64)


@dataclass(frozen=True)
class Setup:
    """What all arms of one run share."""

    depth: int
    p_L: float  # noqa: N815  the paper's symbol
    batch: int
    channels_last: bool
    compiled: bool
    device: torch.device

    def place(self, module: Any) -> Any:
        """Move a module or a batch to the device and memory format."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return module.to(self.device, memory_format=layout)

    def images(self, channels: int = 3, size: int = 32) -> Tensor:
        """Return one batch of the same random images for all arms."""
        generator = torch.Generator().manual_seed(0)
        images: Tensor = self.place(torch.randn(self.batch, channels, size, size, generator=generator))
        return images


def arm(setup: Setup, name: str) -> tuple[SdResNet, Step]:
    """Return the network of an arm and the function that takes one training step with it."""
    network: SdResNet = setup.place(torch_seeded(name, setup.depth, 1 - setup.p_L)).train()
    model: nn.Module = torch.compile(network) if setup.compiled else network  # type: ignore[assignment]
    if distributed.is_initialized():
        model = DistributedDataParallel(model, find_unused_parameters=needs_unused(name))
    # Fused SGD fails where a parameter's first gradient is None.
    fused = not needs_unused(name)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, nesterov=True, fused=fused)
    images, labels = setup.images(), torch.arange(setup.batch, device=setup.device) % 10

    def step() -> None:
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return network, step


def block_costs(setup: Setup, rounds: int) -> list[float]:
    """Return the seconds of forward and backward of each block, measured, without its shortcut.

    Blocks of one shape cost the same: the difference of a stage of many and a stage of few, divided by their number.
    """
    n = (setup.depth - 2) // 6
    many = min(n, 9)
    shapes = [(width, width, 1, 32 >> stage) for stage, width in enumerate(CHANNELS)]
    stages = {
        (index, count): _stage_step(setup, shape, count) for index, shape in enumerate(shapes) for count in (1, many)
    }
    halving = {index: _stage_step(setup, (CHANNELS[index - 1], CHANNELS[index], 2, 64 >> index), 1) for index in (1, 2)}
    seconds = interleaved({str(key): step for key, step in (stages | halving).items()}, rounds)
    median = {key: statistics.median(seconds[str(key)]) for key in stages | halving}
    same = [(median[index, many] - median[index, 1]) / max(many - 1, 1) for index in range(3)]
    # A block that halves the resolution, alone with its loss: what a block of its output's shape costs, scaled.
    first = [same[0], *(same[index] * median[index] / median[index, 1] for index in (1, 2))]
    return [cost for index in range(3) for cost in (first[index], *[same[index]] * (n - 1))]


def _stage_step(setup: Setup, shape: tuple[int, int, int, int], blocks: int) -> Step:
    inner, width, stride, size = shape
    chain = nn.Sequential(
        ResidualBlock(inner, width, stride, 1.0), *(ResidualBlock(width, width, 1, 1.0) for _ in range(blocks - 1))
    )
    stage = setup.place(chain).train()
    images = setup.images(inner, size).requires_grad_()
    return lambda: stage(images).sum().backward()


def saved_bytes(step: Step) -> int:
    """Return the bytes that autograd keeps for the backward of one step, every storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(storages.values())


@dataclass(frozen=True)
class Row:
    """Results of one arm: seconds, and ratios to constant depth and to the limit of the same draws."""

    arm: str
    seconds: float
    ratio: float
    limit: float | None
    quotient: float | None
    variation: float
    megabytes: float


def measure(setup: Setup, rounds: int) -> list[Row]:
    """Run all arms side by side."""
    arms = {name: arm(setup, name) for name in ARMS}
    first = {name: network.gates.step for name, (network, _) in arms.items()}
    warmup = 2
    seconds = interleaved({name: step for name, (_, step) in arms.items()}, rounds, warmup)
    costs = block_costs(setup, rounds)
    constant = statistics.mean(seconds["constant"])
    rows = []
    for name, (network, step) in arms.items():
        steps = range(first[name] + warmup, first[name] + warmup + rounds)
        closed = [sum(c for c, is_open in zip(costs, network.gates.at(s), strict=True) if not is_open) for s in steps]
        skips = name in ("bernoulli", "systematic") or needs_unused(name)
        limit = constant - statistics.mean(closed) if skips else None
        mean = statistics.mean(seconds[name])
        rows.append(
            Row(
                arm=name,
                seconds=mean,
                ratio=mean / constant,
                limit=limit / constant if limit else None,
                quotient=mean / limit if limit else None,
                variation=statistics.stdev(seconds[name]) / mean,
                megabytes=statistics.mean(saved_bytes(step) for _ in range(3)) / 1e6,
            )
        )
    return rows


def main(
    depth: Annotated[int, typer.Option(help="Depth of the network, 6n + 2.")] = 110,
    p_l: Annotated[float, typer.Option(help="Survival probability of the last block, in (0, 1].")] = 0.5,
    batch: Annotated[int, typer.Option(help="Images a step and process.")] = 32,
    rounds: Annotated[int, typer.Option(help="Steps of each arm that count.")] = 20,
    channels_last: Annotated[bool, typer.Option(help="Memory format.")] = True,
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile the networks.")] = False,
    output: Annotated[Path | None, typer.Option(help="CSV file to add the rows to.")] = None,
) -> None:
    """Print, and add to a CSV file, the step times of all arms."""
    if "RANK" in os.environ:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )
    setup = Setup(depth, p_l, batch, channels_last, compiled, device)
    rows = measure(setup, rounds)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        report(setup, rows, rounds, output)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def report(setup: Setup, rows: list[Row], rounds: int, output: Path | None) -> None:
    """Print a table; add its rows to a CSV file."""
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    facts = {
        "depth": setup.depth,
        "p_L": setup.p_L,
        "batch": setup.batch,
        "processes": processes,
        "format": "channels_last" if setup.channels_last else "NCHW",
        "mode": "compiled" if setup.compiled else "eager",
        "steps": rounds,
        "hardware": hardware(),
        "torch": torch.__version__,
    }
    table = Table("arm", "ms", "/ constant", "limit", "/ limit", "variation", "saved MB", title=str(facts))
    for row in rows:
        limit = ("", "") if row.limit is None else (f"{row.limit:.3f}", f"{row.quotient:.3f}")
        numbers = (
            f"{1e3 * row.seconds:.1f}",
            f"{row.ratio:.3f}",
            *limit,
            f"{row.variation:.3f}",
            f"{row.megabytes:.1f}",
        )
        table.add_row(row.arm, *numbers)
    Console(width=130).print(table)
    if output:
        add_rows(output, [facts | vars(row) for row in rows])


def add_rows(output: Path, rows: list[dict[str, Any]]) -> None:
    """Add rows to a CSV file, with the header where the file is new."""
    new = not output.exists()
    with output.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    typer.run(main)
