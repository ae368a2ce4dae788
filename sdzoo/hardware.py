"""Name the hardware, so that no figure stands without it."""

import os
import platform
import re
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")


def hardware() -> str:
    """Return the GPU's name, or the processor's with its vector instructions, threads in use and cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def processor() -> str:
    """Return the processor's name with its vector instructions; VNNI decides how fast 8-bit integers are."""
    described = CPUINFO.read_text(encoding="utf-8") if CPUINFO.is_file() else ""
    name = re.search(r"^model name\s*: (.+)", described, re.MULTILINE)
    vnni = " and VNNI" if re.search(r"\bavx(512)?_vnni\b", described) else ""
    return f"{name[1] if name else platform.processor()} ({torch.backends.cpu.get_cpu_capability()}{vnni})"
