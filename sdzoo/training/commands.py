"""The commands ``sdzoo train``, ``evaluate``, ``report``, ``analyse`` and ``data``."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from sdzoo.errors import InputError

console = Console(highlight=False, markup=False, soft_wrap=True)


def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a .yaml file.")] = "",
    list_: Annotated[bool, typer.Option("--list", help="Show the shipped recipes.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command, run nothing.")] = False,
    nproc_per_node: Annotated[int, typer.Option(min=0, help="Processes; default: one a GPU, at least one.")] = 0,
    auto_resume: Annotated[
        bool, typer.Option("--auto-resume", help="Go on where a process died; with --experiment a new start too.")
    ] = False,
    nnodes: Annotated[int, typer.Option(min=1, help="Machines; run the same command on each.")] = 1,
    rdzv_endpoint: Annotated[str, typer.Option(help="host:port of one machine, where several meet.")] = "",
) -> None:
    """Train a recipe with timm's own train script; every argument not listed here goes on to that script."""
    import torch

    from sdzoo.training import launch
    from sdzoo.training.runs import Run
    from sdzoo.training.supervise import RESTARTS, supervise

    if list_:
        return _print_recipes()
    if not recipe:
        raise InputError("name a recipe; `sdzoo train --list` shows them")
    found = launch.find_recipe(recipe)
    script = launch.find_script()
    launch.check_recipe(found, launch.script_arguments(script))
    processes = nproc_per_node or max(1, torch.cuda.device_count())
    machines = launch.Machines(processes, nnodes, rdzv_endpoint, RESTARTS if auto_resume else 0)
    launch.check_arguments(context.args, machines)
    launch.check_model(found, context.args)
    words = launch.command(found, context.args, script, machines)
    if dry_run:
        return console.print(shlex.join(words))
    launch.check_data(found, context.args)
    folder = (supervise if auto_resume else launch.run)(words)
    if nnodes > 1:  # the machine that writes may not have finished
        return console.print(f"the run is in {folder}")
    best, checkpoint = Run(folder).best()
    console.print(f"best epoch {best.number}: validation top-1 {best.top1:.2f} %\n{checkpoint}")


def _print_recipes() -> None:
    from sdzoo.training.launch import recipes

    table = Table(Column("recipe", no_wrap=True), "goal", "expected")
    for recipe in recipes():
        header = recipe.header()
        table.add_row(recipe.name, header["Goal"], header["Expected"])
    console.print(table)


def evaluate(
    model: Annotated[str, typer.Argument(help="Model of the zoo, with or without a tag.")],
    checkpoint: Annotated[Path | None, typer.Option(help="Weights to evaluate in place of the tag's.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    data_dir: Annotated[Path, typer.Option(help="Folder with the data set.")] = Path("data"),
    images: Annotated[Path | None, typer.Option(help="Evaluate on this class-per-folder tree instead.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="Run this ONNX file in place of PyTorch.")] = None,
    drop_path: Annotated[float | None, typer.Option(help="1 - p_L, where the weights carry no schedule.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Note it beside the checkpoint, for the report.")] = False,
) -> None:
    """Print top-1 error, number of images and 95 % interval on a split of the weights' data set, or on a folder."""
    from sdzoo.checkpoints import load_model
    from sdzoo.training import evaluation

    if record and checkpoint is None:
        raise InputError("--record notes the result beside the checkpoint; give one with --checkpoint")
    if record and onnx is not None:
        raise InputError("--record notes the checkpoint's own result; leave --onnx out")
    network = load_model(model, checkpoint=checkpoint, drop_path=drop_path)
    labelled = evaluation.folder(images, network) if images else evaluation.split(split, data_dir, network)
    run = evaluation.onnx_network(onnx, evaluation.labels_of(network)) if onnx else network
    score = evaluation.evaluate(run, labelled)
    low, high = score.error_interval()
    console.print(
        f"{onnx or checkpoint or model} on {images or f'the {split} split'}: top-1 {score.top1:.2f} %, "
        f"error {score.error:.2f} % (95 % interval {low:.2f} to {high:.2f}), n = {score.n:,}"
    )
    if record and checkpoint is not None:
        evaluation.note(checkpoint, images.name if images else split, score)


def report(
    runs: Annotated[list[Path], typer.Argument(help="Training folders: the arms to compare, any number of seeds.")],
    output: Annotated[Path, typer.Option(help="Folder for the table, the curves and their numbers.")] = Path("report"),
) -> None:
    """Compare finished runs: errors over seeds, time against constant depth, open blocks, learning curves."""
    from sdzoo.training.report import write_report

    _print_table(write_report(runs, output), output)


def gradients(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a .yaml file.")],
    p_l: Annotated[list[float], typer.Option("--p-l", help="The arms; 1 is constant depth.")] = [0.5, 1.0],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Seeds of every arm.")] = [1],  # noqa: B006
    rule: Annotated[str, typer.Option(help="Survival probabilities: linear or uniform.")] = "linear",
    weight: Annotated[str, typer.Option(help="Parameter to follow.")] = "layer1.0.conv1.weight",
    output: Annotated[Path, typer.Option(help="Folder for runs, table and figure.")] = Path("analysis"),
) -> None:
    """Train arms and compare the mean gradient magnitude of the first block; further arguments go to timm's script."""
    from sdzoo.training.analyse_gradients import analyse_gradients
    from sdzoo.training.launch import find_recipe
    from sdzoo.training.sweep import Sweep, cells

    sweep = Sweep(find_recipe(recipe), context.args, output)
    _print_table(analyse_gradients(sweep, cells(p_l, [rule], seed), weight), output)


def survival(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a .yaml file.")],
    p_l: Annotated[list[float], typer.Option("--p-l", help="The sweep; 1 is constant depth.")] = [0.2, 0.5, 0.8, 1.0],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Seeds of every cell.")] = [1],  # noqa: B006
    rule: Annotated[list[str], typer.Option(help="linear, uniform.")] = ["linear", "uniform"],  # noqa: B006
    output: Annotated[Path, typer.Option(help="Folder for runs, table and figure.")] = Path("analysis"),
) -> None:
    """Train a sweep over survival probabilities and compare errors; further arguments go to timm's script."""
    from sdzoo.training.analyse_survival import analyse_survival
    from sdzoo.training.launch import find_recipe
    from sdzoo.training.sweep import Sweep, cells

    sweep = Sweep(find_recipe(recipe), context.args, output)
    _print_table(analyse_survival(sweep, cells(p_l, rule, seed)), output)


def _print_table(rows: Sequence[Mapping[str, object]], output: Path) -> None:
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in rows[0]))
    Console(width=max(console.width, 160)).print(table)
    console.print(f"written: {output.resolve()}")


def data(
    dataset: Annotated[str, typer.Argument(help="fashion-mnist, cifar10, cifar100 or svhn.")],
    source: Annotated[Path | None, typer.Option("--from", help="Folder or archive with the official files.")] = None,
    to: Annotated[Path, typer.Option(help="Data folder, what training takes as --data-dir.")] = Path("data"),
) -> None:
    """Bring a data set into place, every file checked; without --from, torchvision downloads it."""
    from sdzoo.training.install import download, install

    installed = install(dataset, source, to) if source else download(dataset, to)
    console.print(f"{dataset} is in {installed.folder}; train with --data-dir {to}")
    for name, consequence in installed.absent.items():
        console.print(f"{name} was not there: {consequence}")
