"""Turn a finished training run into weights that ship: ``python -m sdzoo.weights.make RUN DATA_DIR``.

It takes the best validation epoch, evaluates the test split once, and writes ``MODEL.TAG.safetensors`` with its
results beside it.
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

from sdzoo import __version__
from sdzoo.checkpoints import load_model, read_checkpoint
from sdzoo.files import replacing
from sdzoo.hardware import hardware
from sdzoo.models.digest import digest, with_digest
from sdzoo.training.data import PROTOCOLS
from sdzoo.training.evaluation import evaluate, split
from sdzoo.training.launch import find_recipe
from sdzoo.training.runs import Run
from sdzoo.weights import FOLDER


def make(
    run: Annotated[Path, typer.Argument(help="Folder of the finished run.")],
    data_dir: Annotated[Path, typer.Argument(help="Folder with the data set.")],
    recipe: Annotated[str, typer.Option(help="Name of the recipe that was trained.")],
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = FOLDER,
) -> None:
    """Write the weights of a run's best epoch and their results."""
    arguments = Run(run).arguments()
    best, checkpoint = Run(run).best()
    name = str(arguments["model"])
    network = load_model(name, checkpoint=checkpoint)
    tag = PROTOCOLS[str(arguments["dataset"]).removeprefix("torch/")].source
    weights = save(with_digest(read_checkpoint(checkpoint).state_dict))
    score = evaluate(network, split("test", data_dir, network))
    low, high = score.error_interval()
    results = {
        "model": name,
        "tag": tag,
        "recipe": recipe,
        "arguments": _changed(recipe, arguments),
        "seed": arguments["seed"],
        "epochs": arguments["epochs"],
        "best_epoch": best.number,
        "survival": {"p_L": network.survival[-1], "expected_open_blocks": sum(network.survival)},
        "training_hours": round(sum(Run(run).seconds().values()) / 3600, 2),
        "hardware": hardware(),
        "versions": {"sdzoo": __version__, "torch": torch.__version__, "timm": timm.__version__},
        "commit": _commit(),
        "validation_top1": round(best.top1, 2),
        "test": {
            "top1": score.top1,
            "n": score.n,
            "error": round(score.error, 2),
            "error_95": [round(low, 2), round(high, 2)],
        },
        "sha256": hashlib.sha256(weights).hexdigest(),
        "digest": digest(network.state_dict()),
    }
    for suffix, content in ((".safetensors", weights), (".json", f"{json.dumps(results, indent=2)}\n".encode())):
        with replacing(output / f"{name}.{tag}{suffix}") as file:
            file.write_bytes(content)
    typer.echo(json.dumps(results, indent=2))


def _changed(recipe: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments in which the run differs from its recipe, without those that only say where and how."""
    values = find_recipe(recipe).values()
    return {key: arguments[key] for key in values if arguments[key] != values[key]}


def _commit() -> str:
    described = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    return described.stdout.strip()


if __name__ == "__main__":
    typer.run(make)
