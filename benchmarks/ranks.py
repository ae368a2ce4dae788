"""Run a benchmark in one process, or in every process that torchrun starts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed


@contextmanager
def this_rank() -> Iterator[tuple[int, torch.device]]:
    """Give this process's rank and device; under torchrun it joins the others, and leaves them at the end."""
    if "RANK" in os.environ:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    yield int(os.environ.get("RANK", 0)), device
    if distributed.is_initialized():
        distributed.destroy_process_group()
