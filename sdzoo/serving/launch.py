"""A server on this machine: Ray started, the models served until a signal says stop, everything answered before."""

import logging
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray import serve

from sdzoo.errors import InputError
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

    def check_free(self) -> None:
        """Raise InputError where nobody can listen here."""
        try:
            with socket.create_server((self.host, self.port), reuse_port=False):
                pass
        except (OSError, OverflowError) as error:
            raise InputError(f"cannot listen on {self.host}:{self.port}: {error}") from error


@contextmanager
def serving(address: Address, settings: Settings) -> Iterator[None]:
    """Serve the models on this machine as long as the block runs.

    Raises:
        InputError: Nobody can listen on the address, or a model cannot be served.
    """
    address.check_free()
    _start(address, settings)
    try:
        deploy(settings)
        yield
    finally:
        _stop()


def _start(address: Address, settings: Settings) -> None:
    try:
        _init_ray(address, settings)
    except Exception as error:  # Ray's own have no common base
        raise InputError(f"Ray cannot be started here: {error}") from error
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"host": address.host, "port": address.port})


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
    serve.delete(NAME)
    serve.shutdown()
    ray.shutdown()


def wait(settings: Settings) -> None:
    """Wait for a signal to stop; SIGHUP serves the files anew."""
    arrived: list[int] = []
    wake = threading.Event()

    def note(number: int, frame: object) -> None:
        arrived.append(number)
        wake.set()

    for number in (*STOP, signal.SIGHUP):
        signal.signal(number, note)
    while not any(number in STOP for number in arrived):
        wake.wait()
        wake.clear()
        if signal.SIGHUP in arrived:
            arrived.remove(signal.SIGHUP)
            deploy(settings)
