"""What is kept of every request: figures for Prometheus through Ray's exporter, and one line of JSON in a log.

Both are written for many requests together, outside the event loop: Ray takes its time for every figure.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray.serve import metrics

MILLISECONDS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000]
ROWS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
LEVELS = {"INFO": 0, "WARNING": 400, "ERROR": 500}  # the smallest status that is logged
LOG_BYTES = 100_000_000  # then the file becomes FILE.1


@dataclass
class Record:
    """What there is to say of one request; ``batch`` is the rows of the run that answered it, 0 where none did."""

    ended: float = 0.0  # seconds since 1970
    request: str = ""
    model: str = ""
    version: str = ""
    status: int = 0
    batch: int = 0
    milliseconds: float = 0.0
    waiting: int = 0
    error: str = ""


class Metrics:
    """The figures; Prometheus sees them as ``ray_sdzoo_…``, with deployment and replica."""

    def __init__(self) -> None:
        model = ("model", "version")
        self._requests = metrics.Counter("sdzoo_requests", "Requests.", (*model, "status"))
        self._latency = metrics.Histogram(
            "sdzoo_latency_ms", "From the request's head to its answer.", MILLISECONDS, model
        )
        self._batch = metrics.Histogram("sdzoo_batch_rows", "Rows of the run that answered.", ROWS, model)
        self._waiting = metrics.Gauge("sdzoo_queue_rows", "Rows that waited when a request was answered.", model)

    def count(self, records: Sequence[Record]) -> None:
        """Take requests into account."""
        kinds = Counter((record.model, record.version, record.status) for record in records)
        for (model, version, status), count in kinds.items():
            self._requests.inc(count, {"model": model, "version": version, "status": str(status)})
        waiting = {}
        for record in records:
            tags = {"model": record.model, "version": record.version}
            self._latency.observe(record.milliseconds, dict(tags))
            if record.batch:
                self._batch.observe(record.batch, dict(tags))
                waiting[record.model, record.version] = record.waiting
        for (model, version), rows in waiting.items():
            self._waiting.set(rows, {"model": model, "version": version})


class RequestLog:
    """Lines of JSON.

    Args:
        level: INFO for all requests, WARNING for faults of clients and the server, ERROR for the server's.
        file: Where to.
    """

    def __init__(self, level: str, file: Path) -> None:
        self._least, self._file = LEVELS[level], file

    def write(self, records: Sequence[Record]) -> None:
        """Write a line for each request."""
        text = "".join(_line(record) for record in records if record.status >= self._least)
        if not text:
            return
        with self._file.open("a", encoding="utf-8") as file:
            file.write(text)
            full = file.tell() > LOG_BYTES
        if full:
            self._file.replace(f"{self._file}.1")


def _line(record: Record) -> str:
    facts = {
        "time": round(record.ended, 3),
        "request": record.request,
        "model": record.model,
        "version": record.version,
        "status": record.status,
        "batch": record.batch,
        "ms": round(record.milliseconds, 3),
    }
    return json.dumps({**facts, "error": record.error} if record.error else facts) + "\n"
