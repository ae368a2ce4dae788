"""Small real runs of timm's unmodified script, and what every one of them must have done with its gates."""

import logging
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

from sdzoo import SdResNet
from sdzoo.models.datasets import DATASETS
from sdzoo.samples import FASHION_MNIST
from sdzoo.training.launch import Recipe

INFO = DATASETS["fashion_mnist"]
VALUES = {
    "model": "sd_resnet20",
    "drop_path": 0.5,
    "data_dir": str(FASHION_MNIST),  # 200 images in a folder for each class, to train and to validate on
    "num_classes": 10,
    "input_size": [3, 8, 8],
    "mean": list(INFO.mean),
    "std": list(INFO.std),
    "no_aug": True,
    "epochs": 1,
    "batch_size": 50,
    "validation_batch_size": 100,
    "lr": 0.05,
    "sched": "constant",
    "warmup_epochs": 0,
    "smoothing": 0.0,
    "device": "cpu",
    "no_prefetcher": True,
    "workers": 0,
    "log_interval": 1,
    "checkpoint_hist": 9,
}


def write_recipe(folder: Path, **values: Any) -> Recipe:
    """Write the small run as a recipe of one's own."""
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(VALUES | values))
    return Recipe(file)


def run_script(script: Path, folder: Path, *arguments: str, **values: Any) -> dict[str, Any]:
    """Run the script inside this process, where its imports cost nothing, and return its last checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = write_recipe(folder, output=str(folder.parent), experiment=folder.name, **values)
    handlers = logging.root.handlers[:]
    with pytest.MonkeyPatch.context() as patch:
        words = ["--device-modules", "sdzoo", "--config", str(recipe.path), *arguments]
        patch.setattr(sys, "argv", [str(script), *words])
        try:
            runpy.run_path(str(script), run_name="__main__")
        finally:
            logging.root.handlers[:] = handlers  # the script adds one of its own
    return load(folder)


def load(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.pth.tar", weights_only=False)


def rank_environment(folder: Path, **variables: str) -> dict[str, str]:
    """Return the environment in which ranks on CPU find ``cpu_ranks`` and write what they saw into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tests = str(Path(__file__).parent)
    return os.environ | {"PYTHONPATH": tests, "SDZOO_RANKS": str(folder), "OMP_NUM_THREADS": "1"} | variables


def assert_gates_were_followed(state_dict: dict[str, torch.Tensor], steps: int, **arguments: Any) -> None:
    """Every block has seen as many batches as its gate was open, no more and no fewer, over exactly so many draws.

    The gates come from a network of the same arguments that has never run.
    """
    model: SdResNet = timm.create_model("sd_resnet20", **{"drop_path_rate": 0.5, **arguments})
    depth = sum(name.endswith("conv2.weight") for name in state_dict)
    if depth != 9:
        model = timm.create_model(f"sd_resnet{2 * depth + 2}", **{"drop_path_rate": 0.5, **arguments})
    assert state_dict["gate_step"] == steps
    assert tuple(state_dict["survival"].tolist()) == model.survival
    opened = torch.tensor([model.gates.at(step) for step in range(steps)]).sum(dim=0).tolist()
    assert 0 < sum(opened) < steps * len(opened), "some block must close for this to say anything"
    for norm in ("bn1", "bn2"):
        seen = [
            int(value)
            for name, value in state_dict.items()
            if name.startswith("layer") and name.endswith(f"{norm}.num_batches_tracked")
        ]
        assert seen == opened
