"""The training steps that the step time benchmark compares: the arms of ``peers``, all set up alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peers import needs_unused, torch_seeded
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from sdzoo import SdResNet

Step = Callable[[], None]


@dataclass(frozen=True)
class Setup:
    """What all arms of one run share."""

    depth: int
    p_L: float  # noqa: N815  the paper's symbol
    batch: int
    channels_last: bool
    compiled: bool
    device: torch.device

    def place(self, module: Any) -> Any:
        """Move a module or a batch to the device and memory format."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return module.to(self.device, memory_format=layout)

    def images(self, channels: int = 3, size: int = 32) -> Tensor:
        """Return one batch of the same random images for all arms."""
        generator = torch.Generator().manual_seed(0)
        images: Tensor = self.place(torch.randn(self.batch, channels, size, size, generator=generator))
        return images

    def model(self, network: nn.Module) -> nn.Module:
        """Return what is called in place of the network: it compiled, where this run compiles."""
        return torch.compile(network) if self.compiled else network  # type: ignore[return-value]

    def loss(self, model: nn.Module) -> Step:
        """Return the function that runs forward and backward of one batch."""
        images, labels = self.images(), torch.arange(self.batch, device=self.device) % 10
        return lambda: cross_entropy(model(images), labels).backward()


def arm(setup: Setup, name: str) -> tuple[SdResNet, Step]:
    """Return the network of an arm and the function that takes one training step with it."""
    network: SdResNet = setup.place(torch_seeded(name, setup.depth, 1 - setup.p_L)).train()
    model = setup.model(network)
    if distributed.is_initialized():
        model = DistributedDataParallel(model, find_unused_parameters=needs_unused(name))
    # Fused SGD fails where a parameter's first gradient is None.
    fused = not needs_unused(name)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, nesterov=True, fused=fused)
    forward_backward = setup.loss(model)

    def step() -> None:
        forward_backward()
        optimizer.step()
        optimizer.zero_grad()

    return network, step


def closed_costs(network: SdResNet, costs: Sequence[float], steps: range) -> list[float]:
    """Return, for each of these steps, the sum of what the blocks that it closed cost."""
    return [
        sum(cost for cost, is_open in zip(costs, network.gates.at(step), strict=True) if not is_open) for step in steps
    ]
