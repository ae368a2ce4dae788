"""Record the mean gradient magnitude of one weight at every update of timm's script (paper, section 5, figure 7).

The script imports the module through ``--device-modules``. Two public hooks of PyTorch do the rest: one sees the
network when it is first called to train, the other every optimizer at its step, after accumulation and clipping.
The environment says which weight and to which file; without it nothing is recorded. Only rank 0 writes: the
gradients of all ranks are the same by then.
"""

import os
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn import Parameter
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

WEIGHT_VARIABLE = "SDZOO_GRADIENT_OF"
FILE_VARIABLE = "SDZOO_GRADIENT_FILE"


def find_weight(network: nn.Module, name: str) -> Parameter | None:
    """Return a parameter by its name, also inside of wrappers such as DistributedDataParallel."""
    found = (value for key, value in network.named_parameters() if f".{key}".endswith(f".{name}"))
    return next(found, None)


def record(name: str, file: Path) -> None:
    """Write a line for every update from now on: its number and the mean of the absolute gradient of a weight."""

    def find(module: nn.Module, _: Any) -> None:
        if module.training and (weight := find_weight(module, name)) is not None:
            finding.remove()
            _watch(weight, file)

    finding = register_module_forward_pre_hook(find)


def _watch(weight: Parameter, file: Path) -> None:
    lines = file.open("w", buffering=1, encoding="utf-8")
    lines.write("update,gradient\n")
    updates = 0

    def note(*_: Any) -> None:
        nonlocal updates
        if weight.grad is not None:
            lines.write(f"{updates},{float(weight.grad.abs().mean()):.6e}\n")
        updates += 1

    register_optimizer_step_pre_hook(note)


if FILE_VARIABLE in os.environ and os.environ.get("RANK", "0") == "0":
    record(os.environ[WEIGHT_VARIABLE], Path(os.environ[FILE_VARIABLE]))
