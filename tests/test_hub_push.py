"""Publishing: one commit or none, whatever fails meanwhile."""

import itertools
import logging
import multiprocessing
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants
from local_hub import TOKEN, Fault, LocalHub
from published import FILES, REPOSITORY, contents, write_run

from sdzoo.cli import main
from sdzoo.errors import InputError
from sdzoo.hub import connection
from sdzoo.hub.push import publish
from sdzoo.hub.results import Results
from sdzoo.training.launch import find_recipe


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy of the published folder, free to change."""
    return Path(shutil.copytree(published, tmp_path / "folder"))


def push(folder: Path, **options):
    return publish(folder, REPOSITORY, message="weights", **options)


def test_one_commit_has_all_files_and_the_second_push_makes_none(hub: LocalHub, published: Path):
    first = push(published)
    assert hub.files(REPOSITORY) == contents(published)
    assert hub.commits(REPOSITORY) == 2  # that of the creation, and ours
    second = push(published)
    assert (first.changed, second.changed, second.commit) == (True, False, first.commit)
    assert hub.commits(REPOSITORY) == 2


def test_files_of_the_last_publication_go_and_files_of_others_stay(hub: LocalHub, folder: Path):
    hub.put(REPOSITORY, {"onnx/old.onnx": b"old", "LICENSE": b"theirs"})
    push(folder)
    assert sorted(hub.files(REPOSITORY)) == sorted([*FILES, "LICENSE"])


def test_a_changed_file_makes_one_commit(hub: LocalHub, folder: Path):
    push(folder)
    (folder / "README.md").write_text("changed")
    assert push(folder).changed
    assert hub.commits(REPOSITORY) == 3
    assert hub.files(REPOSITORY)["README.md"] == b"changed"


def test_a_branch_is_created(hub: LocalHub, published: Path):
    push(published, revision="next")
    assert hub.files(REPOSITORY, "next") == contents(published)
    assert hub.files(REPOSITORY, "main") == {}


def test_private_stays_private(hub: LocalHub, published: Path):
    push(published, private=True)
    assert hub.repositories[REPOSITORY].private
    hub.put("somebody/public", {})
    with pytest.raises(InputError, match="is public"):
        publish(published, "somebody/public", message="", private=True)
    assert hub.files("somebody/public") == {}


@pytest.mark.parametrize(
    "name", ["name", "a/b/c", "../b", "a/..", "/etc/passwd", "a/b@main", "a b/c", "a/b.git", "-a/b", ""]
)
def test_names_that_are_no_repository_reach_nothing(hub: LocalHub, published: Path, name: str):
    with pytest.raises(InputError, match="is no repository"):
        publish(published, name, message="")
    assert hub.log == []


@pytest.mark.parametrize("revision", ["../main", "a b", "refs//x", "", "-x", "main\n"])
def test_names_that_are_no_revision_reach_nothing(hub: LocalHub, published: Path, revision: str):
    with pytest.raises(InputError, match="is no revision"):
        push(published, revision=revision)
    assert hub.log == []


# faults

FAULTS = {
    "no repository, no right to make it": (Fault("403", "POST /api/repos/create"), "the token may not do this"),
    "token not accepted": (Fault("401", "POST /api/repos/create"), "hf auth login"),
    "server error before": (Fault("500", "GET /api/models"), "failed with status 500: run the command again later"),
    "server error at preupload": (Fault("500", "preupload"), "failed with status 500: .*3 attempts"),
    "server error at upload": (Fault("503", "PUT /lfs"), "failed with status 503: .*3 attempts"),
    "server error at commit": (Fault("500", "/commit/"), "failed with status 500"),
    "rate limit": (Fault("429", "PUT /lfs", headers={"Retry-After": "300"}), "too many requests: wait 300 s"),
    "broken connection": (Fault("drop", "PUT /lfs"), "the connection to http.* broke: run the command again"),
    "answer cut off": (Fault("cut", "preupload"), "the connection to http.* broke: run the command again"),
    "answer too short": (Fault("short", "preupload"), "the answer of http.* came damaged: run the command again"),
    "place to upload is gone": (Fault("404", "PUT /lfs"), "refused with status 404"),
    "no answer": (Fault("slow", "/commit/", seconds=2), "did not answer in time"),
    "changed meanwhile": (Fault("412", "/commit/"), "somebody else changed it meanwhile: run the command again"),
    "refused": (Fault("400", "/commit/"), "refused with status 400: asked to fail"),
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short limits and no pauses, so that the faults take no time; the number of attempts stays."""
    monkeypatch.setattr(connection, "ANSWER_LIMIT", 0.5)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_said_in_one_line_changes_nothing_and_a_retry_works(
    hub: LocalHub, published: Path, capfd: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture, fault: str
):
    caplog.set_level(logging.DEBUG)
    kind, expected = FAULTS[fault]
    if "create" not in kind.match:
        hub.put(REPOSITORY, {"README.md": b"old"})
    hub.faults = [Fault(**vars(kind))]
    with pytest.raises(InputError, match=f"^{REPOSITORY}: .*{expected}") as caught:
        push(published)
    assert "\n" not in str(caught.value)
    assert hub.repositories == {} or hub.files(REPOSITORY) == {"README.md": b"old"}
    hub.faults = []
    push(published)
    assert contents(published).items() <= hub.files(REPOSITORY).items()
    output = "".join(capfd.readouterr()) + caplog.text + str(caught.value)
    assert TOKEN not in output


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("fault", "revision"),
    [("/preupload/", None), ("PUT /lfs", None), ("/commit/", None), ("/commit/", "next"), ("/branch/", "next")],
)
def test_a_first_push_that_fails_leaves_no_repository(hub: LocalHub, published: Path, fault: str, revision: str | None):
    hub.faults = [Fault("400", fault, times=1)]
    with pytest.raises(InputError, match=r"refused with status 400: asked to fail$"):
        push(published, revision=revision)
    assert hub.repositories == {}
    assert push(published, revision=revision).changed


