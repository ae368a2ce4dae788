"""The commands ``sdzoo push``, ``sdzoo pull`` and ``sdzoo info``."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from sdzoo.errors import InputError

if TYPE_CHECKING:
    from sdzoo.hub.folder import Source
    from sdzoo.hub.results import Results
    from sdzoo.models.sd_resnet import SdResNet

console = Console(highlight=False, markup=False, soft_wrap=True)

Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit; left out: the main branch.")]


def push(
    source: Annotated[str, typer.Argument(metavar="RUN_DIR|CHECKPOINT|NAME.TAG", help="The weights to publish.")],
    repo: Annotated[str, typer.Option(metavar="NAMESPACE/NAME", help="Repository on the Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository private.")] = False,
    revision: Revision = None,
    ema: Annotated[bool | None, typer.Option(help="The moving average of the weights, or the plain ones.")] = None,
    model: Annotated[str | None, typer.Option(help="The network, where the checkpoint does not tell.")] = None,
    drop_path: Annotated[float | None, typer.Option(help="1 - p_L, where the weights carry no schedule.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Measure the test error on the data set in here.")] = None,
    quantize: Annotated[
        list[str] | None, typer.Option(help="Add this smaller ONNX file, int8 or fp16 (may be repeated).")
    ] = None,
    calibration: Annotated[Path | None, typer.Option(help="Folder with training images to quantize int8 with.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the folder here and show its card.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for --dry-run; left out: NAME.")] = None,
) -> None:
    """Publish weights with their ONNX graph, results and model card in one commit."""
    from sdzoo.hub import folder as prepare
    from sdzoo.hub.names import checked_repository, checked_revision
    from sdzoo.hub.push import publish
    from sdzoo.hub.smaller import Order
    from sdzoo.models.digest import digest

    checked_repository(repo), checked_revision(revision)
    found = prepare.find_source(source, model)
    network = prepare.load(found, ema=ema, drop_path=drop_path)
    results = _results(found, network, data_dir)
    order = Order(quantize or [], calibration, data_dir)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "folder"
        folder.mkdir()
        prepare.write_folder(folder, repo, found, network, results, order)
        if dry_run:
            return _keep(folder, output or Path(repo.partition("/")[2]))
        number = digest(network.state_dict())
        message = f"{found.name}, digest {number[:12]}"
        published = publish(folder, repo, message=message, revision=revision, private=private)
    done = "published" if published.changed else "nothing changed, no commit made"
    console.print(f"{done}: {repo} at commit {published.commit}, digest {number}")


def pull(
    name: Annotated[str, typer.Argument(metavar="NAMESPACE/NAME|NAME.TAG", help="Repository on the Hub.")],
    revision: Revision = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Fetch the ONNX files in place of the weights.")] = False,
    output: Annotated[Path | None, typer.Option(help="Copy the files into this folder too.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch again what the cache has.")] = False,
) -> None:
    """Fetch weights or ONNX files of one commit, and check that they are as published."""
    from sdzoo.hub.pull import pull as fetch

    pulled = fetch(name, revision=revision, onnx=onnx, output=output, force=force)
    if pulled.from_cache:
        console.print("the Hub could not be reached, this is what the cache has")
    console.print(f"{name} at commit {pulled.commit}: {', '.join(pulled.files)}")
    console.print(f"in {pulled.folder}")
    if not onnx:
        console.print(f'load with timm.create_model("local-dir:{pulled.folder}", pretrained=True)')


def info(
    name: Annotated[str, typer.Argument(help="Only this network, or this tag of one.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of the README.")] = False,
) -> None:
    """List the zoo: networks, weights, size, cost, open blocks in training, test error, recipe."""
    from sdzoo.hub import catalogue

    entries = catalogue.catalogue(name)
    if as_json or markdown:
        return print(catalogue.as_json(entries) if as_json else catalogue.as_markdown(entries))
    table = Table(*catalogue.COLUMNS)
    table.columns[0].no_wrap = True
    for row in catalogue.rows(entries):
        table.add_row(*row)
    Console(width=max(console.width, 140)).print(table)


def _results(source: "Source", network: "SdResNet", data_dir: Path | None) -> "Results | None":
    """Measure the test error where the data set is given, else read what lies beside the weights."""
    from sdzoo.hub.results import Results, recipe_of
    from sdzoo.models.datasets import dataset_of
    from sdzoo.models.digest import digest
    from sdzoo.training import evaluation

    if data_dir is None:
        return Results.read(source.results) if source.results else None
    dataset = dataset_of(evaluation.labels_of(network))
    images = evaluation.split("test", data_dir, network)
    score = evaluation.evaluate(network, images)
    recipe = recipe_of(source.run.arguments()) if source.run else ""
    return Results(str(dataset), score.top1, score.n, digest(network.state_dict()), recipe)


def _keep(folder: Path, target: Path) -> None:
    """Copy a folder to where nothing is yet, and show its card."""
    if target.exists():
        raise InputError(f"{target}: exists already; name another folder with --output")
    shutil.copytree(folder, target)
    console.print((target / "README.md").read_text(encoding="utf-8"))
    console.print(f"written, not published: {target.resolve()}")
