"""Name the hardware, so that no figure stands without it."""

import os
import platform
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")


def hardware() -> str:
    """Return the GPU's name, or the processor's with its vector instructions, threads in use and cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    level, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    return f"{_processor()} ({level}), {threads} of {os.cpu_count()} cores"


def _processor() -> str:
    lines = CPUINFO.read_text(encoding="utf-8").splitlines() if CPUINFO.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
