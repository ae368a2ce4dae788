"""Run ``train_step.py`` over depths, survival probabilities, memory formats, modes and processes; draw the results.

    python benchmarks/grid.py                                              # everything, some hours on a CPU
    python benchmarks/grid.py --depth 110 --depth 1202 --format channels_last --mode eager --processes 1 --minutes 15

A cell that the CSV file already has is not run again, so the grid goes on where it was stopped. ``--minutes`` starts
no further cell after that time. Batch and rounds go by depth.
"""

import csv
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import typer
from step_plot import draw

from sdzoo.cli import run_script
from sdzoo.hardware import hardware

SCRIPT = Path(__file__).with_name("train_step.py")
# depth: images a step, over all processes, and rounds
SIZES = {20: (128, 16), 56: (64, 16), 110: (32, 16), 1202: (8, 6)}
DEPTHS = list(SIZES)
P_L = [0.5, 0.2, 0.8]
FORMATS = ["channels_last", "NCHW"]
MODES = ["eager", "compiled"]
PROCESSES = [1, 2]


@dataclass(frozen=True)
class Cell:
    """One run of ``train_step.py``; the names are those of its columns."""

    depth: int
    p_L: float  # noqa: N815  the paper's symbol
    processes: int
    format: str
    mode: str

    def command(self, rounds: int, output: Path) -> list[str]:
        """Return the command that runs it; rounds of 0 are those of its depth."""
        batch, usual = SIZES[self.depth]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes)]
        return [
            sys.executable,
            *(launcher if self.processes > 1 else []),
            *(str(SCRIPT), "--depth", str(self.depth), "--p-l", str(self.p_L)),
            *("--batch", str(batch // self.processes), "--rounds", str(rounds or usual)),
            "--channels-last" if self.format == "channels_last" else "--no-channels-last",
            *(["--compile"] if self.mode == "compiled" else []),
            *("--output", str(output)),
        ]


def finished(output: Path) -> Iterator[Cell]:
    """Yield the cells that a CSV file has from this processor or GPU."""
    if not output.exists():
        return
    with output.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["hardware"].partition(",")[0] == hardware().partition(",")[0]:
                facts = int(row["depth"]), float(row["p_L"]), int(row["processes"])
                yield Cell(*facts, row["format"], row["mode"])


def main(
    depth: Annotated[list[int], typer.Option(help="Depths.")] = DEPTHS,
    p_l: Annotated[list[float], typer.Option(help="Survival probabilities of the last block.")] = P_L,
    format_: Annotated[list[str], typer.Option("--format", help="channels_last, NCHW.")] = FORMATS,
    mode: Annotated[list[str], typer.Option(help="eager, compiled.")] = MODES,
    processes: Annotated[list[int], typer.Option(help="Ranks on this machine.")] = PROCESSES,
    rounds: Annotated[int, typer.Option(help="Steps of each arm; 0: by depth.")] = 0,
    minutes: Annotated[float, typer.Option(help="Start no cell after so many minutes.")] = float("inf"),
    output: Annotated[Path, typer.Option(help="CSV file; the plot gets its name.")] = Path(
        "docs/results/train_step.csv"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands, run nothing.")] = False,
) -> None:
    """Run the cells that are missing, then draw all."""
    began = time.monotonic()
    done = set(finished(output))
    for facts in product(depth, p_l, processes, format_, mode):
        cell = Cell(*facts)
        if cell in done or time.monotonic() - began > 60 * minutes:
            continue
        words = cell.command(rounds, output)
        print(f"[{(time.monotonic() - began) / 60:.1f} min] {shlex.join(words[1:])}", flush=True)
        if not dry_run:
            subprocess.run(words, check=True)
    if output.exists():
        draw(output)


if __name__ == "__main__":
    run_script(main)
