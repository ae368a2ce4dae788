"""What stochastic depth itself costs in a step: drawing the gates, and the zero gradients of closed blocks."""

import statistics
import time
import timeit
from itertools import chain

import torch
from arms import Setup
from interleave import interleaved
from peers import torch_seeded
from torch.nn import Parameter

from sdzoo import SdResNet
from sdzoo.models.blocks import parameters_of
from sdzoo.models.gates import Gates
from sdzoo.models.tie import tie_zero_gradients


def draw_microseconds(gates: Gates, draws: int = 1_000) -> float:
    """Return the processor time of one draw of all gates: the best of five series."""
    again = Gates(gates.survival, gates.sampling, gates.seed)
    return 1e6 * min(timeit.repeat(again.draw, number=draws, repeat=5, timer=time.process_time)) / draws


def tie_seconds(setup: Setup, name: str, rounds: int = 50) -> float:
    """Return the time that the tie takes in a step: its forward, its backward and the freeing of its gradients."""
    network = setup.place(torch_seeded(name, setup.depth, 1 - setup.p_L))
    draws = iter([_closed_parameters(network, step) for step in range(2 * rounds)])
    tail = torch.zeros(1, device=setup.device, requires_grad=True)

    def step() -> None:
        x, stages = tail, next(draws)
        for closed in stages:
            x = tie_zero_gradients(x, closed)
        x.sum().backward()
        for parameter in chain(*stages):
            parameter.grad = None

    return statistics.median(interleaved({"tie": step}, rounds)["tie"])


def _closed_parameters(network: SdResNet, step: int) -> list[list[Parameter]]:
    gates = iter(network.gates.at(step))
    return [parameters_of([block for block in stage if not next(gates)]) for stage in network._stages()]
