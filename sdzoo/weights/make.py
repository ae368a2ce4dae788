"""Turn a finished training run into weights that ship: ``python -m sdzoo.weights.make RUN DATA_DIR --recipe NAME``.

It takes the epoch that the script validated best, evaluates it in float32 on the validation images and once on the
test split, and writes ``MODEL.TAG.safetensors`` with its results beside it. Of CIFAR-10, whose test split nobody may
pass on, it takes image files in place of the split: a lossless part of it (``--lossless``) and all of it, compressed
(``--compressed``).
"""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Annotated, Any

import timm
import torch
import typer
from safetensors.torch import save
from torch.utils.data import Subset

from sdzoo import __version__
from sdzoo.checkpoints import load_model, read_checkpoint
from sdzoo.cli import run_script
from sdzoo.errors import InputError
from sdzoo.files import replacing
from sdzoo.hardware import hardware
from sdzoo.models.digest import digest, with_digest
from sdzoo.models.sd_resnet import SdResNet
from sdzoo.training.data import PROTOCOLS
from sdzoo.training.evaluation import Score, evaluate, folder, split
from sdzoo.training.launch import find_recipe
from sdzoo.training.runs import LOG, Run
from sdzoo.weights import FOLDER


def make(
    run: Annotated[Path, typer.Argument(help="Folder of the finished run.")],
    data_dir: Annotated[Path, typer.Argument(help="Folder with the data set.")],
    *,
    recipe: Annotated[str, typer.Option(help="Name of the recipe that was trained.")],
    commit: Annotated[str, typer.Option(help="Commit of the code that trained it; default: the current one.")] = "HEAD",
    machine: Annotated[str, typer.Option(help="Where it was trained; default: on this machine.")] = "",
    lossless: Annotated[Path | None, typer.Option(help="Image folder with a part of the test split.")] = None,
    compressed: Annotated[Path | None, typer.Option(help="Image folder with all of it, as JPEG.")] = None,
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = FOLDER,
) -> None:
    """Write the weights of a run's best epoch and their results."""
    if (lossless is None) != (compressed is None):
        raise typer.BadParameter("--lossless and --compressed are given together or not at all")
    _, checkpoint = Run(run).best()
    network = load_model(str(Run(run).arguments()["model"]), checkpoint=checkpoint)
    weights = save(with_digest(read_checkpoint(checkpoint).state_dict), {"format": "pt"})
    if lossless and compressed:
        tested = _tested_in_part(network, lossless, compressed)
    else:
        tested = {"test": _result(evaluate(network, split("test", data_dir, network)))}
    validated = {"validation_top1": round(evaluate(network, split("validation", data_dir, network)).top1, 2)}
    facts = _trained(Run(run), recipe, commit, machine or hardware()) | _survival(network) | validated | tested
    results = facts | {"sha256": hashlib.sha256(weights).hexdigest(), "digest": digest(network.state_dict())}
    for suffix, content in ((".safetensors", weights), (".json", f"{json.dumps(results, indent=2)}\n".encode())):
        with replacing(output / f"{results['model']}.{results['tag']}{suffix}") as file:
            file.write_bytes(content)
    typer.echo(json.dumps(results, indent=2))


def _trained(run: Run, recipe: str, commit: str, machine: str) -> dict[str, Any]:
    """Say how the weights came to be."""
    arguments: dict[str, Any] = run.arguments()
    best, _ = run.best()
    return {
        "model": arguments["model"],
        "tag": PROTOCOLS[arguments["dataset"].removeprefix("torch/")].source,
        "recipe": recipe,
        "arguments": _changed(recipe, arguments),
        "seed": arguments["seed"],
        "epochs": arguments["epochs"],
        "best_epoch": best.number,
        "training_hours": round(_seconds(run) / 3600, 2),
        "precision": arguments["amp_dtype"] if arguments["amp"] else "float32",
        "hardware": machine,
        "versions": {"sdzoo": __version__, "torch": torch.__version__, "timm": timm.__version__},
        "commit": _commit(commit),
    }


def _seconds(run: Run) -> float:
    """Return the seconds of training, without validation, of all epochs."""
    seconds, epochs = run.seconds(), run.epochs()
    if missing := [epoch.number for epoch in epochs if epoch.number not in seconds]:
        raise InputError(f"{run.folder / LOG}: tells no time of epoch {missing[0]}")
    return sum(seconds.values())


def _survival(network: SdResNet) -> dict[str, Any]:
    return {"survival": {"p_L": network.survival[-1], "expected_open_blocks": round(sum(network.survival), 2)}}


def _result(score: Score) -> dict[str, Any]:
    interval = [round(end, 2) for end in score.error_interval()]
    return {"top1": score.top1, "n": score.n, "error": round(score.error, 2), "error_95": interval}


def _tested_in_part(network: SdResNet, lossless: Path, compressed: Path) -> dict[str, Any]:
    """Return the results on a lossless part of the test split, on all of it compressed, and the estimate from both.

    The estimate is the error on all compressed images, corrected by what compression costs on the lossless part.
    """
    part, whole = folder(lossless, network), folder(compressed, network)
    indices = {(file.parent.name, file.stem): index for index, file in enumerate(whole.files)}
    names = [(file.parent.name, file.stem) for file in part.files]
    if missing := ["/".join(name) for name in names if name not in indices]:
        raise InputError(f"{compressed}: has no {missing[0]}, which is in {lossless}")
    same = Subset(whole, [indices[name] for name in names])
    on_part, on_whole, on_same = (evaluate(network, images) for images in (part, whole, same))
    return {
        "test": {"images": lossless.name, **_result(on_part)},
        "test_compressed": {"images": compressed.name, **_result(on_whole)},
        "test_estimate": {
            "error": round(on_whole.error - on_same.error + on_part.error, 2),
            "error_of_the_part_compressed": round(on_same.error, 2),
        },
    }


def _changed(recipe: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that the recipe names and the run had otherwise."""
    values = find_recipe(recipe).values()
    return {key: arguments[key] for key in values if arguments[key] != values[key]}


def _commit(name: str) -> str:
    described = subprocess.run(["git", "rev-parse", name], capture_output=True, text=True, check=True)
    return described.stdout.strip()


if __name__ == "__main__":
    run_script(make)
