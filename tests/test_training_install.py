"""Bringing data sets into place: all files or none, every byte checked."""

import gzip
import hashlib
import io
import lzma
import tarfile
from pathlib import Path

import pytest
from commandline import sdzoo
from torchvision.datasets import CIFAR100, SVHN

from sdzoo.errors import InputError
from sdzoo.training import install as module
from sdzoo.training.install import LAYOUTS, Layout, install

CONTENT = {"one": b"first file", "two": b"second file", "extra": b"may be absent"}
MD5S = {name: hashlib.md5(content).hexdigest() for name, content in CONTENT.items()}


@pytest.fixture(autouse=True)
def small_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = (Layout("inside/raw", MD5S, {"extra": "no test"}), Layout("other", {"three": "0" * 32}))
    monkeypatch.setitem(LAYOUTS, "cifar10", layouts)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source" / "deep"
    folder.mkdir(parents=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return folder.parent


def installed_files(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_from_a_folder(source: Path, tmp_path: Path) -> None:
    done = install("cifar10", source, tmp_path / "data")
    assert done.folder == tmp_path / "data" / "inside" / "raw"
    assert done.absent == {}
    assert installed_files(tmp_path / "data") == CONTENT


def test_gzipped_files_are_unpacked(source: Path, tmp_path: Path) -> None:
    for file in (source / "deep").iterdir():
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    install("cifar10", source, tmp_path / "data")
    assert installed_files(tmp_path / "data") == CONTENT


def test_from_an_archive(source: Path, tmp_path: Path) -> None:
    archive = tmp_path / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, "source")
    install("cifar10", archive, tmp_path / "data")
    assert installed_files(tmp_path / "data") == CONTENT
    (source / "deep" / "two").write_bytes(b"second fil")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, "source")
    with pytest.raises(InputError, match=r"source\.tar\.gz: source/deep/two: wrong or short"):
        install("cifar10", archive, tmp_path / "data")


def test_an_absent_optional_file_is_said(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    extra = source / "deep" / "extra"
    extra.rename(source.parent / "elsewhere")
    sdzoo("data", "cifar10", "--from", source, "--to", tmp_path / "data")
    assert capfd.readouterr().out.splitlines()[-1] == "extra was not there: no test"
    assert install("cifar10", source, tmp_path / "data").absent == {"extra": "no test"}
    (source.parent / "elsewhere").rename(extra)
    assert install("cifar10", source, tmp_path / "data").absent == {}
    extra.unlink()
    assert install("cifar10", source, tmp_path / "data").absent == {}, "it is there from before"
    assert installed_files(tmp_path / "data") == CONTENT


def test_the_layout_that_is_complete_counts(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partly = Layout("partly", {"one": MD5S["one"], "four": "0" * 32})
    monkeypatch.setitem(LAYOUTS, "cifar10", (partly, *LAYOUTS["cifar10"]))
    assert install("cifar10", source, tmp_path / "data").folder == tmp_path / "data" / "inside" / "raw"
    (source / "deep" / "two").unlink()
    with pytest.raises(InputError, match="four is missing"):
        install("cifar10", source, tmp_path / "data")


def test_a_second_install_replaces_the_first(source: Path, tmp_path: Path) -> None:
    install("cifar10", source, tmp_path / "data")
    (tmp_path / "data" / "inside" / "raw" / "one").write_bytes(b"spoilt")
    install("cifar10", source, tmp_path / "data")
    assert installed_files(tmp_path / "data") == CONTENT


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "two").write_bytes(b"second fil"), r"two: wrong or short, its MD5 is"),
        (lambda folder: (folder / "two").unlink(), "two is missing"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "looked for one or three"),
        (lambda folder: (folder / "two").rename(folder / "two.gz"), r"two\.gz: damaged"),
    ],
)
def test_a_bad_source_is_named_and_leaves_what_was_there(source: Path, tmp_path: Path, spoil, said: str) -> None:
    kept = tmp_path / "data" / "inside" / "raw" / "kept"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"old")
    spoil(source / "deep")
    with pytest.raises(InputError, match=said):
        install("cifar10", source, tmp_path / "data")
    assert installed_files(tmp_path / "data") == {"kept": b"old"}


