"""timm's own model tests pass on our networks, none of them skipped by us."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["sd_resnet20", "sd_resnet110"])
def test_timms_own_tests_pass(name: str, timm_script: Path, tmp_path: Path) -> None:
    tests = timm_script.parent / "test_models.py"
    # An empty configuration: timm's tests are not ours. The plugin registers the zoo before they are collected.
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    options = ["-c", tmp_path / "pytest.ini", "--rootdir", tmp_path, "-p", "sdzoo", "-p", "no:cacheprovider"]
    select = ["-k", f"{name} or {name}.", "-q", "-rs", "--color=no"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *select, tests], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed
    assert int(passed[1]) >= 8
    assert "skipped" not in ran.stdout
