"""Which checkpoint a run goes on from, and how long it is kept going. Real ranks are in the distributed tests."""

import sys
from pathlib import Path

import pytest

from sdzoo.errors import InputError
from sdzoo.training import resume
from sdzoo.training.supervise import supervise

# Stands for a training: writes a checkpoint at each of its first starts, fails until it has been started often enough.
SCRIPT = """
import pathlib, sys
folder, checkpoints, starts = pathlib.Path(sys.argv[2], sys.argv[4]), int(sys.argv[5]), int(sys.argv[6])
started = folder / "started"
n = len(started.read_text()) + 1 if started.exists() else 1
started.write_text("x" * n)
if n <= checkpoints:
    (folder / "last.pth.tar").write_text(str(n))
sys.exit(n < starts)
"""


def command(tmp_path: Path, checkpoints: int, starts: int) -> list[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    where = ["--output", str(tmp_path), "--experiment", "run"]
    return [sys.executable, str(tmp_path / "script.py"), *where, str(checkpoints), str(starts)]


def starts(tmp_path: Path) -> int:
    return len((tmp_path / "run" / "started").read_text())


def test_a_run_is_started_again_as_long_as_it_gets_further(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert supervise(command(tmp_path, checkpoints=4, starts=5), pause=0) == tmp_path / "run"
    assert starts(tmp_path) == 5
    last = tmp_path / "run" / "last.pth.tar"
    assert capfd.readouterr().out.count(f"training ended with exit status 1; going on from {last}") == 4


@pytest.mark.parametrize(("checkpoints", "expected"), [(0, 1), (2, 3)])
def test_a_run_that_gets_nowhere_is_given_up(tmp_path: Path, checkpoints: int, expected: int) -> None:
    with pytest.raises(InputError, match="exit status 1"):
        supervise(command(tmp_path, checkpoints, starts=99), pause=0)
    assert starts(tmp_path) == expected


def test_last_checkpoint(tmp_path: Path) -> None:
    """The script takes ``last`` away before it renames the next one; a recovery checkpoint is of half an epoch."""
    assert resume.last_checkpoint(tmp_path / "absent") is None
    (tmp_path / "recovery-4-10.pth.tar").touch()
    (tmp_path / "tmp.pth.tar").touch()
    assert resume.last_checkpoint(tmp_path) is None
    for epoch in (2, 10):
        (tmp_path / f"checkpoint-{epoch}.pth.tar").touch()
    assert resume.last_checkpoint(tmp_path) == tmp_path / "checkpoint-10.pth.tar"
    (tmp_path / "last.pth.tar").touch()
    assert resume.last_checkpoint(tmp_path) == tmp_path / "last.pth.tar"


def test_the_script_gets_its_arguments_and_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script.py").write_text("import sys; print(__name__, sys.argv[1:])")
    given = ["--output", str(tmp_path), "--experiment", "run", "--resume", "older.pth.tar"]
    (tmp_path / "run").mkdir()
    for own in ([], ["--resume", str(tmp_path / "run" / "last.pth.tar")]):
        monkeypatch.setattr(sys, "argv", ["resume", str(tmp_path / "script.py"), *given])
        resume.main()
        assert capfd.readouterr().out.strip() == f"__main__ {given + own}"
        (tmp_path / "run" / "last.pth.tar").touch()
