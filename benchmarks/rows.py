"""Results of a benchmark as rows of a CSV file."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdzoo.errors import InputError


@dataclass(frozen=True)
class Row:
    """Results of one arm: seconds, and ratios to constant depth and to the limit of the same draws."""

    arm: str
    seconds: float
    ratio: float
    limit: float | None
    quotient: float | None
    variation: float
    megabytes: float


def add_rows(output: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to a CSV file, with the header where the file is new.

    Raises:
        InputError: The file has other columns.
    """
    columns = list(rows[0])
    if output.exists() and read_columns(output) != columns:
        raise InputError(f"{output} has other columns: move it away, or write to another file")
    new = not output.exists()
    with output.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def read_columns(path: Path) -> list[str]:
    """Return the names in the header of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])