def test_a_push_that_fails_deletes_the_branch_it_created(hub: LocalHub, published: Path):
    hub.put(REPOSITORY, {"README.md": b"old"})
    hub.faults = [Fault("400", "/commit/")]
    for branches in ({"main"}, {"main", "next"}):
        with pytest.raises(InputError, match=r"refused with status 400: asked to fail$"):
            push(published, revision="next")
        assert hub.repositories[REPOSITORY].branches.keys() == branches
        hub.repositories[REPOSITORY].commit("next", {"README.md": b"theirs"})  # now it was there before
    assert hub.files(REPOSITORY) == {"README.md": b"old"}


def test_a_first_push_that_fails_keeps_what_somebody_else_committed(hub: LocalHub, published: Path):
    def interfere(moment: str, line: str) -> None:
        if moment == "received" and "/commit/" in line:
            hub.put(REPOSITORY, {"README.md": b"theirs"})

    hub.watch = interfere
    with pytest.raises(InputError, match=r"somebody else changed it meanwhile: run the command again$"):
        push(published)
    assert hub.files(REPOSITORY) == {"README.md": b"theirs"}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("exists", "left"), [(False, f"an empty repository {REPOSITORY}"), (True, "a new branch next")]
)
def test_what_may_be_left_is_said(hub: LocalHub, published: Path, exists: bool, left: str):
    if exists:
        hub.put(REPOSITORY, {})
    hub.faults = [Fault("400", "/commit/"), Fault("drop", "DELETE")]
    with pytest.raises(InputError, match=f"^{REPOSITORY}: .*asked to fail; {left} may be left there$"):
        push(published, revision="next" if exists else None)


