"""Keep a training going: start torchrun again for as long as every start brings it further.

Two layers. A killed rank is torchrun's to replace: it starts all ranks again, on all machines, up to ``RESTARTS``
times. When torchrun itself ends, because the restarts are used up or the machine lost it, this starts it again, unless
that start has brought no new checkpoint: then the same would happen again.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from sdzoo.errors import InputError
from sdzoo.training.launch import folder_of, run
from sdzoo.training.resume import last_checkpoint

RESTARTS = 2
PAUSE = 3.0  # seconds; the other machines of a training need a moment to see that it has ended


def supervise(words: Sequence[str], pause: float = PAUSE) -> Path:
    """Run a training command to its end, however often it must be started, and return the folder it wrote.

    Args:
        words: A command that goes on from its last checkpoint by itself.
        pause: Seconds before another start.

    Raises:
        InputError: A start failed and left no new checkpoint.
    """
    folder = folder_of(words)
    while True:
        before = _moment(folder)
        try:
            return run(words)
        except InputError as error:
            if _moment(folder) == before:
                raise
            print(f"{error}; going on from {last_checkpoint(folder)}", flush=True)
            time.sleep(pause)


def _moment(folder: Path) -> int | None:
    """Return when the last checkpoint was written, in nanoseconds."""
    checkpoint = last_checkpoint(folder)
    return checkpoint.stat().st_mtime_ns if checkpoint else None
