"""Run the ``sdzoo`` command inside the test's process."""

import pytest

from sdzoo.cli import main


def sdzoo(*arguments: object, expect: int = 0) -> None:
    """Run ``sdzoo ARGUMENTS`` and check its exit status."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == expect
