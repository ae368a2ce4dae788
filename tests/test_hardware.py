"""The hardware's name is what the system says."""

import os
import platform
from pathlib import Path

import pytest
import torch

from sdzoo import hardware as module


@pytest.mark.skipif(torch.cuda.is_available(), reason="names the GPU where there is one")
def test_processor_vector_instructions_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Best CPU: 9\nmodel name\t: Best CPU: 9\n")
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    named = module.hardware()
    assert named.startswith(f"Best CPU: 9 ({torch.backends.cpu.get_cpu_capability()}), ")
    assert named.endswith(f"{torch.get_num_threads()} of {os.cpu_count()} cores")
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "absent")
    assert module.hardware().startswith(platform.processor())
