"""A server on this machine: Ray started, the models served until a signal says stop, everything answered before."""

import logging
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from queue import SimpleQueue

import ray
from ray import serve

from sdzoo.errors import InputError
from sdzoo.serving.ingress import check_free
from sdzoo.serving.replica import NAME, app
from sdzoo.serving.settings import Settings

OBJECT_STORE = 100 * 2**20  # bytes; requests do not go through it
STOP = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Address:
    """Where to listen: for clients, and on which port for Prometheus (None for any)."""

    host: str
    port: int
    metrics_port: int | None = None

    def __str__(self) -> str:
        """Return the URL."""
        return f"http://{self.host}:{self.port}"


@contextmanager
def serving(address: Address, settings: Settings) -> Iterator[None]:
    """Serve the models on this machine as long as the block runs.

    Raises:
        InputError: Nobody can listen on the address, or a model cannot be served.
    """
    check_free(address.host, address.port)
    _start(address, settings)
    try:
        deploy(settings)
        yield
    finally:
        _stop()


def _start(address: Address, settings: Settings) -> None:
    try:
        _init_ray(address, settings)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options={"host": address.host, "port": address.port})
    except Exception as error:  # Ray's own have no common base
        ray.shutdown()
        raise InputError(f"Ray cannot be started here: {error}") from error


def _init_ray(address: Address, settings: Settings) -> None:
    ray.init(
        address="local",
        num_cpus=2 * settings.replicas * settings.cpus,  # a redeploy starts new replicas before it stops old ones
        num_gpus=None if settings.gpus else 0,
        object_store_memory=OBJECT_STORE,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        _metrics_export_port=address.metrics_port,
    )


def metrics_url() -> str:
    """Return where Prometheus finds the metrics of this machine."""
    (node,) = ray.nodes()
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def deploy(settings: Settings) -> None:
    """Serve the models; over older ones request by request, so that none is lost.

    Raises:
        InputError: A replica cannot be started; its log says why.
    """
    try:
        serve.run(app(settings), name=NAME, blocking=False)
    except RuntimeError as error:
        told = re.findall(r"InputError: (.+)", str(error))  # what a replica raised stands in its traceback
        raise InputError(told[-1] if told else f"the models cannot be served: {error}") from error


def _stop() -> None:
    """Answer what is under way, then end Serve and Ray."""
    with suppress(TimeoutError):  # Ray waits a minute
        serve.delete(NAME)
    with redirect_stdout(StringIO()):  # Ray reports the end of its own controller as a failed task
        serve.shutdown()
        ray.shutdown()


def hangups() -> Iterator[None]:
    """Yield at every SIGHUP, until a signal says stop."""
    arrived: SimpleQueue[int] = SimpleQueue()
    for number in (*STOP, signal.SIGHUP):
        signal.signal(number, lambda number, frame: arrived.put(number))
    while arrived.get() == signal.SIGHUP:
        yield
