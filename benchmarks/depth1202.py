"""What a training step of ResNet-1202 needs: seconds to create it, memory of a batch with and without checkpointing.

    python benchmarks/depth1202.py --output docs/results/depth1202.csv

Every case runs alone in a fresh process: one step on two images, then one on the whole batch with the same gates. The
peak is that of the process, so Python, PyTorch, weights, gradients and momentum are in it. A case that would need
more than is free is not run: its estimate alone is told, from the activations that the two images kept. Times are
those of the processor, whatever else runs on the machine.

glibc keeps freed activations in gaps that later ones do not fit: with MALLOC_MMAP_THRESHOLD_=1000000 in the
environment it gives them back, and checkpointing saves what it should.
"""

import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer
from memory import saved_bytes
from rich.console import Console
from rich.table import Table
from rows import add_rows
from torch.nn.functional import cross_entropy

import sdzoo
from sdzoo.cli import run_script
from sdzoo.hardware import hardware

FEW = 2
MALLOC = "MALLOC_MMAP_THRESHOLD_"
GAPS = 1.5  # times the activations: what glibc may need for them


@dataclass(frozen=True)
class Case:
    """One kind of training step."""

    p_L: float  # noqa: N815  the paper's symbol
    size: int
    checkpointing: bool
    batch: int


@dataclass(frozen=True)
class Result:
    """Seconds of the processor and gigabytes (1e9 bytes); None where the case did not fit and was not run."""

    create_seconds: float
    open_blocks: int
    estimated_gb: float | None
    peak_gb: float | None
    step_seconds: float | None


def run(case: Case) -> Result:
    """Create the network and train it for one step."""
    began = time.process_time()
    network: sdzoo.SdResNet = timm.create_model("sd_resnet1202", drop_path_rate=1 - case.p_L)
    created = time.process_time() - began
    network.train().to(memory_format=torch.channels_last)
    network.set_grad_checkpointing(case.checkpointing)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True, fused=True)

    def step(batch: int) -> None:
        network.gates.step = 0
        images = torch.randn(batch, 3, case.size, case.size).to(memory_format=torch.channels_last)
        cross_entropy(network(images), torch.arange(batch) % 10).backward()
        optimizer.step()
        optimizer.zero_grad()

    kept = saved_bytes(lambda: step(FEW), network.parameters())
    # What checkpointing keeps, the inputs of the blocks, does not pass the hooks that count it.
    more = None if case.checkpointing else kept / FEW * (case.batch - FEW)
    estimated = None if more is None else (peak_bytes() + more) / 1e9
    if more is not None and GAPS * more > free_bytes():
        return Result(created, sum(network.gates.at(0)), estimated, None, None)
    began = time.process_time()
    step(case.batch)
    seconds = time.process_time() - began
    return Result(created, sum(network.gates.at(0)), estimated, peak_bytes() / 1e9, seconds)


def peak_bytes() -> int:
    """Return the most memory that this process has had; Linux counts in units of 1,024 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_bytes() -> int:
    """Return the memory that Linux could give to a process now, caches included."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def main(
    sizes: Annotated[list[int], typer.Option(help="Height and width of the images.")] = [28, 32],  # noqa: B006
    batch: Annotated[int, typer.Option(help="Images a step.")] = 128,
    output: Annotated[Path | None, typer.Option(help="CSV file to add the rows to.")] = None,
) -> None:
    """Measure constant depth and p_L = 0.5, with and without gradient checkpointing, one case at a time."""
    table = Table("p_L", "size", "checkpointing", "open", "created s", "estimated GB", "peak GB", "step s")
    for checkpointing, size, p_L in product((True, False), sizes, (0.5, 1.0)):
        case = Case(p_L, size, checkpointing, batch)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            result = pool.submit(run, case).result()
        facts = {"malloc": os.environ.get(MALLOC, "default"), "hardware": hardware(), "torch": torch.__version__}
        if output:
            add_rows(output, [vars(case) | vars(result) | facts])
        numbers = (result.create_seconds, result.estimated_gb, result.peak_gb, result.step_seconds)
        words = ["" if number is None else f"{number:.2f}" for number in numbers]
        table.add_row(str(p_L), str(size), str(checkpointing), str(result.open_blocks), *words)
    Console(width=110).print(table)


if __name__ == "__main__":
    run_script(main)
