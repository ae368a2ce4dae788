"""Mean gradient magnitude of the first block over training, with and without stochastic depth (paper, section 5)."""

import csv
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm

from sdzoo.errors import InputError
from sdzoo.training import gradients
from sdzoo.training.figures import new_figure, write_csv, write_figure
from sdzoo.training.report import label
from sdzoo.training.runs import Run
from sdzoo.training.sweep import Cell, Sweep

RECORD = "gradients.csv"
Table = list[dict[str, Any]]


def analyse_gradients(sweep: Sweep, cells: Sequence[Cell], weight: str) -> Table:
    """Train the cells and write the mean gradient magnitude of a weight in every epoch, as a table and a figure.

    Args:
        sweep: How they are trained; tables and figures go to its folder.
        cells: The trainings to compare.
        weight: Name of a parameter.

    Raises:
        InputError: The network has no such parameter, or a training failed.
    """
    sweep.check()
    _check_weight(sweep, weight)
    figure = new_figure()
    variables = {gradients.WEIGHT_VARIABLE: weight, gradients.FILE_VARIABLE: f"{{folder}}/{RECORD}"}
    recording = replace(sweep, modules=[gradients.__name__], variables=variables)
    table = [row for cell, folder in recording.run(cells) for row in _epochs(cell, folder)]
    write_csv(sweep.output / RECORD, table)
    axes = figure.subplots()
    for color, p_L in enumerate(dict.fromkeys(cell.p_L for cell in cells)):
        for number, seed in enumerate(dict.fromkeys(cell.seed for cell in cells)):
            own = [row for row in table if (row["p_L"], row["seed"]) == (p_L, seed)]
            name = label([p_L]) if number == 0 else None
            axes.plot([r["epoch"] for r in own], [r["gradient"] for r in own], f"C{color}.-", label=name, linewidth=1.2)
    axes.set(xlabel="epoch", ylabel=f"mean |gradient| of {weight}", yscale="log")
    axes.locator_params("x", integer=True)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    write_figure(figure, sweep.output / "gradients")
    return table


def _check_weight(sweep: Sweep, weight: str) -> None:
    model = str(sweep.setting("--model"))
    network = timm.create_model(model, **sweep.model_options())
    if gradients.find_weight(network, weight) is None:
        names = [name for name, value in network.named_parameters() if value.ndim > 1]
        raise InputError(f"{model} has no parameter {weight!r}; its first ones: {', '.join(names[:4])}")


def _epochs(cell: Cell, folder: Path) -> Table:
    """Return the mean over the updates of every epoch, which all have the same number."""
    with (folder / RECORD).open(newline="", encoding="utf-8") as lines:
        magnitudes = [float(row["gradient"]) for row in csv.DictReader(lines)]
    epochs = max(Run(folder).seconds()) + 1
    updates, left = divmod(len(magnitudes), epochs)
    if left:
        raise InputError(
            f"{folder / RECORD}: {len(magnitudes)} updates are no multiple of {epochs} epochs; with a loss "
            "scaler (--amp in float16) some are left out: take --amp-dtype bfloat16"
        )
    return [
        {
            "p_L": cell.p_L,
            "seed": cell.seed,
            "epoch": epoch + 1,
            "gradient": float(f"{statistics.mean(magnitudes[epoch * updates : (epoch + 1) * updates]):.6g}"),
        }
        for epoch in range(epochs)
    ]
