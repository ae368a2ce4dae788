"""The command ``sdzoo triton``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console(highlight=False, markup=False, soft_wrap=True)


def triton(
    file: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A file that sdzoo exported.")],
    repository: Annotated[Path, typer.Argument(metavar="REPO", help="Triton's --model-repository.")],
    name: Annotated[
        str | None, typer.Option(help="Of the model.  [default: of its network and tag]", show_default=False)
    ] = None,
    version: Annotated[int, typer.Option(help="Of the model; Triton serves the highest.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or tensorrt-fp16.")] = "cpu",
    instances: Annotated[int, typer.Option(help="Copies of the model, on each GPU or on the CPU.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of each copy on the CPU; 0 for one a core.")] = 0,
    max_batch: Annotated[int | None, typer.Option(help="Images of a run.  [default: 64]", show_default=False)] = None,
    preferred_batch: Annotated[
        list[int] | None, typer.Option(help="Numbers of images to wait for (may be repeated).")
    ] = None,
    max_wait_ms: Annotated[float, typer.Option(help="How long to wait for them.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the version and configuration there.")
    ] = False,
) -> None:
    """Put an ONNX file into a model repository of NVIDIA's Triton."""
    from sdzoo.export.triton import CONFIG, Deployment, write_repository

    deployment = Deployment(device, instances, threads, max_batch, tuple(preferred_batch or ()), max_wait_ms)
    folder = write_repository(file, repository, name=name, version=version, deployment=deployment, overwrite=overwrite)
    console.print((folder / CONFIG).read_text(), end="")
    console.print(
        f"written: {folder / str(version)}; serve it by tritonserver --model-repository {repository.resolve()}"
    )
