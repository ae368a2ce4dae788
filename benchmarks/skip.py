"""Step time and memory of skipped paths in timm's networks, beside timm's DropPath, constant depth and the limit.

    python benchmarks/skip.py --models vit_small_patch16_224 --batch 4
    torchrun --nproc-per-node 2 benchmarks/skip.py --models resnet50 --batch 4

Every residual path has the same rate, the first included, in all arms. The limit of a step is the constant-depth step
minus the cost of what was not computed in it: the cost of a path is forward and backward of its branch alone, on
the inputs it has in the network, measured in the same run. On a GPU the same command uses CUDA events and memory.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import timm
import torch
import typer
from interleave import interleaved
from memory import saved_bytes
from ranks import this_rank
from rich.console import Console
from rich.table import Table
from rows import Row, add_rows
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from sdzoo import skip_drop_path
from sdzoo.cli import run_script
from sdzoo.hardware import hardware
from sdzoo.models.skip import SkippingNetwork
from sdzoo.models.skip_block import Skip
from sdzoo.models.skip_check import with_gates
from sdzoo.models.skip_class import restore
from sdzoo.models.skip_cut import Path as ResidualPath
from sdzoo.models.skip_draws import MODES

Step = Callable[[], None]
MODELS = ["vit_tiny_patch16_224", "vit_small_patch16_224", "resnet50", "convnext_tiny", "swin_tiny_patch4_window7_224"]
ARMS = ("constant depth", "timm's DropPath", *MODES)


@dataclass(frozen=True)
class Setup:
    """What all arms of one run share."""

    model: str
    rate: float
    batch: int
    size: int
    compiled: bool
    device: torch.device

    def network(self, arm: str) -> nn.Module:
        """Return the network of an arm, the same weights in each."""
        torch.manual_seed(0)
        rate = 0.0 if arm == ARMS[0] else self.rate
        network: nn.Module = timm.create_model(self.model, drop_path_rate=rate).train().to(self.device)
        if arm == ARMS[0]:
            return network
        skip_drop_path(network, mode=arm if arm in MODES else "batch", schedule="uniform", strict=False)
        if arm == ARMS[1]:
            for module in network.modules():
                restore(module)  # the DropPaths stay, and timm's forward calls them
        return network

    def images(self) -> Tensor:
        """Return one batch of random images."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, 3, self.size, self.size, generator=generator).to(self.device)

    def step(self, network: nn.Module) -> Step:
        """Return the function that takes one training step."""
        model: nn.Module = torch.compile(network) if self.compiled else network  # type: ignore[assignment]
        if distributed.is_initialized():
            model = DistributedDataParallel(model)
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, nesterov=True, fused=True)
        images, labels = self.images(), torch.arange(self.batch, device=self.device)

        def step() -> None:
            cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step


def path_costs(setup: Setup, rounds: int) -> list[float]:
    """Return the seconds of forward and backward of every path's branch; equal branches are measured once."""
    network = setup.network("batch")
    assert isinstance(network, SkippingNetwork)
    steps: dict[str, Step] = {}
    branches = []
    for path, block, inputs in _recorded(with_gates(network, [True] * len(network._draws.gates.survival)), setup):
        branches.append(str(id(path.branch)))
        if branches[-1] not in steps:
            branch = torch.compile(path.branch) if setup.compiled else path.branch
            steps[branches[-1]] = _branch_step(branch, block, inputs)
    seconds = interleaved(steps, rounds)
    return [statistics.median(seconds[branch]) for branch in branches]


def _recorded(network: nn.Module, setup: Setup) -> Iterator[tuple[ResidualPath, nn.Module, Sequence[Any]]]:
    """Run the network once with all paths open; return every path with its block and the inputs of its branch."""
    seen: list[tuple[ResidualPath, nn.Module, Sequence[Any]]] = []

    def recording(path: ResidualPath) -> ResidualPath:
        def branch(block: nn.Module, shortcut: Tensor, scale: Tensor | None, *inputs: Any) -> Tensor:
            seen.append((path, block, [x.detach() if isinstance(x, Tensor) else x for x in inputs]))
            return path.branch(block, shortcut, scale, *inputs)

        return dataclasses.replace(path, branch=branch)

    with torch.no_grad():
        network(setup.images())  # fills the plans of this copy
    for module in network.modules():
        if hasattr(module, "_skip"):
            skip = cast(Skip, module._skip)
            for key, plan in skip.plans.items():
                paths = tuple(recording(path) for path in plan.paths)
                skip.plans[key] = dataclasses.replace(plan, paths=paths)
    with torch.no_grad():
        network(setup.images())
    return iter(seen)


