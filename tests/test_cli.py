"""The command line as a whole: help, and errors that are one line."""

import subprocess
import sys
from pathlib import Path

import pytest
from commandline import sdzoo

from sdzoo.cli import COMMANDS


def test_every_command_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"train", "evaluate", "data", "export", "verify", "classify"} <= set(COMMANDS)
    for command in COMMANDS:
        sdzoo(*command.split(), "--help")
        assert f"Usage: sdzoo {command}" in capsys.readouterr().out


def test_an_error_is_one_line_and_brackets_stay(capsys: pytest.CaptureFixture[str]) -> None:
    sdzoo("evaluate", "sd_resnet[20]", expect=1)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: unknown model 'sd_resnet[20]'; near names: ")
    assert len(printed.err.splitlines()) == 1


def test_usage_errors_exit_with_two() -> None:
    sdzoo("evaluate", expect=2)
    sdzoo("no-such-command", expect=2)


def test_import_brings_no_part_that_training_does_not_need() -> None:
    program = "import sys, sdzoo; print([m for m in ('onnx', 'onnxruntime', 'ray', 'matplotlib') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(("script", "option"), [("export", "writer"), ("inference", "device")])
def test_scripts_end_in_one_line_too(script: str, option: str) -> None:
    file = Path(__file__).parents[1] / "benchmarks" / f"{script}.py"
    ran = subprocess.run([sys.executable, file, f"--{option}", "abacus"], capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"error: {option} is 'abacus', must be one of ")
    assert len(ran.stderr.splitlines()) == 1
