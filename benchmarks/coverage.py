"""Which of timm's families can skip their dropped paths, and does each compute what timm's network would?

For every family with DropPath the smallest model with a residual path is converted and compared with timm's, the
same paths dropped: all of them, and every other one (`sdzoo.models.skip_check`).

    python benchmarks/coverage.py --output docs/results            # all families
    python benchmarks/coverage.py --families resnet swin_transformer
"""

import argparse
import csv
import importlib.metadata
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import DropPath
from torch import nn

from sdzoo import skip_drop_path
from sdzoo.hardware import hardware
from sdzoo.models.skip_check import compare, stir
from sdzoo.models.skip_trace import CannotConvertError

RATE = 0.4
UNKNOWN = 10**12
BATCH = 2
SMALL = 112


@dataclass(frozen=True)
class Row:
    """The result for one family."""

    family: str
    model: str
    paths: int = 0
    outputs: str = ""
    gradients: str = ""
    left: str = ""


def families() -> dict[str, list[str]]:
    """Return the names of timm's models by the file that defines them."""
    found = defaultdict(list)
    for name in timm.list_models():
        module = timm.models.model_entrypoint(name).__module__
        if module.startswith("timm."):
            found[module.rpartition(".")[2]].append(name)
    return dict(found)


def smallest_first(names: Iterable[str]) -> list[str]:
    """Sort models by their number of parameters; a family whose models know no DropPath gives none."""
    sizes = {name: size for name in names if (size := _parameters(name)) is not None}
    return sorted(sizes, key=lambda name: (sizes[name], name))


def _parameters(name: str) -> int | None:
    """Count without allocating; None for a model without DropPath."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name, drop_path_rate=RATE)
    except TypeError:
        return None
    except Exception:  # not every model can be built on the meta device
        return UNKNOWN
    if not any(isinstance(module, DropPath) for module in model.modules()):
        return None
    return sum(int(parameter.numel()) for parameter in model.parameters())


def check(family: str, name: str) -> Row:
    """Convert one model and compare it with timm's."""
    try:
        model, images = _build(name)
    except Exception as error:  # a family that timm itself cannot run here must not end the walk
        return Row(family, name, left=f"timm's own network does not run ({str(error).splitlines()[0]})")
    stir(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            skip_drop_path(model, strict=False)
        except CannotConvertError as error:
            return Row(family, name, left=str(error).partition("; strict=False")[0])
    left = " ".join(str(w.message) for w in said if "DropPaths stay" in str(w.message))
    if not hasattr(model, "_draws"):
        return Row(family, name, left="no path: its smallest models have none")
    for module in model.modules():
        if isinstance(module, DropPath):  # those left as timm's, which would draw
            module.drop_prob = 0.0
    result = compare(model, images)
    gradients = f"missing: {' '.join(result.missing[:3])}" if result.missing else _digits(result.gradients)
    return Row(family, name, result.paths, _digits(result.outputs), gradients, left)


def _digits(difference: float) -> str:
    return "exact" if difference == 0 else f"{difference:.0e}"


def _build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a model and random images of the smallest size, out of three, that it takes."""
    sizes: list[tuple[dict[str, Any], int | None]] = [({"img_size": SMALL}, SMALL), ({}, SMALL), ({}, None)]
    for options, side in sizes:
        torch.manual_seed(0)
        try:
            model = timm.create_model(name, drop_path_rate=RATE, **options).train()
            channels, *size = model.pretrained_cfg["input_size"]
            images = torch.randn(BATCH, channels, *([side, side] if side else size))
            with torch.no_grad():
                model(images)
            return model, images
        except Exception as error:  # whatever a model raises at a size that does not fit its windows
            reason = error
    raise reason


def rows(chosen: Iterable[str]) -> Iterator[Row]:
    """Return the result of every family: of its smallest model that has a path, or of the smallest."""
    names = families()
    for family in chosen or sorted(names):
        results: list[Row] = []
        for name in smallest_first(names[family]):
            results.append(check(family, name))
            if results[-1].paths or not results[-1].left.startswith("no path"):
                break
        if results:
            print(results[-1], flush=True)
            yield results[-1]


def write(results: list[Row], folder: Path, command: str) -> None:
    """Write coverage.csv and coverage.md."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in fields(Row)]
    with (folder / "coverage.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, names, lineterminator="\n")
        table.writeheader()
        table.writerows(asdict(row) for row in results)
    lines = ["| family | smallest model | paths | outputs | gradients | left as timm's |", "|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(str(value) for value in asdict(row).values()) + " |" for row in results]
    (folder / "coverage.md").write_text("\n".join([_title(results), _conditions(command), "", *lines, ""]))


def _title(results: list[Row]) -> str:
    converted = sum(row.paths > 0 and not row.left for row in results)
    partly = sum(row.paths > 0 and bool(row.left) for row in results)
    return (
        "# Families of timm whose dropped paths are skipped\n\n"
        f"{len(results)} families have DropPath: {converted} skip all their paths, {partly} some of them, "
        f"{len(results) - converted - partly} none.\n"
    )


def _conditions(command: str) -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("timm", "torch"))
    return (
        f"`{command}`, drop_path_rate {RATE}, batch {BATCH}, {versions}, {hardware()}.\n\n"
        "Differences are relative to the largest output or gradient. Where there are any, the first that differ "
        "are equal numbers in another memory format (a closed path hands on its shortcut in the shortcut's, timm's sum "
        "has the branch's), and what follows rounds in another order."
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", default=[], help="default: all")
    parser.add_argument("--output", type=Path, help="folder for coverage.csv and coverage.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = list(rows(arguments.families))
    if arguments.output:
        write(results, arguments.output, "python benchmarks/coverage.py --output docs/results")


if __name__ == "__main__":
    main()
