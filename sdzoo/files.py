"""Writing files so that nobody ever sees half of one."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdzoo.errors import InputError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; leaving the block puts that file into place in one step.

    An exception in the block, a full disk or a crash leaves the old file, or none, under the final name. Blocks may
    be nested: the outer one can check what the inner one wrote before it counts.

    Raises:
        InputError: The folder does not exist or cannot be written, or ``path`` is something else than a file.
        OSError: The disk is full.
    """
    target = Path(path).resolve()
    _check(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        _create(temporary)
        yield temporary
        _flush(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary folder beside ``path`` to fill; leaving the block puts it into place in one step.

    Raises:
        InputError: ``path`` exists, or its folder does not or cannot be written.
        OSError: The disk is full.
    """
    target = Path(path).absolute()
    if target.exists():
        raise InputError(f"cannot make the folder {target}: it exists")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        temporary.mkdir()
    except OSError as error:
        raise InputError(f"cannot write into the folder {target.parent}: {error.strerror}") from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check(target: Path) -> None:
    if not target.parent.is_dir():
        raise InputError(f"cannot write {target}: there is no folder {target.parent}")
    if target.exists() and not target.is_file():
        raise InputError(f"cannot write {target}: it exists and is not a file")


def _create(temporary: Path) -> None:
    try:
        temporary.touch()
    except OSError as error:
        raise InputError(f"cannot write into the folder {temporary.parent}: {error.strerror}") from error


def _flush(temporary: Path) -> None:
    """Wait until the bytes are on the disk: a rename that overtakes them could survive a power cut alone."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
