"""Writing the ONNX file: ours beside torch's exporter and timm's, the same networks in the same run.

    python benchmarks/export.py --depth 20 --depth 110 --depth 1202 --repeats 1 --output docs/results/export.csv

Each writer also writes from two copies of this package in folders of different names: the same bytes or not. At 1202
layers torch's exporter takes some minutes, three times with --repeats 1.
"""

import hashlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import onnx
import timm
import torch
import typer
from engines import SIZE, write_by_timm
from onnxruntime import InferenceSession
from rich.console import Console
from rich.table import Table
from rows import add_rows

import sdzoo
from sdzoo import SdResNet
from sdzoo.cli import run_script
from sdzoo.errors import InputError
from sdzoo.export import write_onnx
from sdzoo.hardware import hardware

Writer = Callable[[SdResNet, Path], None]

PACKAGE = Path(sdzoo.__file__).parent
# what runs in the folder of a copy: this file's folder, depth, writer, the file to write
COPY = """
import sys
from pathlib import Path
import sdzoo
assert Path(sdzoo.__file__).is_relative_to(Path.cwd()), sdzoo.__file__
sys.path.insert(0, sys.argv[1])
from export import write
write(int(sys.argv[2]), *sys.argv[3:])
"""


def torch_exporter(model: SdResNet, path: Path) -> None:
    """Write what ``torch.onnx.export`` makes of the network, batch free."""
    images = torch.randn(2, 3, SIZE, SIZE)
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(model, (images,), path, dynamo=True, dynamic_shapes=(batch,), verbose=False)


def ours(model: SdResNet, path: Path) -> None:
    """Write our graph."""
    write_onnx(model, path, size=(SIZE, SIZE))


WRITERS: dict[str, Writer] = {"sdzoo": ours, "torch.onnx.export": torch_exporter, "timm": write_by_timm}


def network(depth: int) -> SdResNet:
    """Return a network with the same random weights in every process."""
    torch.manual_seed(0)
    model: SdResNet = timm.create_model(f"sd_resnet{depth}")
    return model.eval()


def write(depth: int, writer: str, path: str) -> None:
    """Write one file."""
    WRITERS[writer](network(depth), Path(path))


def seconds(work: Callable[[], object]) -> float:
    """Return how long one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def row(depth: int, writer: str, folder: Path, repeats: int) -> dict[str, Any]:
    """Measure one writer at one depth."""
    model, path = network(depth), folder / "model.onnx"
    written = statistics.median(seconds(lambda: WRITERS[writer](model, path)) for _ in range(repeats))
    opened = statistics.median(seconds(lambda: InferenceSession(path)) for _ in range(repeats))
    graph = onnx.load(path).graph
    return {
        "depth": depth,
        "writer": writer,
        "seconds": f"{written:.3f}",
        "bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "nodes": len(graph.node),
        "session_seconds": f"{opened:.3f}",
        "same_bytes": len({digest_from(folder / name, depth, writer) for name in ("here", "elsewhere")}) == 1,
        "operators": " ".join(sorted({node.op_type for node in graph.node})),
    }


def digest_from(folder: Path, depth: int, writer: str) -> str:
    """Return the sha256 of all that a writer writes when this package is imported from a copy in that folder."""
    target = folder / "written"
    target.mkdir(parents=True)
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    arguments = [str(Path(__file__).resolve().parent), str(depth), writer, str(target / "model.onnx")]
    subprocess.run([sys.executable, "-c", COPY, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    digest = hashlib.sha256()
    for file in sorted(target.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def main(
    depth: Annotated[list[int], typer.Option(help="Depths of the networks.")] = [20, 110],  # noqa: B006  typer's way
    writer: Annotated[list[str], typer.Option(help="Writers to compare.")] = list(WRITERS),  # noqa: B006
    repeats: Annotated[int, typer.Option(min=1, help="Times that each writer writes; the median counts.")] = 3,
    output: Annotated[Path | None, typer.Option(help="CSV file to add the rows to.")] = None,
) -> None:
    """Print seconds, megabytes, nodes, seconds to open a session, whether the bytes depend on the path, operators."""
    if unknown := [name for name in writer if name not in WRITERS]:
        raise InputError(f"writer is {unknown[0]!r}, must be one of {', '.join(WRITERS)}")
    console = Console(width=160)
    for each in depth:
        table = Table("writer", "seconds", "MB", "nodes", "session s", "same bytes", "operators")
        for name in writer:
            with TemporaryDirectory() as folder:
                measured = row(each, name, Path(folder), repeats)
            if output:
                add_rows(output, [{"hardware": hardware(), "repeats": repeats} | measured])
            table.add_row(*cells(measured))
        console.print(f"depth {each}: {hardware()}")
        console.print(table)


def cells(measured: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    exact = (str(measured[key]) for key in ("nodes", "session_seconds", "same_bytes", "operators"))
    return [measured["writer"], measured["seconds"], f"{measured['bytes'] / 1e6:.2f}", *exact]


if __name__ == "__main__":
    run_script(main)