def _branch_step(branch: Callable[..., Tensor], block: nn.Module, inputs: Sequence[Any]) -> Step:
    leaves = [x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    gradient = torch.ones_like(branch(block, None, None, *inputs))
    changed = [tensor for tensor in (*block.parameters(), *leaves) if isinstance(tensor, Tensor)]

    def step() -> None:
        branch(block, None, None, *leaves).backward(gradient)
        for tensor in changed:
            tensor.grad = None  # as after a training step: the next gradient is stored, not added

    return step


def measure(setup: Setup, rounds: int, warmup: int = 3) -> list[Row]:
    """Run all arms side by side."""
    networks = {arm: setup.network(arm) for arm in ARMS}
    steps = {arm: setup.step(network) for arm, network in networks.items()}
    costs = path_costs(setup, rounds)
    seconds = interleaved(steps, rounds, warmup)
    constant = statistics.mean(seconds[ARMS[0]])
    rows = []
    for arm, network in networks.items():
        limit = constant - _saved(network, costs, range(warmup, warmup + rounds)) if arm in MODES else None
        mean = statistics.mean(seconds[arm])
        row = Row(
            arm=arm,
            seconds=mean,
            ratio=mean / constant,
            limit=limit / constant if limit else None,
            quotient=mean / limit if limit else None,
            variation=statistics.stdev(seconds[arm]) / mean,
            megabytes=_megabytes(steps[arm]),
        )
        rows.append(row)
    return rows


def _saved(network: nn.Module, costs: Sequence[float], steps: range) -> float:
    """Return the mean cost of what the draws of these steps left out."""
    assert isinstance(network, SkippingNetwork)
    draws, batch = network._draws, network._draws.now.batch
    after = draws.gates.step
    saved = []
    for draws.gates.step in steps:
        windows = MODES[draws.mode](draws.gates, batch)
        saved.append(sum(cost * (1 - w.rows / batch) for cost, w in zip(costs, windows, strict=True)))
    draws.gates.step = after
    return statistics.mean(saved)


def _megabytes(step: Step, rounds: int = 3) -> float:
    """Return the peak memory of a step on a GPU, on a CPU the mean of what autograd keeps for the backward."""
    if not torch.cuda.is_available():
        return statistics.mean(saved_bytes(step) for _ in range(rounds)) / 1e6
    torch.cuda.reset_peak_memory_stats()
    for _ in range(rounds):
        step()
    return torch.cuda.max_memory_allocated() / 1e6


def main(
    models: Annotated[list[str], typer.Option(help="Names of timm's models.")] = MODELS,
    rate: Annotated[float, typer.Option(help="Drop rate of every path, in (0, 1).")] = 0.4,
    batch: Annotated[int, typer.Option(help="Images a step and process.")] = 4,
    size: Annotated[int, typer.Option(help="Height and width of the images.")] = 224,
    rounds: Annotated[int, typer.Option(help="Steps of each arm that count, at least 2.")] = 15,
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile the networks.")] = False,
    output: Annotated[Path | None, typer.Option(help="CSV file to add the rows to.")] = None,
) -> None:
    """Print, and add to a CSV file, the step times of all arms."""
    torch._dynamo.config.recompile_limit = 64  # the arms share timm's code: each needs its graphs of it
    with this_rank() as (rank, device):
        for model in models:
            setup = Setup(model, rate, batch, size, compiled, device)
            rows = measure(setup, rounds)
            if rank == 0:
                report(setup, rows, rounds, output)


def report(setup: Setup, rows: list[Row], rounds: int, output: Path | None) -> None:
    """Print a table; add its rows to a CSV file."""
    facts = {
        "model": setup.model,
        "rate": setup.rate,
        "batch": setup.batch,
        "size": setup.size,
        "processes": distributed.get_world_size() if distributed.is_initialized() else 1,
        "compiled": setup.compiled,
        "steps": rounds,
        "hardware": hardware(),
        "torch": torch.__version__,
        "timm": timm.__version__,
    }
    table = Table("arm", "ms", "/ constant", "limit", "/ limit", "variation", "MB", title=str(facts))
    for row in rows:
        limit = ("", "") if row.limit is None else (f"{row.limit:.3f}", f"{row.quotient:.3f}")
        times = f"{1e3 * row.seconds:.1f}", f"{row.ratio:.3f}"
        table.add_row(row.arm, *times, *limit, f"{row.variation:.3f}", f"{row.megabytes:.1f}")
    Console(width=130).print(table)
    if output:
        add_rows(output, [facts | vars(row) for row in rows])


if __name__ == "__main__":
    run_script(main)