def test_truncated_archive_and_gzip(source: Path, tmp_path: Path) -> None:
    file = source / "deep" / "one"
    file.with_name("one.gz").write_bytes(gzip.compress(CONTENT["one"])[:-6])
    file.unlink()
    with pytest.raises(InputError, match=r"one\.gz: damaged"):
        install("cifar10", source, tmp_path / "data")
    archive = tmp_path / "a.tar"
    for content in (b"no tar", spoilt(gzip.compress(bytes(4096))), spoilt(lzma.compress(bytes(4096)))):
        archive.write_bytes(content)
        with pytest.raises(InputError, match="not a tar archive"):
            install("cifar10", archive, tmp_path / "data")
    file.with_name("one.gz").write_bytes(spoilt(gzip.compress(CONTENT["one"])))
    with pytest.raises(InputError, match=r"one\.gz: damaged"):
        install("cifar10", source, tmp_path / "data")


def spoilt(content: bytes) -> bytes:
    """Return a compressed stream with four wrong bytes behind its header."""
    return content[:14] + b"\xff\xff\xff\xff" + content[18:]


def test_an_archive_cannot_write_outside(tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("../outside")
        member.size = 4
        tar.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(InputError, match="not a tar archive, or damaged"):
        install("cifar10", archive, tmp_path / "data")


def test_tables_are_torchvisions() -> None:
    """Which of the official files there are, and their MD5s, from torchvision's own tables."""
    (cifar100,), (svhn,) = LAYOUTS["cifar100"], LAYOUTS["svhn"]
    assert cifar100.files == dict(CIFAR100.train_list + CIFAR100.test_list)
    assert set(cifar100.files) == {"train", "test"}
    assert svhn.files == {name: md5 for _, name, md5 in SVHN.split_list.values()}
    assert set(svhn.files) == {"train_32x32.mat", "extra_32x32.mat", "test_32x32.mat"}


@pytest.mark.parametrize("name", ["cifar100", "svhn"])
def test_the_command_checks_and_places(
    name: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Files with wrong bytes are refused with the official MD5; with the right ones the folder is what is read."""
    (official,) = LAYOUTS[name]
    for file in official.files:
        (source / file).write_bytes(file.encode())
    sdzoo("data", name, "--from", source, "--to", tmp_path / "data", expect=1)
    assert f"the official one is {next(iter(official.files.values()))}" in capfd.readouterr().err
    md5s = {file: hashlib.md5(file.encode()).hexdigest() for file in official.files}
    monkeypatch.setitem(LAYOUTS, name, (Layout(official.folder, md5s, official.optional),))
    sdzoo("data", name, "--from", source, "--to", tmp_path / "data")
    assert f"train with --data-dir {tmp_path / 'data'}" in capfd.readouterr().out
    assert set(installed_files(tmp_path / "data" / official.folder)) == set(official.files)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no fashion-mnist here"):
        install("fashion_mnist", tmp_path, tmp_path)
    with pytest.raises(InputError, match="'mnist', must be one of fashion-mnist, cifar10, cifar100, svhn"):
        install("mnist", tmp_path, tmp_path)
    with pytest.raises(InputError, match="no such folder or archive"):
        install("cifar10", tmp_path / "absent", tmp_path)


def test_download_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A proxy on a closed port of this machine: the request is real, and fails wherever the test runs.
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"cannot download cifar10 .* give its official files with --from"):
        module.download("cifar10", tmp_path)


def test_real_cifar10_is_accepted(cifar10_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the official layouts
    done = install("cifar10", cifar10_root, tmp_path)
    assert set(done.absent) <= {"test_batch.bin"}
    assert len(list(done.folder.glob("data_batch_*.bin"))) == 5
