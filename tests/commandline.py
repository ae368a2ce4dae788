"""Run the ``sdzoo`` command inside the test's process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sdzoo.cli import main

Run = Callable[..., str]


def sdzoo(*arguments: object, expect: int = 0) -> None:
    """Run ``sdzoo ARGUMENTS`` and check its exit status."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == expect


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line in an empty folder; return what it prints, or its error."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object, fails: bool = False) -> str:
        sdzoo(*arguments, expect=int(fails))
        printed = capsys.readouterr()
        if not fails:
            return printed.out
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
        return printed.err

    return command
