"""Writing the ONNX file: ours beside torch's exporter, the same network and session in the same run.

    python benchmarks/export.py --depth 20 --depth 110

The torch exporter takes about a minute at 1202 layers.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import onnx
import timm
import torch
import typer
from onnxruntime import InferenceSession
from rich.console import Console
from rich.table import Table

from sdzoo import SdResNet
from sdzoo.export import write_onnx
from sdzoo.hardware import hardware

Writer = Callable[[SdResNet, Path], None]


def torch_exporter(model: SdResNet, path: Path) -> None:
    """Write what ``torch.onnx.export`` makes of the network, batch free."""
    images = torch.randn(2, 3, 32, 32)
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(model, (images,), path, dynamo=True, dynamic_shapes=(batch,), verbose=False)


WRITERS: dict[str, Writer] = {"sdzoo": write_onnx, "torch.onnx.export": torch_exporter}


def seconds(work: Callable[[], object]) -> float:
    """Return how long one call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def row(depth: int, writer: str, folder: Path, repeats: int) -> list[str]:
    """Measure one writer at one depth."""
    model = timm.create_model(f"sd_resnet{depth}").eval()
    path = folder / "model.onnx"
    written = statistics.median(seconds(lambda: WRITERS[writer](model, path)) for _ in range(repeats))
    opened = statistics.median(seconds(lambda: InferenceSession(path)) for _ in range(repeats))
    graph = onnx.load(path).graph
    size = sum(file.stat().st_size for file in folder.iterdir())
    operators = sorted({node.op_type for node in graph.node})
    return [
        str(depth),
        writer,
        f"{written:.3f}",
        f"{size / 1e6:.2f}",
        f"{len(graph.node)}",
        f"{opened:.3f}",
        " ".join(operators),
    ]


def main(
    depth: Annotated[list[int], typer.Option(help="Depths of the networks.")] = [20, 110],  # noqa: B006  typer's way
    repeats: Annotated[int, typer.Option(min=1, help="Times that each writer writes; the median counts.")] = 3,
) -> None:
    """Print seconds, megabytes, nodes, seconds to open a session, and operators."""
    table = Table("depth", "writer", "seconds", "MB", "nodes", "session s", "operators", title=hardware())
    for each in depth:
        for writer in WRITERS:
            with TemporaryDirectory() as folder:
                table.add_row(*row(each, writer, Path(folder), repeats))
    Console(width=160).print(table)


if __name__ == "__main__":
    typer.run(main)
