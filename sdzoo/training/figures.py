"""Tables and figures of trainings as files: complete or not there, the same bytes for the same numbers."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdzoo.errors import InputError
from sdzoo.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")


def new_figure() -> "Figure":
    """Return an empty figure.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("matplotlib is not installed: pip install 'sdzoo[report]'") from error
    rcParams["svg.hashsalt"] = "sdzoo"
    return Figure(figsize=(7, 4.5), layout="constrained")


def write_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG and SVG; ``path`` has no ending."""
    for suffix in FORMATS:
        with replacing(path.with_name(path.name + suffix)) as file:
            figure.savefig(file, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None)


def columns_of(table: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of all columns, in the order of their first use."""
    return list(dict.fromkeys(column for row in table for column in row))


def write_csv(path: Path, table: Sequence[dict[str, Any]]) -> None:
    """Write rows as a CSV file; a column that a row lacks stays empty."""
    with replacing(path) as file, file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, columns_of(table), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
