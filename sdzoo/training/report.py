"""Compare finished runs: a table of errors and times, and the curves behind it (paper, figures 3 and 4).

Runs that differ in their seed alone are one arm; arms, which differ in their survival probabilities alone, are compared
with the constant-depth arm among them.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdzoo.checkpoints import read_checkpoint
from sdzoo.errors import InputError
from sdzoo.files import replacing
from sdzoo.models.gates import STEP_KEY, Gates
from sdzoo.models.survival import describe
from sdzoo.training.evaluation import noted
from sdzoo.training.figures import columns_of, new_figure, write_csv, write_figure
from sdzoo.training.runs import Epoch, Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


CONSTANT = "constant depth"
PLACE = {"experiment", "output", "resume", "data_dir", "workers", "log_interval"}
# In model_kwargs are schedule and sampling, which make the arm, and the seed of the gates.
ARM_AND_SEED = {"drop_path", "model_kwargs", "seed"}


@dataclass(frozen=True)
class Result:
    """What one run came to.

    Attributes:
        run: Its folder.
        task: Network, data set and epochs: what its peers have in common.
        arm: Survival probabilities and, where it is not the paper's, sampling, in words.
        epochs: Validated epochs, in order.
        error: Validation error in percent at the best epoch.
        test_errors: Error in percent on each set of test images that it was evaluated on.
        seconds: Seconds of training in each epoch.
        expected_open: Expected share of open blocks.
        measured_open: Share of open blocks in the steps that were taken.
    """

    run: Run
    task: str
    arm: str
    seed: int
    epochs: list[Epoch]
    error: float
    test_errors: dict[str, float]
    seconds: dict[int, float]
    expected_open: float
    measured_open: float

    @property
    def seconds_per_epoch(self) -> float | None:
        """Mean seconds of an epoch, None where the log does not tell."""
        return statistics.mean(self.seconds.values()) if self.seconds else None


def read_result(folder: Path) -> Result:
    """Read a training folder.

    Raises:
        InputError: It is none, or its training has not come to a checkpoint.
    """
    run = Run(folder)
    arguments: dict[str, Any] = run.arguments()
    best, checkpoint = run.best()
    weights = read_checkpoint(checkpoint, use_ema=False)
    survival, steps = weights.schedule(), int(weights.state_dict.get(STEP_KEY, 0))
    if survival is None or steps == 0:
        raise InputError(
            f"{checkpoint}: no training of a network sd_resnet*, it has no schedule or counts no draws of gates"
        )
    options = arguments.get("model_kwargs") or {}
    gates = Gates(survival, options.get("sampling", "bernoulli"), options.get("gate_seed", 0))
    drawn = [sum(gates.at(step)) for step in range(steps)]
    return Result(
        run=run,
        task=f"{arguments['model']} on {arguments['dataset']}, {arguments['epochs']} epochs",
        arm=label(survival, gates.sampling),
        seed=int(arguments["seed"]),
        epochs=run.epochs(),
        error=100 - best.top1,
        test_errors=noted(checkpoint),
        seconds=run.seconds(),
        expected_open=sum(survival) / len(survival),
        measured_open=statistics.mean(drawn) / len(survival),
    )


def arms(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    """Return the results by task and arm, constant depth last."""
    keys = sorted({(result.task, result.arm) for result in results}, key=lambda key: (key[0], key[1] == CONSTANT, key))
    return {key: [result for result in results if (result.task, result.arm) == key] for key in keys}


def _check_alike(first: Run, other: Run) -> None:
    ours, theirs = first.arguments(), other.arguments()
    for name in sorted({*ours, *theirs} - PLACE - ARM_AND_SEED):
        if ours.get(name) != theirs.get(name):
            said = f"{other.folder} has {name} {theirs.get(name)}, {first.folder} has {ours.get(name)}"
            raise InputError(f"{said}: compared are runs that differ in survival probabilities and seed alone")


def rows(results: Sequence[Result]) -> list[dict[str, str]]:
    """Return the comparison, one row an arm; a ratio of times is to the constant-depth arm of the same task.

    Raises:
        InputError: Two runs of one task differ in more than survival probabilities and seed.
    """
    grouped, firsts = arms(results), dict[str, Run]()
    for result in results:
        _check_alike(firsts.setdefault(result.task, result.run), result.run)
    return [_row(arm, grouped.get((task, CONSTANT), [])) for (task, _), arm in grouped.items()]


def _row(arm: Sequence[Result], constant: Sequence[Result]) -> dict[str, str]:
    names = sorted({name for result in arm for name in result.test_errors})
    per_epoch = _mean_seconds(arm)
    return {
        "task": arm[0].task,
        "arm": arm[0].arm,
        "seeds": " ".join(str(result.seed) for result in arm),
        "validation error %": spread([result.error for result in arm]),
        **{f"error % on {name}": spread([r.test_errors[name] for r in arm if name in r.test_errors]) for name in names},
        "s / epoch": "" if per_epoch is None else f"{per_epoch:.1f}",
        "hours": _hours(arm),
        "time / constant": _time_ratio(arm, constant),
        "open blocks, expected": f"{arm[0].expected_open:.3f}",
        "open blocks, measured": f"{statistics.mean(result.measured_open for result in arm):.3f}",
    }


def _mean_seconds(arm: Sequence[Result]) -> float | None:
    known = [result.seconds_per_epoch for result in arm if result.seconds_per_epoch is not None]
    return statistics.mean(known) if known else None


def _time_ratio(arm: Sequence[Result], constant: Sequence[Result]) -> str:
    """Return the time of an epoch against constant depth.

    It counts over epochs that ran side by side: runs of one seed are taken to have started together.
    """
    pairs = [(ours, theirs) for ours in arm for theirs in constant if ours.seed == theirs.seed]
    ratios = [
        statistics.mean(_beside(ours, theirs)) / statistics.mean(_beside(theirs, ours))
        for ours, theirs in pairs
        if ours.seconds and theirs.seconds
    ]
    return f"{statistics.mean(ratios):.2f}" if ratios else ""


def _beside(run: Result, other: Result) -> list[float]:
    """Return the seconds of a run's epochs that began while the other was still running."""
    seconds = [run.seconds[epoch] for epoch in sorted(run.seconds)]
    ended = sum(other.seconds.values())
    return [spent for spent, began in zip(seconds, accumulate(seconds, initial=0.0), strict=False) if began < ended]


