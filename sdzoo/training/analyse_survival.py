"""Error over the survival probability of the last block, for linear decay and uniform survival (paper, section 5)."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdzoo.checkpoints import load_model
from sdzoo.errors import InputError
from sdzoo.models.skip_names import PREFIX
from sdzoo.training import evaluation
from sdzoo.training.data import PROTOCOLS, open_split
from sdzoo.training.figures import new_figure, write_csv, write_figure
from sdzoo.training.runs import Run
from sdzoo.training.sweep import Cell, Sweep

Table = list[dict[str, Any]]


def analyse_survival(sweep: Sweep, cells: Sequence[Cell]) -> Table:
    """Train the cells and write their errors over p_L, as a table and a figure.

    The error is that of the test images at the best validated epoch; of the validation images, where the test images
    are not there or the network is none of the zoo.

    Args:
        sweep: How they are trained; tables and figures go to its folder.
        cells: The trainings to compare.

    Raises:
        InputError: A training failed.
    """
    sweep.check()
    figure = new_figure()
    tested = _has_test_split(sweep)
    table = [_errors(cell, folder, tested) for cell, folder in sweep.run(cells)]
    write_csv(sweep.output / "survival.csv", table)
    error = "test error %" if tested else "validation error %"
    axes = figure.subplots()
    for color, rule in enumerate(dict.fromkeys(cell.rule for cell in cells if cell.p_L < 1)):
        means, deviations = _over_seeds([row for row in table if row["survival"] in (rule, "constant")], error)
        axes.errorbar(list(means), list(means.values()), deviations, fmt=f"C{color}o-", label=rule, capsize=3)
    if constant := [row[error] for row in table if row["p_L"] == 1]:
        axes.axhline(statistics.mean(constant), color="grey", linestyle="--", label="constant depth")
    axes.set(xlabel="p_L", ylabel=error)
    axes.grid(alpha=0.3)
    axes.legend()
    write_figure(figure, sweep.output / "survival")
    return table


def _has_test_split(sweep: Sweep) -> bool:
    """Say, before anything is trained, whether its test error can be measured."""
    dataset = str(sweep.setting("--dataset")).removeprefix("torch/")
    if dataset not in PROTOCOLS or str(sweep.setting("--model")).startswith(PREFIX):
        return False
    try:
        open_split(dataset, "test", Path(sweep.setting("--data-dir") or "data"))
    except InputError:
        return False
    return True


def _errors(cell: Cell, folder: Path, tested: bool) -> dict[str, Any]:
    run = Run(folder)
    best, checkpoint = run.best()
    arguments = run.arguments()
    row = {
        "survival": cell.rule,
        "p_L": cell.p_L,
        "seed": cell.seed,
        "best epoch": best.number,
        "validation error %": round(100 - best.top1, 3),
    }
    if tested:
        root = Path(str(arguments["data_dir"] or "data"))
        row["test error %"] = round(_test_error(str(arguments["model"]), checkpoint, root), 3)
    return row | {"training seconds": round(sum(run.seconds().values()), 1)}


def _test_error(model: str, checkpoint: Path, data_dir: Path) -> float:
    """Return the noted error on the test split; measure and note it where it is not."""
    noted = evaluation.noted(checkpoint)
    if "test" not in noted:
        network = load_model(model, checkpoint=checkpoint)
        evaluation.note(checkpoint, "test", evaluation.evaluate(network, evaluation.split("test", data_dir, network)))
        noted = evaluation.noted(checkpoint)
    return noted["test"]


def _over_seeds(rows: Table, error: str) -> tuple[dict[float, float], list[float]]:
    """Return mean errors by p_L, and their standard deviations over seeds, 0 for a single one."""
    groups = {p_L: [row[error] for row in rows if row["p_L"] == p_L] for p_L in sorted({row["p_L"] for row in rows})}
    deviations = [statistics.stdev(errors) if len(errors) > 1 else 0.0 for errors in groups.values()]
    return {p_L: statistics.mean(errors) for p_L, errors in groups.items()}, deviations
