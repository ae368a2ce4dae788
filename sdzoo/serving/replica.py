"""The deployment on Ray Serve: each replica parses, batches and runs by itself; no request makes a second hop."""

import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray import serve

from sdzoo.serving.application import Application
from sdzoo.serving.model import Models
from sdzoo.serving.record import RequestLog
from sdzoo.serving.settings import Settings
from sdzoo.serving.sources import Source, read_sources

NAME = "sdzoo"
SWITCH_INTERVAL = 5e-4  # seconds; with Python's 5 ms the thread that runs the model waits for the event loop's
CONNECTIONS = 4096  # at a time on one replica; the limit that matters is the bounded queue's, whose answer is ours


@serve.ingress()
class Replica:
    """One process that serves all models."""

    def __init__(self, settings: Settings, sources: tuple[Source, ...]) -> None:
        sys.setswitchinterval(SWITCH_INTERVAL)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="sdzoo")  # one run at a time has all the CPUs
        self._models = Models(sources, settings, self._executor)
        requests = RequestLog(settings.log_level, _log_file())
        self._application = Application(self._models, settings, settings.token(), requests)

    def __serve_build_asgi_app__(self) -> Application:
        """Return what Ray Serve sends requests to."""
        return self._application

    def check_health(self) -> None:
        """Raise where Ray should replace this replica."""
        self._models.check_health()


def _log_file() -> Path:
    """Return a file beside the log that Ray keeps for this replica, in the folder from the settings or in Ray's."""
    handlers = (getattr(handler, "target", handler) for handler in logging.getLogger("ray.serve").handlers)
    (ours, *_) = (Path(handler.baseFilename) for handler in handlers if isinstance(handler, logging.FileHandler))
    return ours.with_name(f"requests_{serve.get_replica_context().replica_id.unique_id}.jsonl")


def app(settings: Settings) -> serve.Application:
    """Build the application, for ``serve run sdzoo.serving:app models=a.onnx`` and for YAML files.

    Raises:
        InputError: See ``read_sources``.
    """
    sources = read_sources(settings.models)
    deployment: Any = serve.deployment(
        name=NAME,
        num_replicas=settings.replicas,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        max_ongoing_requests=CONNECTIONS,
        max_surge_percent=100,  # the new replicas of a redeploy start before the old ones stop
        graceful_shutdown_timeout_s=settings.timeout_s + 10,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=2,
        health_check_timeout_s=30,
        logging_config={
            "encoding": "JSON",
            "log_level": "WARNING",  # at INFO Ray composes a line for each request, even with its access log off
            "logs_dir": settings.log_dir,
            "enable_access_log": False,
        },
    )(Replica)
    bound: serve.Application = deployment.bind(settings, sources)
    return bound
