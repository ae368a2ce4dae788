"""The command ``sdzoo serve``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sdzoo.errors import InputError

console = Console(highlight=False, markup=False, soft_wrap=True)


def serve(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL.onnx", help="FILE, NAME=FILE or NAME:VERSION=FILE, one or more.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    ingress: Annotated[str, typer.Option(help="proxy: Ray's own; haproxy: faster, opens more ports.")] = "proxy",
    replicas: Annotated[int, typer.Option(help="Processes that serve, each with all models.")] = 1,
    cpus: Annotated[int, typer.Option(help="Threads of each replica's runs.")] = 1,
    gpus: Annotated[float, typer.Option(help="GPUs of each replica; a fraction shares one.")] = 0,
    device: Annotated[
        str | None,
        typer.Option(help="cpu, openvino, cuda, tensorrt or tensorrt-fp16.  [default: cuda with --gpus, else cpu]"),
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Images of one run, and of one request.")] = 32,
    max_wait_ms: Annotated[float, typer.Option(help="Wait so long for more images; 0 takes what is there.")] = 0,
    max_queue: Annotated[int, typer.Option(help="Images that may wait for one model; more get a 503.")] = 256,
    max_body_mb: Annotated[float, typer.Option(help="MiB of one request; more get a 413.")] = 16,
    timeout_s: Annotated[float, typer.Option(help="Seconds for a body to arrive, and for an answer.")] = 30,
    token_file: Annotated[
        Path | None, typer.Option(help="Clients must send this file's bearer token.  [or: $SDZOO_SERVE_TOKEN]")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port for Prometheus, on every address.  [default: any]", show_default=False)
    ] = None,
    log_level: Annotated[
        str, typer.Option(help="INFO: every request; WARNING: those refused; ERROR: faults.")
    ] = "INFO",
    log_dir: Annotated[
        Path | None, typer.Option(help="Folder for the logs.  [default: that of Ray]", show_default=False)
    ] = None,
) -> None:
    """Serve ONNX files over HTTP by the Open Inference Protocol, until SIGTERM or Ctrl-C; SIGHUP reads them anew."""
    from sdzoo.serving.ingress import prepare

    prepare(ingress)
    try:
        from sdzoo.serving import launch
        from sdzoo.serving.settings import Settings
        from sdzoo.serving.sources import read_sources
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: pip install 'sdzoo[serve]'") from error

    settings = Settings.of(
        models=models,
        device=device,
        replicas=replicas,
        cpus=cpus,
        gpus=gpus,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        max_queue=max_queue,
        max_body_mb=max_body_mb,
        timeout_s=timeout_s,
        token_file=token_file and token_file.absolute(),
        log_level=log_level,
        log_dir=log_dir and str(log_dir.absolute()),
    )
    sources = read_sources(settings.models)
    settings.token()
    address = launch.Address(host, port, metrics_port)
    with launch.serving(address, settings):
        for source in sources:
            console.print(f"{address}/v2/models/{source.name}/versions/{source.version}  {source.path}")
        console.print(f"metrics on {launch.metrics_url()}")
        console.print(f"serving on {address}")
        for _ in launch.hangups():
            try:
                launch.deploy(settings)
                console.print("serving the files anew")
            except InputError as error:
                console.print(f"serving the old files on: {error}")
        console.print("stopping: what is under way gets its answer")
