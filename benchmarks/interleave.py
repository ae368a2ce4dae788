"""Time several ways of doing one thing side by side: one step of each in turn, so that drift hits all alike."""

import time
from collections.abc import Callable, Mapping

import torch


def interleaved(arms: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Return the seconds of every step of every arm.

    Args:
        arms: Name to a function that takes one step.
        rounds: Steps of each arm that count, at least 1.
        warmup: Steps of each arm before, that do not.
    """
    for _ in range(warmup):
        for step in arms.values():
            step()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, step in arms.items():
            seconds[name].append(_time(step))
    return seconds


def _time(step: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        milliseconds: float = start.elapsed_time(end)
        return milliseconds / 1e3
    began = time.perf_counter()
    step()
    return time.perf_counter() - began