def test_a_refused_connection_is_said_in_one_line(hub: LocalHub, published: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.close()
    with pytest.raises(InputError, match=r"cannot connect to http://127.0.0.1:.*check the network and HF_ENDPOINT"):
        push(published)


def test_waiting_between_attempts_is_bounded(hub: LocalHub, published: Path, monkeypatch: pytest.MonkeyPatch):
    slept: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", slept.append)
    hub.faults = [Fault("429", "PUT /lfs", headers={"Retry-After": "300"})]
    with pytest.raises(InputError, match="wait 300 s"):
        push(published)
    assert 0 < sum(slept) <= 2 * 3  # two files, each 1 s and 2 s


def test_somebody_elses_commit_in_between_is_not_overwritten(hub: LocalHub, published: Path):
    hub.put(REPOSITORY, {})

    def interfere(moment: str, line: str) -> None:
        if moment == "received" and "/commit/" in line:
            hub.put(REPOSITORY, {"README.md": b"theirs"})

    hub.watch = interfere
    with pytest.raises(InputError, match="somebody else changed it meanwhile"):
        push(published)
    assert hub.files(REPOSITORY) == {"README.md": b"theirs"}


def test_the_token_is_in_no_file_of_the_folder_nor_in_a_body(hub: LocalHub, published: Path):
    push(published)
    assert hub.received and not [body for body in hub.received if TOKEN.encode() in body]
    assert not [name for name, data in contents(published).items() if TOKEN.encode() in data]


def _prepare(hub: LocalHub, files: dict[str, bytes]) -> None:
    hub.put(REPOSITORY, files)
    hub.large.clear()


def _push_and_kill(hub: LocalHub, folder: Path, number: int) -> None:
    """Push in a process of its own, and kill that at the given moment."""
    child = multiprocessing.get_context("fork").Process(target=push, args=(folder,))
    moments = itertools.count()

    def kill(moment: str, line: str) -> None:
        if next(moments) == number:
            os.kill(child.pid, signal.SIGKILL)

    hub.watch = kill
    child.start()
    child.join(60)
    hub.watch = lambda moment, line: None
    assert child.exitcode == -signal.SIGKILL


def test_a_push_killed_at_any_moment_leaves_the_old_or_the_new_commit(hub: LocalHub, published: Path, folder: Path):
    """Kill it at the last 20 moments at which the hub knows of it: half a request, a whole one, done."""
    (folder / "README.md").write_text("new")
    (folder / "model.safetensors").write_bytes(b"new")
    old, new = contents(published), contents(folder)
    moments: list[str] = []
    _prepare(hub, old)
    push(folder)  # the first push of a process asks the hub for more
    hub.watch = lambda moment, line: moments.append(line)
    _prepare(hub, old)
    push(folder)
    assert len(moments) > 20 and "/commit/" in moments[-1]
    became_new = []
    for number in range(len(moments) - 20, len(moments)):
        _prepare(hub, old)
        _push_and_kill(hub, folder, number)
        left = hub.files(REPOSITORY)
        assert left in (old, new), f"killed at {moments[number]}"
        became_new.append(left == new)
        push(folder)
        assert hub.files(REPOSITORY) == new
    assert became_new[-1] and not became_new[0]


def test_dry_run_writes_the_folder_and_shows_the_card(
    hub: LocalHub, run_folder: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    target = tmp_path / "here"
    arguments = ["push", str(run_folder), "--repo", REPOSITORY, "--dry-run", "--output", str(target)]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert contents(target) == contents(published)
    assert "# sd_resnet20.fashion_mnist" in capsys.readouterr().out
    assert hub.log == []
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    assert re.fullmatch(r"error: .*exists already.*--output\n", capsys.readouterr().err)


def test_data_dir_measures_the_test_error(fashion_mnist_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    run = write_run(tmp_path / "run", changed=find_recipe("fashion_mnist_resnet20").values())
    target = tmp_path / "here"
    arguments = ["push", str(run), "--repo", REPOSITORY, "--dry-run", "--output", str(target)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--data-dir", str(fashion_mnist_root)])
    assert ended.value.code == 0
    results = Results.read(target / "results/results.json")
    assert (results.dataset, results.n) == ("fashion_mnist", 200)
    assert results.recipe == "fashion_mnist_resnet20"
    card = capsys.readouterr().out
    assert f"{results.score.error:.2f} %" in card and "`sdzoo train fashion_mnist_resnet20`" in card
    assert ModelCard.load(target / "README.md").data.eval_results[0].metric_value == results.top1 / 100


def test_the_command_publishes(hub: LocalHub, run_folder: Path, published: Path, capsys: pytest.CaptureFixture):
    for expected in ("published", "nothing changed, no commit made"):
        with pytest.raises(SystemExit) as ended:
            main(["push", str(run_folder), "--repo", REPOSITORY])
        assert ended.value.code == 0
        assert capsys.readouterr().out.startswith(f"{expected}: {REPOSITORY} at commit")
    assert hub.files(REPOSITORY) == contents(published)
