"""Served throughput of one-image requests, as a share of direct onnxruntime in the same run, for both ingresses.

    apt-get install wrk
    python -m venv /tmp/mlserver && /tmp/mlserver/bin/pip install mlserver onnxruntime "uvloop<0.22"
    python benchmarks/serving.py --mlserver /tmp/mlserver/bin/mlserver --output docs/results/serving.csv

The peer is a loop at batch 1 with the threads that the replica has. The client is wrk: it is written in C, takes a few
percent of a core, and sends the binary tensors of the Open Inference Protocol. MLServer, which has requirements that
contradict ours and so an environment of its own, takes only JSON over HTTP: both answer JSON then. One server runs at a
time, for idle ones cost too; in every round the loop and its loads take turns, so that drift hits all alike. The table
has the medians of the rounds.
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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from urllib.request import urlopen

import numpy as np
import timm
import torch
import typer
from rich.console import Console
from rich.table import Table
from rows import add_rows

import sdzoo
from sdzoo.cli import run_script
from sdzoo.errors import InputError
from sdzoo.export import write_onnx
from sdzoo.hardware import processor
from sdzoo.runtime import session

SIZE = 32
SCRIPT = Path(__file__).with_name("serving.lua")
START = 300  # seconds
WARM_UP = 2


@dataclass(frozen=True)
class Result:
    """What one arm gave in one round.

    Attributes:
        rate: Requests a second.
        p50: Milliseconds that half of the requests took at most.
        p99: The same for 99 of 100.
        errors: Requests without an answer.
        share: Of the rate of direct onnxruntime in the same round.
    """

    rate: float
    p50: float
    p99: float
    errors: int = 0
    share: float = 1.0


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


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a server, and end it."""
    server = subprocess.Popen(command, text=True, **options)
    try:
        yield server
    finally:
        server.terminate()
        server.wait()


@contextmanager
def serving(ingress: str, models: dict[int, Path], cpus: int) -> Iterator[str]:
    """Serve the files behind an ingress; yield the address."""
    port = str(free_port())
    files = [f"net{depth}={path}" for depth, path in models.items()]
    options = ["--ingress", ingress, "--port", port, "--cpus", str(cpus)]
    options += ["--log-dir", str(models[min(models)].parent)]
    command = [sys.executable, "-c", "from sdzoo.cli import main; main()", "serve", *files, *options]
    with running(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        if not any(line.startswith("serving on") for line in server.stdout):
            raise InputError(f"the server with ingress {ingress} ended with status {server.wait()}")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def serving_by_mlserver(program: Path, models: dict[int, Path], cpus: int) -> Iterator[str]:
    """Serve the files by MLServer in one process, which it does faster than with its default of a worker besides."""
    folder = models[min(models)].parent / "mlserver"
    ports = {name: free_port() for name in ("http_port", "grpc_port", "metrics_port")}
    write_json(folder / "settings.json", {"host": "127.0.0.1", "parallel_workers": 0, **ports})
    for depth, path in models.items():
        name = f"net{depth}"
        settings = {"name": name, "implementation": "mlserver_runtime.OnnxModel", "parameters": {"uri": str(path)}}
        write_json(folder / name / "model-settings.json", settings)
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "SDZOO_THREADS": str(cpus)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with running([str(program), "start", str(folder)], env=environment, **quiet):
        url = f"http://127.0.0.1:{ports['http_port']}"
        await_answer(f"{url}/v2/health/ready")
        yield url


def write_json(path: Path, facts: dict[str, Any]) -> None:
    """Write a file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts))


def await_answer(url: str) -> None:
    """Wait until a server answers."""
    began = time.monotonic()
    while True:
        try:
            with urlopen(url):
                return
        except OSError as error:
            if time.monotonic() > began + START:
                raise InputError(f"nothing answers at {url}: {error}") from error
            time.sleep(0.5)


def write_bodies(folder: Path) -> dict[str, dict[str, str]]:
    """Write a request's body in both forms; return what the script needs to know of each."""
    tensor = {"name": "images", "shape": [1, 3, SIZE, SIZE], "datatype": "FP32"}
    data, binary, text = images(), folder / "body", folder / "body.json"
    sized = {**tensor, "parameters": {"binary_data_size": data.nbytes}}
    head = json.dumps({"inputs": [sized], "parameters": {"binary_data_output": True}}).encode()
    binary.write_bytes(head + data.tobytes())
    text.write_text(json.dumps({"inputs": [{**tensor, "data": data.ravel().tolist()}]}))
    return {"binary": {"BODY": str(binary), "HEADER": str(len(head))}, "JSON": {"BODY": str(text)}}


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


Server = Callable[[dict[int, Path], int], AbstractContextManager[str]]  # of networks by depth, with so many threads
Arm = tuple[int, str, int]  # depth, server or "direct", clients


def servers_with(mlserver: Path | None) -> dict[str, tuple[Server, tuple[str, ...]]]:
    """Return the servers by name, and in which forms each is asked."""
    servers: dict[str, tuple[Server, tuple[str, ...]]] = {
        "proxy": (partial(serving, "proxy"), ("binary",)),
        "haproxy": (partial(serving, "haproxy"), ("binary", "JSON") if mlserver else ("binary",)),
    }
    if mlserver:
        servers["MLServer"] = (partial(serving_by_mlserver, mlserver), ("JSON",))
    return servers


def measure(
    depths: list[int], clients: list[int], cpus: int, seconds: int, rounds: int, mlserver: Path | None
) -> dict[Arm, list[Result]]:
    """Return what every arm gave in every round."""
    results: dict[Arm, list[Result]] = defaultdict(list)
    for name, (server, forms) in servers_with(mlserver).items():
        with TemporaryDirectory() as folder:
            models, bodies = write_models(depths, Path(folder)), write_bodies(Path(folder))
            with server(models, cpus) as url:
                for _, (depth, path) in product(range(rounds), models.items()):
                    peer = direct(path, cpus, seconds)
                    results[depth, "direct", 1].append(peer)
                    for count, form in product(clients, forms):
                        result = load(f"{url}/v2/models/net{depth}/infer", count, seconds, bodies[form])
                        arm = depth, f"{name}, {form}", count
                        results[arm].append(replace(result, share=result.rate / peer.rate))
    return dict(sorted(results.items(), key=lambda arm: (arm[0][0], arm[0][2])))


def main(
    depth: Annotated[list[int] | None, typer.Option(help="Depths to serve.")] = None,
    clients: Annotated[list[int] | None, typer.Option(help="Clients at a time.")] = None,
    cpus: Annotated[int, typer.Option(help="Threads of the replica, and of direct onnxruntime.")] = 1,
    seconds: Annotated[int, typer.Option(help="Of every arm in every round.")] = 10,
    rounds: Annotated[int, typer.Option(help="Rounds.")] = 3,
    mlserver: Annotated[Path | None, typer.Option(help="MLServer's program, to run it too.")] = None,
    output: Annotated[Path | None, typer.Option(help="CSV file to add to.")] = None,
) -> None:
    """Measure served throughput and latency beside direct onnxruntime."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    depths = depth or [20, 110]
    results = measure(depths, clients or [1, 16, 64], cpus, seconds, rounds, mlserver)
    table = Table("depth", "through", "clients", "requests/s", "of direct", "p50, ms", "p99, ms", "errors")
    rows = []
    for (layers, through, count), rounds_of_arm in results.items():
        rate, p50, p99, share = (
            statistics.median(getattr(result, name) for result in rounds_of_arm)
            for name in ("rate", "p50", "p99", "share")
        )
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
    run_script(main)
