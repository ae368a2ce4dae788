"""Start timm's script from its own last checkpoint: ``torchrun ... -m sdzoo.training.resume train.py ARGUMENTS``.

The script by itself must be told the file, and stops where it does not exist. Here every rank looks for it after the
rendezvous, when no rank of an earlier start is alive any more: all ranks of all machines go on from the same
checkpoint, as long as they share the training folder.
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from sdzoo.training.launch import folder_of
from sdzoo.training.runs import Run

LAST = "last.pth.tar"


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of a finished epoch, None before the first.

    The script takes ``last`` away a moment before it puts the new one into its place. Its recovery checkpoints do
    not count: it would leave out the rest of their epoch.
    """
    last, numbered = folder / LAST, Run(folder).checkpoints()
    if last.is_file():
        return last
    return numbered[max(numbered)] if numbered else None


def resume_arguments(arguments: Sequence[str]) -> list[str]:
    """Return what tells the script to go on from the last checkpoint in the folder that the arguments name."""
    checkpoint = last_checkpoint(folder_of(arguments))
    return ["--resume", str(checkpoint)] if checkpoint else []


def main() -> None:
    """Run the script named by the first argument, with all the others and its last checkpoint."""
    script, *arguments = sys.argv[1:]
    sys.argv = [script, *arguments, *resume_arguments(arguments)]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
