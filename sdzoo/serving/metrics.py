"""Figures of a replica for Prometheus, through Ray's exporter, and its log: one line of JSON for each request."""

import logging
from dataclasses import dataclass

from ray.serve import metrics

MILLISECONDS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000]
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]

log = logging.getLogger("ray.serve")


@dataclass
class Record:
    """What there is to say of one request; ``batch`` is the rows of the run that answered it, 0 where none did."""

    model: str = ""
    version: str = ""
    status: int = 0
    batch: int = 0
    milliseconds: float = 0.0
    waiting: int = 0
    error: str = ""


class Metrics:
    """The metrics; Prometheus sees them as ``ray_sdzoo_…`` with deployment and replica."""

    def __init__(self) -> None:
        model = ("model", "version")
        self._requests = metrics.Counter("sdzoo_requests", "Requests answered.", (*model, "status"))
        self._latency = metrics.Histogram("sdzoo_latency_ms", "From head to answer.", MILLISECONDS, model)
        self._batch = metrics.Histogram("sdzoo_batch_rows", "Rows of the run.", ROWS, model)
        self._waiting = metrics.Gauge("sdzoo_queue_rows", "Rows that waited when a request was answered.", model)

    def count(self, record: Record) -> None:
        """Take one request into account."""
        model = {"model": record.model, "version": record.version}
        self._requests.inc(1, {**model, "status": str(record.status)})
        self._latency.observe(record.milliseconds, dict(model))
        if record.batch:
            self._batch.observe(record.batch, dict(model))
            self._waiting.set(record.waiting, dict(model))


def write(record: Record) -> None:
    """Log one request: faults of the server as errors, the rest as information."""
    level = logging.ERROR if record.status == 500 else logging.INFO
    if log.isEnabledFor(level):
        facts = {
            "model": record.model,
            "version": record.version,
            "status": record.status,
            "batch": record.batch,
            "ms": round(record.milliseconds, 3),
        }
        log.log(level, record.error or "answered", extra={**facts, "log_to_stderr": level > logging.INFO})
