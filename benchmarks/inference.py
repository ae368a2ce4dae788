"""Inference: our graph beside the other ways to run the same network, all in one run.

    python benchmarks/inference.py --depth 20 --depth 110 --output docs/results/inference.csv
    python benchmarks/inference.py --device tensorrt

Every engine takes its turn in every round, each turn at least 0.2 s long so that the threads of the one before, which
spin for a while, cost it little. A large float32 matrix product takes its turn too: what it reaches is the machine's
peak, and the share of it that an engine reaches in multiplications of the network is printed beside its images/s.
torch.compile needs about a second of compilation for each layer and batch; leave it out by naming the other engines.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from engines import ENGINES, OURS, ROUNDED, SIZE, Engine, Images, Setup, engines_on
from interleave import interleaved
from rich.console import Console
from rich.table import Table
from rows import add_rows

from sdzoo.cli import run_script
from sdzoo.devices import DEVICES
from sdzoo.errors import InputError
from sdzoo.hardware import hardware
from sdzoo.hub.catalogue import cost

TURN = 0.2  # seconds, at least
GEMM = {"cpu": 1024, "cuda": 8192}  # rows and columns of the matrices
EXACT = {"cpu": 1e-3, "cuda": 0.05}  # of the largest logit: how far engines in float32, TF32 on a GPU, may be from ours
DEPTHS, BATCHES = [20, 110, 1202], [1, 8, 32, 128]


def measure(setup: Setup, batch: int, names: list[str], rounds: int) -> list[dict[str, Any]]:
    """Return a row for each engine at one depth and batch."""
    images = np.random.default_rng(0).uniform(-1, 1, (batch, 3, SIZE, SIZE)).astype(np.float32)
    engines = {name: ENGINES[name](setup, batch) for name in names}
    far = differences(engines, images)
    check(far, EXACT[setup.torch_device])
    times, best = turns(engines, images, setup.torch_device, rounds)
    peak = 2 * GEMM[setup.torch_device] ** 3 / best
    _, macs = cost(setup.network, (3, SIZE, SIZE))
    return [
        {
            "engine": name,
            "depth": setup.depth,
            "batch": batch,
            "images_per_second": f"{batch / seconds:.1f}",
            "time_of_ours": f"{seconds / times[OURS]:.3f}",
            "share_of_peak": f"{2 * macs * batch / seconds / peak:.3f}",
            "peak_gflops": f"{peak / 1e9:.0f}",
            "difference": f"{far[name]:.1e}",
        }
        for name, seconds in times.items()
    ]


def differences(engines: Mapping[str, Engine], images: Images) -> dict[str, float]:
    """Return how far the logits of each engine are from ours, as a share of the largest."""
    ours = engines[OURS](images)
    return {name: float(np.abs(run(images) - ours).max() / np.abs(ours).max()) for name, run in engines.items()}


def check(far: Mapping[str, float], allowed: float) -> None:
    """Raise InputError where an engine in float32 computes something else than ours."""
    for name, share in far.items():
        if name not in ROUNDED and not share <= allowed:
            raise InputError(f"{name} differs by {share:.1e} of the largest logit, must be at most {allowed:g}")


def turns(engines: Mapping[str, Engine], images: Images, device: str, rounds: int) -> tuple[dict[str, float], float]:
    """Return the median seconds of one call of each engine, and the least of one matrix product."""
    calls = {name: lambda engine=engine: engine(images) for name, engine in engines.items()}
    arms = {name: repeated(call) for name, call in {**calls, "GEMM": matrix_product(device)}.items()}
    measured = interleaved({name: turn for name, (turn, _) in arms.items()}, rounds, warmup=1)
    seconds = {name: [each / arms[name][1] for each in times] for name, times in measured.items()}
    return {name: statistics.median(seconds[name]) for name in engines}, min(seconds["GEMM"])


def repeated(call: Callable[[], object]) -> tuple[Callable[[], None], int]:
    """Return a turn, so many calls that it takes long enough, and their number."""
    call()
    began = time.perf_counter()
    call()
    count = max(1, round(TURN / (time.perf_counter() - began)))

    def turn() -> None:
        for _ in range(count):
            call()

    return turn, count


def matrix_product(device: str) -> Callable[[], object]:
    """Return the multiplication of two large matrices that ends with the result in memory."""
    torch.backends.cuda.matmul.allow_tf32 = True  # as convolutions do
    first, second = torch.randn(2, GEMM[device], GEMM[device], device=device)
    return lambda: torch.mm(first, second)[0, 0].item()


def main(
    depth: Annotated[list[int], typer.Option(help="Depths of the networks.")] = DEPTHS,
    batch: Annotated[list[int], typer.Option(help="Images at a time.")] = BATCHES,
    engine: Annotated[list[str] | None, typer.Option(help="Engines to compare with ours.  [default: all]")] = None,
    device: Annotated[str, typer.Option(help="cpu, openvino, cuda, tensorrt or tensorrt-fp16.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="Threads of every engine on the CPU.")] = torch.get_num_threads(),
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each engine; the median counts.")] = 7,
    output: Annotated[Path | None, typer.Option(help="CSV file to add the rows to.")] = None,
) -> None:
    """Print images/s, the time as a multiple of ours, and the share of the machine's peak."""
    if device not in DEVICES:
        raise InputError(f"device is {device!r}, must be one of {', '.join(DEVICES)}")
    names = engines_on(device)
    for name in engine or []:
        if name not in names:
            raise InputError(f"engine is {name!r}, must be one of {', '.join(names)}")
    names = [name for name in names if name == OURS or name in (engine or names)]
    torch.set_num_threads(threads)
    facts = {"hardware": hardware(), "device": device, "threads": threads, "rounds": rounds}
    for each in depth:
        with TemporaryDirectory() as folder:
            setup = Setup(each, device, threads, Path(folder))
            for size in batch:
                rows = measure(setup, size, names, rounds)
                show(rows)
                if output:
                    add_rows(output, [facts | row for row in rows])


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows of one depth and batch."""
    first = rows[0]
    table = Table("engine", "images/s", "time / ours", "share of peak", "logits differ by")
    for row in rows:
        table.add_row(
            *(row[key] for key in ("engine", "images_per_second", "time_of_ours", "share_of_peak", "difference"))
        )
    console = Console(width=120)
    console.print(f"depth {first['depth']}, batch {first['batch']}: {hardware()}, peak {first['peak_gflops']} GFLOP/s")
    console.print(table)


if __name__ == "__main__":
    run_script(main)
