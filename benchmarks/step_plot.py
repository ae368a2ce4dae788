"""Draw the CSV file of ``train_step.py``: step time over constant depth of every arm, beside the limit.

python benchmarks/step_plot.py docs/results/train_step.csv
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from peers import ARMS, OURS

from sdzoo.cli import run_script
from sdzoo.training.figures import new_figure, write_figure

Row = dict[str, str]
MARKERS = dict(zip(ARMS, "_osx+12", strict=True))
PANEL = ("processes", "format", "mode")


def draw(path: Path) -> None:
    """Write the plot beside the CSV file, as .png and .svg: a panel for each way of running, a column for each net."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    panels: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        panels.setdefault(tuple(row[name] for name in PANEL), []).append(row)
    columns = {name: len(_cells(panel)) for name, panel in panels.items()}
    figure = new_figure()
    figure.set_figwidth(3 + 0.75 * sum(columns.values()))
    all_axes = figure.subplots(
        1, len(panels), sharey=True, squeeze=False, gridspec_kw={"width_ratios": [n + 0.5 for n in columns.values()]}
    )[0]
    for axes, ((processes, layout, mode), panel) in zip(all_axes, panels.items(), strict=True):
        _draw_panel(axes, panel)
        ranks = "" if processes == "1" else f"\n{processes} processes"
        axes.set_title(f"{layout}\n{mode}{ranks}", fontsize=9)
    all_axes[0].set_ylabel("step time / constant depth")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(", ".join(sorted({row["hardware"] for row in rows})), fontsize=8)
    write_figure(figure, path.with_suffix(""))


def _cells(rows: Sequence[Row]) -> list[tuple[int, float]]:
    return sorted({(int(row["depth"]), float(row["p_L"])) for row in rows})


def _draw_panel(axes: Axes, rows: Sequence[Row]) -> None:
    cells = _cells(rows)
    for arm in ARMS[1:]:
        found = [row for row in rows if row["arm"] == arm]
        x = [cells.index((int(row["depth"]), float(row["p_L"]))) for row in found]
        ours = arm in OURS
        axes.plot(
            x, [float(row["ratio"]) for row in found], MARKERS[arm], label=arm, markersize=7 if ours else 5, zorder=3
        )
        if arm == OURS[0]:
            limits = [float(row["limit"]) for row in found]
            axes.hlines(limits, [n - 0.35 for n in x], [n + 0.35 for n in x], "black", label="limit of bernoulli")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(cells)), [f"{depth}\n{p_L:g}" for depth, p_L in cells], fontsize=8)
    axes.set_xlim(-0.6, len(cells) - 0.4)
    axes.set_xlabel("depth, p_L", fontsize=8)
    axes.grid(axis="y", alpha=0.3)


if __name__ == "__main__":
    run_script(draw)
