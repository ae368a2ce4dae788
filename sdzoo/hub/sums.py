"""SHA256SUMS: the sum of every file of a repository, in the format of ``sha256sum --check``."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from sdzoo.errors import InputError

SUMS = "SHA256SUMS"
LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_sums(folder: Path) -> None:
    """Write the sums of all files below a folder, in the order of their names."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names if name != SUMS]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def mismatches(folder: Path, names: Iterable[str]) -> list[str]:
    """Return those of the files that are not the ones whose sums the folder lists.

    Raises:
        InputError: The list is missing or damaged.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{folder / SUMS}: missing or damaged, so nothing here can be checked") from error
    listed = {match[2]: match[1] for line in lines if (match := LINE.fullmatch(line))}
    return [name for name in names if name != SUMS and listed.get(name) != sha256(folder / name)]
