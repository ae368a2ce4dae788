"""Compare trainings of one network with timm's DropPath and with skipped paths, any number of seeds an arm.

    python benchmarks/skip_walk.py runs/vit_* --output docs/results/skip_walk.csv

Loss and accuracy are those of the last epoch; seconds are those of training alone, from the log. Runs of one seed
should train side by side: their times are compared with each other alone.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sdzoo.cli import run_script
from sdzoo.training.figures import write_csv
from sdzoo.training.report import spread
from sdzoo.training.runs import Run

DROP_PATH = "timm's DropPath"


def row(folder: Path) -> dict[str, Any]:
    """Return what one run came to."""
    run = Run(folder)
    arguments: dict[str, Any] = run.arguments()
    last = run.epochs()[-1]
    return {
        "arm": _arm(arguments),
        "seed": arguments["seed"],
        "drop_path": arguments["drop_path"],
        "epochs": last.number + 1,
        "train_loss": last.train_loss,
        "validation_loss": last.validation_loss,
        "validation_top1": last.top1,
        "seconds_per_epoch": statistics.mean(run.seconds().values()),
    }


def with_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to every run its time as a share of timm's DropPath with the same seed."""
    seconds = {row["seed"]: row["seconds_per_epoch"] for row in rows if row["arm"] == DROP_PATH}
    return [row | {"time_ratio": row["seconds_per_epoch"] / seconds[row["seed"]]} for row in rows]


def _arm(arguments: dict[str, Any]) -> str:
    if not arguments["model"].startswith("skip_"):
        return DROP_PATH
    return f"skipped, mode {(arguments['model_kwargs'] or {}).get('mode', 'batch')}"


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return mean and standard deviation over seeds of every arm."""
    columns = ("train_loss", "validation_loss", "validation_top1", "time_ratio")
    result = Table("arm", "seeds", *columns)
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        result.add_row(arm, str(len(mine)), *(spread([row[column] for row in mine]) for column in columns))
    return result


def main(
    runs: Annotated[list[Path], typer.Argument(help="Training folders.")],
    output: Annotated[Path, typer.Option(help="CSV file to write, a row a run.")],
) -> None:
    """Print the arms side by side; write a row for every run."""
    finished = (row(folder) for folder in runs if folder.is_dir())
    rows = with_ratios(sorted(finished, key=lambda row: (row["arm"], row["seed"])))
    write_csv(output, rows)
    Console(width=130).print(table(rows))


if __name__ == "__main__":
    run_script(main)
