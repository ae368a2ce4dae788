"""Batching across requests: whatever waits when the model is free runs together, and nobody waits for more by default.

The thread that ends a run takes the next batch itself: the event loop, busy with requests, would let the model wait.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdzoo.serving.signature import ProtocolError

Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], dict[str, NDArray[Any]]]


class OverloadedError(ProtocolError):
    """The queue is full; the client may try again."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 503)


@dataclass(frozen=True)
class Answer:
    """Outputs of one request, and how many rows the run had that gave them."""

    outputs: dict[str, NDArray[Any]]
    batch: int


@dataclass(eq=False, slots=True)
class _Job:
    inputs: Arrays
    rows: int
    form: tuple[tuple[int, ...], ...]  # only inputs that agree in all sizes but the first fit together
    answer: "asyncio.Future[Answer]"


class Batcher:
    """Runs a model for many requests at a time.

    Args:
        run: The model: inputs by name to outputs by name, rows along the first dimension. Called in the executor.
        executor: Where; its number of threads bounds how many models run at once.
        max_batch: Rows of one run; 1 where the graph's batch is fixed, for then every request runs alone.
        max_queue: Rows that may wait.
        max_wait: Seconds to wait for more rows while fewer than ``max_batch`` are there.
    """

    def __init__(self, run: Run, executor: Executor, *, max_batch: int, max_queue: int, max_wait: float = 0.0) -> None:
        self._run, self._executor = run, executor
        self.max_batch, self.max_queue, self.max_wait = max_batch, max_queue, max_wait
        self.waiting = 0  # rows
        self._jobs: deque[_Job] = deque()
        self._busy = False  # a run is under way, or about to be
        self._lock = threading.Lock()  # of the three above
        self._timer: asyncio.TimerHandle | None = None

    def check_room(self) -> None:
        """Raise OverloadedError where the queue is full."""
        if self.waiting >= self.max_queue:
            raise OverloadedError(f"{self.waiting} images wait already, at most {self.max_queue} may: try again")

    async def __call__(self, inputs: Arrays) -> Answer:
        """Return the outputs for these inputs.

        Raises:
            ProtocolError: The inputs have different numbers of rows.
            OverloadedError: The queue is full.
        """
        self.check_room()
        rows = self._rows(inputs)
        form = tuple(array.shape[1:] for array in inputs.values())
        job = _Job(inputs, rows, form, asyncio.get_running_loop().create_future())
        with self._lock:
            self._jobs.append(job)
            self.waiting += rows
        self._schedule()
        return await job.answer

    def _rows(self, inputs: Arrays) -> int:
        if self.max_batch == 1:
            return 1
        rows = {len(array) for array in inputs.values()}
        if len(rows) > 1:
            raise ProtocolError(f"the inputs {', '.join(inputs)} have {sorted(rows)} rows, must have the same number")
        return rows.pop()

    def _schedule(self) -> None:
        """See to it that what waits will run; requests that arrive in the same turn of the loop still get in."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._busy or not self._jobs:
                return
            if self._waits_for_more():
                self._timer = self._timer or loop.call_later(self.max_wait, self._start)
                return
            self._busy = True
        loop.call_soon(self._start)

    def _waits_for_more(self) -> bool:
        return self.max_wait > 0 and self.waiting < self.max_batch

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._lock:
            self._busy = True
        self._executor.submit(self._work, asyncio.get_running_loop())

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run one batch in the executor; go to the end of its queue, behind other models, where more waits."""
        with self._lock:
            batch = self._take()
        answers = self._run_together(batch) if batch else []
        with self._lock:
            self._busy = bool(self._jobs) and not self._waits_for_more()
            if self._busy:
                self._executor.submit(self._work, loop)
        loop.call_soon_threadsafe(self._finish, batch, answers)

    def _take(self) -> list[_Job]:
        """Take from the front of the queue what fits into one run; requests that were given up are left out."""
        batch: list[_Job] = []
        rows = 0
        while self._jobs:
            job = self._jobs[0]
            if not job.answer.done():
                if batch and (rows + job.rows > self.max_batch or job.form != batch[0].form):
                    break
                batch.append(job)
                rows += job.rows
            self.waiting -= job.rows
            self._jobs.popleft()
        return batch

    def _run_together(self, batch: list[_Job]) -> Sequence[Answer | Exception]:
        try:
            return self._split(batch)
        except Exception as error:
            if len(batch) == 1:
                return [error]
            return [answer for job in batch for answer in self._run_together([job])]  # one may be to blame, not all

    def _split(self, batch: list[_Job]) -> list[Answer]:
        if len(batch) == 1:
            return [Answer(self._run(batch[0].inputs), batch[0].rows)]
        joined = {name: np.concatenate([job.inputs[name] for job in batch]) for name in batch[0].inputs}
        outputs = self._run(joined)
        ends = list(accumulate(job.rows for job in batch))
        return [
            Answer({name: array[end - job.rows : end] for name, array in outputs.items()}, ends[-1])
            for job, end in zip(batch, ends, strict=True)
        ]

    def _finish(self, batch: list[_Job], answers: Sequence[Answer | Exception]) -> None:
        for job, answer in zip(batch, answers, strict=True):
            if job.answer.done():  # the client has gone
                continue
            if isinstance(answer, Exception):
                job.answer.set_exception(answer)
            else:
                job.answer.set_result(answer)
        self._schedule()
