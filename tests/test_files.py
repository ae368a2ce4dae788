"""Files appear complete or not at all; what goes wrong here is real: a limit of the kernel, a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from disk import file_size_limit, unwritable

import sdzoo
from sdzoo.errors import InputError
from sdzoo.files import new_folder, replacing

KILLED = """
import os, signal, sys, types
sys.modules["sdzoo"] = package = types.ModuleType("sdzoo")  # without its __init__, which imports torch
package.__path__ = [sys.argv[1]]
from sdzoo.files import replacing
with replacing(sys.argv[2]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_new_and_an_old_file_are_replaced(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        with replacing(tmp_path / "file") as temporary:
            assert temporary.parent == tmp_path
            temporary.write_bytes(content)
        assert (tmp_path / "file").read_bytes() == content
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_the_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with replacing(tmp_path / "file"):
        pass
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "file") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "file").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with (
        file_size_limit(1000),
        pytest.raises(OSError, match="File too large"),
        replacing(tmp_path / "file") as temporary,
    ):
        temporary.write_bytes(bytes(5000))
    assert (tmp_path / "file").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_kill_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    package = str(Path(sdzoo.__file__).parent)
    killed = subprocess.run([sys.executable, "-c", KILLED, package, str(tmp_path / "file")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with replacing(tmp_path / "link") as temporary:
        temporary.write_bytes(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_blocks_nest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"), replacing(tmp_path / "file") as outer:
        with replacing(outer) as inner:
            inner.write_bytes(b"content")
        assert outer.read_bytes() == b"content"
        raise ValueError("refused")
    assert not list(tmp_path.iterdir())


def test_bad_targets_are_refused_before_the_block_runs(tmp_path: Path) -> None:
    targets = {
        tmp_path / "missing" / "file": "there is no folder",
        tmp_path: "is not a file",
        Path(os.devnull): "is not a file",
        unwritable(tmp_path) / "file": "cannot write into the folder",
    }
    for target, message in targets.items():
        with pytest.raises(InputError, match=message), replacing(target):
            pytest.fail("the block must not run")


def test_a_folder_appears_filled_or_not_at_all(tmp_path: Path) -> None:
    with new_folder(tmp_path / "folder") as temporary:
        (temporary / "file").write_text("content")
        assert not (tmp_path / "folder").exists()
    with pytest.raises(KeyError), new_folder(tmp_path / "other") as temporary:
        (temporary / "file").write_text("content")
        raise KeyError
    with pytest.raises(InputError, match="it exists"), new_folder(tmp_path / "folder"):
        pass
    for folder in (tmp_path / "no" / "folder", unwritable(tmp_path) / "folder"):
        with pytest.raises(InputError, match="cannot write into the folder"), new_folder(folder):
            pass
    assert [path.name for path in tmp_path.iterdir() if path.name != "locked"] == ["folder"]
    assert (tmp_path / "folder" / "file").read_text() == "content"
