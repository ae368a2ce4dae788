"""Served throughput of one-image requests, as a share of direct onnxruntime in the same run, for both ingresses.

    apt-get install wrk
    python benchmarks/serving.py --depth 20 --depth 110 --output docs/results/serving.csv

The peer is a loop at batch 1 with the threads that the replica has. The client is wrk: it is written in C, takes a few
percent of a core, and sends the binary tensors of the Open Inference Protocol. All arms take turns in every round, so
that drift hits all alike; the table has the medians of the rounds.
"""

import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import timm
import torch
import typer
from rich.console import Console
from rich.table import Table
from rows import add_rows

import sdzoo
from sdzoo.errors import InputError
from sdzoo.export import write_onnx
from sdzoo.hardware import processor
from sdzoo.runtime import session

SIZE = 32
SCRIPT = Path(__file__).with_name("serving.lua")
INGRESSES = ("proxy", "haproxy")
START = 300  # seconds
WARM_UP = 2


@dataclass(frozen=True)
class Result:
    """What one arm gave in one round: requests a second, milliseconds at two percentiles, unanswered requests."""

    rate: float
    p50: float
    p99: float
    errors: int = 0


def images() -> np.ndarray:
    """Return one image."""
    return np.random.default_rng(0).standard_normal((1, 3, SIZE, SIZE), dtype=np.float32)


def write_models(depths: list[int], folder: Path) -> dict[int, Path]:
    """Write a network of each depth."""
    paths = {depth: folder / f"net{depth}.onnx" for depth in depths}
    for depth, path in paths.items():
        torch.manual_seed(0)
        write_onnx(timm.create_model(f"sd_resnet{depth}").eval(), path, size=(SIZE, SIZE))
    return paths


def direct(path: Path, threads: int, seconds: float) -> Result:
    """Run the file in a loop in this process."""
    opened, feed = session(path, "cpu", threads=threads), {"images": images()}
    times: list[float] = []
    for limit in (WARM_UP, seconds):
        times.clear()
        began = last = time.perf_counter()
        while last < began + limit:
            opened.run(None, feed)
            now = time.perf_counter()
            times.append(now - last)
            last = now
    p50, p99 = (float(value) for value in np.percentile(times, [50, 99]) * 1e3)
    return Result(len(times) / (last - began), p50, p99)


@contextmanager
def serving(ingress: str, models: dict[int, Path], cpus: int) -> Iterator[str]:
    """Serve the files behind an ingress; yield the address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    files = [f"net{depth}={path}" for depth, path in models.items()]
    options = [
        "--ingress",
        ingress,
        "--port",
        str(port),
        "--cpus",
        str(cpus),
        "--log-dir",
        str(models[min(models)].parent),
    ]
    command = [sys.executable, "-c", "from sdzoo.cli import main; main()", "serve", *files, *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        if not any(line.startswith("serving on") for line in server.stdout):
            raise InputError(f"the server with ingress {ingress} ended with status {server.wait()}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def write_body(path: Path) -> dict[str, str]:
    """Write a request's body; return what the script needs to know of it."""
    data = images().tobytes()
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "images", "shape": [1, 3, SIZE, SIZE], "datatype": "FP32", "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    path.write_bytes(head + data)
    return {"BODY": str(path), "HEADER": str(len(head))}


def load(url: str, clients: int, seconds: int, body: dict[str, str]) -> Result:
    """Ask with so many clients at a time, each on a connection that it keeps."""
    command = ["wrk", "-t1", f"-c{clients}", "--timeout", "30s", "-s", str(SCRIPT)]
    for limit in (WARM_UP, seconds):
        ended = subprocess.run(
            [*command, f"-d{limit}s", url], env={**os.environ, **body}, capture_output=True, text=True, check=True
        )
    found = re.search(r"RESULT (\d+) (\d+) ([\d.]+) ([\d.]+) (\d+)", ended.stdout)
    if found is None:
        raise InputError(f"wrk says nothing of its results: {ended.stdout}")
    requests, microseconds, p50, p99, errors = (float(value) for value in found.groups())
    return Result(requests / microseconds * 1e6, p50 / 1e3, p99 / 1e3, int(errors))


Arm = tuple[int, str, int]  # depth, ingress or "direct", clients


def measure(depths: list[int], clients: list[int], cpus: int, seconds: int, rounds: int) -> dict[Arm, list[Result]]:
    """Return what every arm gave in every round."""
    results: dict[Arm, list[Result]] = defaultdict(list)
    with TemporaryDirectory() as folder, ExitStack() as servers:
        models, body = write_models(depths, Path(folder)), write_body(Path(folder) / "body")
        urls = {ingress: servers.enter_context(serving(ingress, models, cpus)) for ingress in INGRESSES}
        for _ in range(rounds):
            for depth, path in models.items():
                results[depth, "direct", 1].append(direct(path, cpus, seconds))
                for count in clients:
                    for ingress, url in urls.items():
                        infer = f"{url}/v2/models/net{depth}/infer"
                        results[depth, ingress, count].append(load(infer, count, seconds, body))
    return results


def main(
    depth: Annotated[list[int] | None, typer.Option(help="Depths to serve.")] = None,
    clients: Annotated[list[int] | None, typer.Option(help="Clients at a time.")] = None,
    cpus: Annotated[int, typer.Option(help="Threads of the replica, and of direct onnxruntime.")] = 1,
    seconds: Annotated[int, typer.Option(help="Of every arm in every round.")] = 10,
    rounds: Annotated[int, typer.Option(help="Rounds.")] = 3,
    output: Annotated[Path | None, typer.Option(help="CSV file to add to.")] = None,
) -> None:
    """Measure served throughput and latency beside direct onnxruntime."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    depths = depth or [20, 110]
    results = measure(depths, clients or [1, 16, 64], cpus, seconds, rounds)
    table = Table("depth", "through", "clients", "requests/s", "of direct", "p50, ms", "p99, ms", "errors")
    rows = []
    for (layers, through, count), rounds_of_arm in results.items():
        rate, p50, p99 = (
            statistics.median(getattr(result, name) for result in rounds_of_arm) for name in ("rate", "p50", "p99")
        )
        pairs = zip(rounds_of_arm, results[layers, "direct", 1], strict=True)
        share = statistics.median(result.rate / peer.rate for result, peer in pairs)  # within one round
        errors = sum(result.errors for result in rounds_of_arm)
        row = {"depth": layers, "through": through, "clients": count, "requests/s": f"{rate:.1f}"}
        row |= {"of direct": f"{share:.3f}", "p50, ms": f"{p50:.2f}", "p99, ms": f"{p99:.2f}", "errors": errors}
        table.add_row(*map(str, row.values()))
        facts = {"threads": cpus, "cores": os.cpu_count(), "seconds": seconds, "rounds": rounds}
        rows.append({**row, **facts, "processor": processor(), "sdzoo": sdzoo.__version__})
    Console().print(table)
    if output:
        add_rows(output, rows)


if __name__ == "__main__":
    typer.run(main)
