"""Imported into every rank of timm's script by the tests: lets it run on CPU, watches it and can kill it.

The script hands DistributedDataParallel the device [cpu], which PyTorch refuses: left out here. At its end every rank
writes what the ranks are compared by to ``$SDZOO_RANKS/<rank>.pt``. ``$SDZOO_DIES`` is ``rank:step:times``: that rank
kills itself in place of that step, so many times over all starts.
"""

import atexit
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.task import ClassificationTask
from torch import nn

FOLDER = Path(os.environ["SDZOO_RANKS"])
RANK = int(os.environ["RANK"])
prepare_distributed = ClassificationTask.prepare_distributed


def prepare_on_cpu(task: ClassificationTask, device_ids: Any = None, **options: Any) -> ClassificationTask:
    watch(task.trainable_module)
    return prepare_distributed(task, **options)


def watch(model: nn.Module) -> None:
    calls: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(partial(record, calls, name))
    model.register_forward_pre_hook(die_in_place_of_a_step)
    atexit.register(write, model, calls)


def record(calls: list[str], name: str, module: nn.Module, *_: Any) -> None:
    if module.training:
        calls.append(name)


def die_in_place_of_a_step(model: nn.Module, _: Any) -> None:
    rank, step, times = map(int, (os.environ.get("SDZOO_DIES") or "-1:0:0").split(":"))
    deaths = FOLDER / "deaths"
    died = len(deaths.read_text()) if deaths.exists() else 0
    if model.training and model.gates.step == step and rank == RANK and died < times:
        deaths.write_text("x" * (died + 1))
        os.kill(os.getpid(), signal.SIGKILL)


def write(model: nn.Module, calls: list[str]) -> None:
    torch.save({"state_dict": model.state_dict(), "calls": calls}, FOLDER / f"{RANK}.pt")


ClassificationTask.prepare_distributed = prepare_on_cpu