def _hours(arm: Sequence[Result]) -> str:
    """Return the hours of training in all, and of how many runs where not all have their log."""
    timed = [sum(result.seconds.values()) for result in arm if result.seconds]
    if not timed:
        return ""
    partly = f" ({len(timed)} of {len(arm)} runs)" if len(timed) < len(arm) else ""
    return f"{sum(timed) / 3600:.2f}{partly}"


def label(survival: Sequence[float], sampling: str = "bernoulli") -> str:
    """Name an arm."""
    if set(survival) == {1.0}:
        return CONSTANT
    return describe(survival) + ("" if sampling == "bernoulli" else f", {sampling}")


def spread(values: Sequence[float]) -> str:
    """Return mean and standard deviation over seeds, a single value alone."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def write_report(folders: Sequence[Path], output: Path) -> list[dict[str, str]]:
    """Write table, curves and the numbers behind them into a folder; return the table's rows.

    Args:
        folders: Training folders of timm's script; a run without its log, ``train.log``, counts for errors alone.
        output: Folder to write ``table.csv``, ``table.md``, ``curves.csv`` and ``curves.*`` to, and, from the logs,
            ``time.*``, ``steps.csv`` and ``steps.*``.

    Raises:
        InputError: A folder is no training folder, two runs of one task differ in more than survival probabilities
            and seed, or matplotlib is not installed.
    """
    results = [read_result(folder) for folder in folders]
    table = rows(results)
    output.mkdir(parents=True, exist_ok=True)
    write_csv(output / "table.csv", table)
    with replacing(output / "table.md") as file:
        file.write_text(markdown(table), encoding="utf-8")
    write_csv(output / "curves.csv", [point for result in results for point in _curve(result)])
    write_figure(_draw(results, "epoch"), output / "curves")
    if timed := [result for result in results if result.seconds]:
        write_figure(_draw(timed, "training minutes"), output / "time")
    if steps := [point for result in results for point in _steps(result)]:
        write_csv(output / "steps.csv", steps)
        write_figure(_draw_steps(steps), output / "steps")
    return table


def markdown(table: Sequence[dict[str, str]]) -> str:
    """Return rows as a Markdown table."""
    columns = columns_of(table)
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in table)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _curve(result: Result) -> list[dict[str, Any]]:
    """Return a run's validated epochs with the training time until then."""
    points = []
    for epoch in result.epochs:
        seconds = sum(spent for number, spent in result.seconds.items() if number <= epoch.number)
        points.append(
            {
                "run": result.run.folder.name,
                "task": result.task,
                "arm": result.arm,
                "seed": result.seed,
                "epoch": epoch.number + 1,
                "training minutes": round(seconds / 60, 3) if result.seconds else None,
                "training loss": epoch.train_loss,
                "validation error %": round(100 - epoch.top1, 3),
            }
        )
    return points


def _draw(results: Sequence[Result], abscissa: str) -> "Figure":
    """Draw the validation error of every run over its epochs or its training time, an arm a colour."""
    figure = new_figure()
    axes = figure.subplots()
    for color, ((task, name), arm) in enumerate(arms(results).items()):
        for number, result in enumerate(arm):
            points = _curve(result)
            legend = f"{task}: {name}" if number == 0 else None
            x, y = ([point[column] for point in points] for column in (abscissa, "validation error %"))
            axes.plot(x, y, color=f"C{color}", label=legend, linewidth=1.2)
    axes.set(xlabel=abscissa, ylabel="validation error %", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def _steps(result: Result) -> list[dict[str, Any]]:
    """Return what a run's log says of single updates."""
    name, arm = result.run.folder.name, result.arm
    return [
        {"run": name, "arm": arm, "epoch": epoch, "training loss": loss, "learning rate": rate}
        for epoch, loss, rate in result.run.steps()
    ]


def _draw_steps(steps: Sequence[dict[str, Any]]) -> "Figure":
    """Draw loss and learning rate of single updates."""
    figure = new_figure()
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for name in dict.fromkeys(step["run"] for step in steps):
        own = [step for step in steps if step["run"] == name]
        epochs = [step["epoch"] for step in own]
        losses.plot(epochs, [step["training loss"] for step in own], label=f"{name}: {own[0]['arm']}", linewidth=0.8)
        rates.plot(epochs, [step["learning rate"] for step in own], linewidth=0.8)
    losses.set(ylabel="training loss", yscale="log")
    rates.set(xlabel="epoch", ylabel="learning rate")
    losses.grid(alpha=0.3, which="both")
    losses.legend()
    return figure
