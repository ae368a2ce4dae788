"""Weights as a training leaves them, and the folder that is published of them, for the tests of the Hub."""

import csv
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

import sdzoo
from sdzoo.hub.folder import Source, find_source, load, write_folder
from sdzoo.models.datasets import DATASETS

REPOSITORY = "somebody/sd_resnet20.fashion_mnist"
FILES = [
    "README.md",
    "SHA256SUMS",
    "config.json",
    "model.safetensors",
    "onnx/model.onnx",
    "results/args.yaml",
    "results/summary.csv",
]
FASHION = DATASETS["fashion_mnist"]
ARGUMENTS = {
    "model": "sd_resnet20",
    "experiment": "fashion_mnist_resnet20",
    "dataset": "torch/sd_fashion_mnist",
    "data_dir": "/home/somebody/data",
    "output": "~/runs",
    "epochs": 2,
    "drop_path": 0.1,
    "num_classes": 10,
    "input_size": [3, FASHION.size, FASHION.size],
    "mean": list(FASHION.mean),
    "std": list(FASHION.std),
}


def trained(seed: int = 0) -> sdzoo.SdResNet:
    """Return a network with p_L = 0.9 whose every number, BN statistics too, is random."""
    generator = torch.Generator().manual_seed(seed)
    model: sdzoo.SdResNet = timm.create_model("sd_resnet20", drop_path_rate=0.1)
    for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point() and b.dim())):
        tensor.data.copy_(0.1 + 0.1 * torch.rand(tensor.shape, generator=generator))
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data.sub_(0.15)
    model.fc.weight.data.sub_(0.15)
    return model.eval()


def write_run(folder: Path, seed: int = 0, ema_seed: int | None = None, changed: Mapping[str, Any] = ARGUMENTS) -> Path:
    """Write the files that timm's script leaves of two epochs, the second of which is the better."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.yaml").write_text(yaml.safe_dump(ARGUMENTS | dict(changed)))
    with (folder / "summary.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["epoch", "train_loss", "eval_loss", "eval_top1", "eval_top5", "lr"])
        rows.writerows([[0, 1.0, 0.9, 60.0, 90.0, 0.1], [1, 0.5, 0.4, 80.0, 99.0, 0.1]])
    for epoch, epoch_seed in ((0, seed + 1000), (1, seed)):
        checkpoint = {
            "epoch": epoch,
            "arch": "sd_resnet20",
            "state_dict": trained(epoch_seed).state_dict(),
            "version": 2,
            "args": Namespace(**ARGUMENTS | dict(changed)),
        }
        if ema_seed is not None:
            checkpoint["state_dict_ema"] = trained(ema_seed).state_dict()
        torch.save(checkpoint, folder / f"checkpoint-{epoch}.pth.tar")
    return folder


def write_published(folder: Path, run: Path, repository: str = REPOSITORY) -> Source:
    """Write what would be published of a training folder."""
    folder.mkdir()
    source = find_source(str(run))
    write_folder(folder, repository, source, load(source), None)
    return source


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, run_folder: Path) -> Iterator[Path]:
    """A folder as it is published; read-only by agreement."""
    folder = tmp_path_factory.mktemp("published") / "folder"
    write_published(folder, run_folder)
    yield folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
