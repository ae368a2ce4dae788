import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from local_hub import TOKEN, Fault, LocalHub
from PIL import Image
from published import REPOSITORY, contents, trained, write_published, write_run
from safetensors.torch import save

from sdzoo.cli import main
from sdzoo.errors import InputError
from sdzoo.export.graph import write_onnx
from sdzoo.hub.folder import Source, find_source, write_folder
from sdzoo.hub.folder import load as load_source
from sdzoo.hub.names import inside, split_revision
from sdzoo.hub.pull import pull, repository_of
from sdzoo.hub.push import publish
from sdzoo.hub.sums import write_sums
from sdzoo.models.digest import digest, with_digest
from sdzoo.samples import class_indices, read_samples

WEIGHTS = ["README.md", "SHA256SUMS", "config.json", "model.safetensors"]
GRAPHS = ["README.md", "SHA256SUMS", "config.json", "onnx/model.onnx"]


@pytest.fixture
def commit(hub: LocalHub, published: Path) -> str:
    """The commit of a hub that has the published folder."""
    return publish(published, REPOSITORY, message="weights").commit


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short limits and no pauses; the number of attempts stays."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def cached() -> dict[str, bytes]:
    """Return every snapshot file in the cache."""
    files = Path(constants.HF_HUB_CACHE).glob("models--*/snapshots/**/*")
    return {str(path): path.read_bytes() for path in files if path.is_file()}


# what was pushed comes back


@pytest.mark.usefixtures("commit")
def test_push_pull_create_export_gives_the_same_tensors_digest_and_onnx_bytes(published: Path, tmp_path: Path):
    pulled = pull(REPOSITORY)
    model = timm.create_model(f"local-dir:{pulled.folder}", pretrained=True).eval()
    expected = trained().state_dict()
    state = model.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert digest(state) == digest(expected)
    write_onnx(model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (published / "onnx/model.onnx").read_bytes()


def test_pulled_weights_answer_as_those_that_were_pushed(hub: LocalHub, tmp_path: Path):
    tag = "sd_resnet20.fashion_mnist"
    source = find_source(tag)
    (tmp_path / "folder").mkdir()
    write_folder(tmp_path / "folder", REPOSITORY, source, load_source(source), None)
    publish(tmp_path / "folder", REPOSITORY, message="weights")
    pull(REPOSITORY, output=tmp_path / "out")
    ours = timm.create_model(tag, pretrained=True).eval()
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    samples = read_samples()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    images = torch.stack([transform(Image.open(sample.path).convert("RGB")) for sample in samples])
    with torch.inference_mode():
        logits = theirs(images)
        assert torch.equal(logits, ours(images))
    targets = class_indices(samples, theirs.pretrained_cfg["label_names"])
    assert int((logits.argmax(1) == torch.tensor(targets)).sum()) > 180


def test_plain_timm_loads_from_the_hub(commit: str):
    for name in (REPOSITORY, f"{REPOSITORY}@main", f"{REPOSITORY}@{commit}"):
        model = timm.create_model(f"hf-hub:{name}", pretrained=True)
        assert digest(model.state_dict()) == digest(trained().state_dict())


@pytest.mark.parametrize(("onnx", "expected"), [(False, WEIGHTS), (True, GRAPHS)])
def test_pull_brings_weights_or_graphs_pinned_to_the_commit(
    commit: str, published: Path, tmp_path: Path, onnx: bool, expected: list[str]
):
    pulled = pull(REPOSITORY, onnx=onnx, output=tmp_path / "out")
    assert pulled.commit == commit
    assert sorted(pulled.files) == expected
    assert contents(tmp_path / "out") == {name: contents(published)[name] for name in expected}


def test_a_revision_stays_what_it_was(hub: LocalHub, commit: str, published: Path, tmp_path: Path):
    write_published(tmp_path / "folder", write_run(tmp_path / "run", seed=1))
    newer = publish(tmp_path / "folder", REPOSITORY, message="newer").commit
    for given, expected in (("", newer), (f"@{commit}", commit), ("@main", newer)):
        assert pull(REPOSITORY + given).commit == expected
    older = pull(REPOSITORY, revision=commit).folder
    assert (older / "config.json").read_bytes() == contents(published)["config.json"]


@pytest.mark.usefixtures("commit")
def test_the_second_time_needs_no_hub(hub: LocalHub, monkeypatch: pytest.MonkeyPatch):
    first = pull(REPOSITORY)
    requests = len(hub.log)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull(REPOSITORY) == first
    assert digest(timm.create_model(f"hf-hub:{REPOSITORY}", pretrained=True).state_dict()) == digest(
        trained().state_dict()
    )
    assert len(hub.log) == requests
    with pytest.raises(InputError, match="not in the cache, and HF_HUB_OFFLINE is set"):
        pull(REPOSITORY, onnx=True)
    with pytest.raises(InputError, match="not in the cache, and HF_HUB_OFFLINE is set"):
        pull("somebody/else")


@pytest.mark.usefixtures("commit", "impatient")
def test_a_hub_that_is_down_is_told_and_the_cache_used(hub: LocalHub):
    first = pull(REPOSITORY)
    assert not first.from_cache
    hub.faults = [Fault("503")]
    second = pull(REPOSITORY)
    assert (second.folder, second.from_cache) == (first.folder, True)


# faults

FAULTS = {
    "not there": (Fault("404", headers={"X-Error-Code": "RepoNotFound"}), "no such repository at http"),
    "not allowed": (Fault("401", headers={"X-Error-Code": "RepoNotFound"}), "no such repository .*hf auth login"),
    "token not accepted": (Fault("401", "HEAD"), "does not accept the token: log in with `hf auth login`"),
    "server error at once": (Fault("500"), "failed with status 500: run the command again later"),
    "server error at a file": (Fault("500", "GET .*model.safetensors"), "failed with status 500"),
    "rate limit at once": (Fault("429", headers={"Retry-After": "300"}), "too many requests: wait 300 s"),
    "rate limit at a file": (Fault("429", "GET .*model.safetensors", headers={"Retry-After": "300"}), "wait 300 s"),
    "no answer": (Fault("slow", seconds=2), "did not answer in time"),
    "no answer at a file": (Fault("slow", "HEAD .*model.safetensors", seconds=2), "did not answer in time"),
    "broken connection": (Fault("drop", "HEAD .*model.safetensors"), "the connection to http.* broke"),
    "cut again and again": (Fault("cut", "GET .*model.safetensors"), "broke|came short"),
    "short body": (Fault("short", "GET .*model.safetensors"), "came short, nothing of it was kept"),
    "other bytes": (Fault("corrupt", "GET .*model.safetensors"), "damaged .*: model.safetensors; removed, run"),
    "other bytes in the sums": (Fault("corrupt", "GET .*SHA256SUMS"), "damaged"),
    "other bytes in the config": (Fault("corrupt", "GET .*config.json"), "damaged .*config.json"),
}


@pytest.mark.usefixtures("commit", "impatient")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_said_in_one_line_leaves_nothing_and_a_retry_works(
    hub: LocalHub,
    published: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
    caplog: pytest.LogCaptureFixture,
    fault: str,
):
    caplog.set_level(logging.DEBUG)
    kind, expected = FAULTS[fault]
    hub.faults = [Fault(**vars(kind))]
    with pytest.raises(InputError, match=f"^{REPOSITORY}: .*({expected})") as caught:
        pull(REPOSITORY, output=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert all(data in contents(published).values() for data in cached().values())
    hub.faults = []
    pull(REPOSITORY, output=tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == WEIGHTS
    assert contents(tmp_path / "out").items() <= contents(published).items()
    assert TOKEN not in "".join(capfd.readouterr()) + caplog.text + str(caught.value)


@pytest.mark.usefixtures("commit")
def test_a_download_cut_once_is_resumed(hub: LocalHub, published: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    hub.faults = [Fault("cut", "GET .*model.safetensors", times=1)]
    pulled = pull(REPOSITORY)
    assert (pulled.folder / "model.safetensors").read_bytes() == contents(published)["model.safetensors"]


@pytest.mark.usefixtures("commit")
def test_an_unknown_revision_and_a_refused_connection_are_said(hub: LocalHub, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="there is no such revision: leave it out for the newest"):
        pull(REPOSITORY, revision="v9")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    hub.close()
    with pytest.raises(InputError, match=r"cannot connect to http://127\.0\.0\.1"):
        pull(REPOSITORY)


@pytest.mark.usefixtures("commit")
def test_damage_in_the_cache_is_refused_by_timm_and_mended_by_pull(capsys: pytest.CaptureFixture):
    file = pull(REPOSITORY).folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)
    with pytest.raises(RuntimeError, match=f"fetch them again with `sdzoo pull {REPOSITORY} --force`"):
        timm.create_model(f"hf-hub:{REPOSITORY}", pretrained=True, num_classes=3)
    with pytest.raises(SystemExit) as ended:
        main(["pull", REPOSITORY, "--force"])
    assert ended.value.code == 0
    assert digest(timm.create_model(f"hf-hub:{REPOSITORY}", pretrained=True).state_dict()) == digest(
        trained().state_dict()
    )
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged on the way or in the cache: model\.safetensors; removed"):
        pull(REPOSITORY)
    pull(REPOSITORY)


def test_weights_exchanged_with_their_sums_are_refused(hub: LocalHub, published: Path, tmp_path: Path):
    """Somebody with access to the repository may exchange the weights and mend the sums; the config disagrees."""
    for name, data in {
        "model.safetensors": save(with_digest(trained(seed=1).state_dict())),
        "onnx/model.onnx": contents(write_folder_of_another(tmp_path))["onnx/model.onnx"],
    }.items():
        folder = tmp_path / name.replace("/", "_")
        for path, content in (contents(published) | {name: data}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)
        write_sums(folder)
        hub.put(f"somebody/{folder.name}", contents(folder))
        with pytest.raises(InputError, match=f"digest {digest(trained(seed=1).state_dict())}, published was"):
            pull(f"somebody/{folder.name}", onnx=name.startswith("onnx"))


def write_folder_of_another(tmp_path: Path) -> Path:
    write_published(tmp_path / "other", write_run(tmp_path / "run", seed=1))
    return tmp_path / "other"


def test_a_repository_of_another_kind_is_said_to_be_one(hub: LocalHub):
    hub.put("somebody/other", {"config.json": b"{}", "model.safetensors": b"x"})
    with pytest.raises(InputError, match="somebody/other: has no SHA256SUMS, so it was not published by"):
        pull("somebody/other")


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("config.json", b"{", "Expecting property name"),
        ("config.json", b"{}", "pretrained_cfg"),
        ("config.json", b'{"pretrained_cfg": {}}', "names no digest"),
        ("model.safetensors", b"x", "header"),
        ("onnx/model.onnx", b"x", "parsing"),
        ("onnx/model.onnx", b"", "no readable 'model'"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_said(
    hub: LocalHub, published: Path, tmp_path: Path, name: str, data: bytes, said: str
):
    shutil.copytree(published, tmp_path / "folder")
    (tmp_path / "folder" / name).write_bytes(data)
    write_sums(tmp_path / "folder")
    hub.put(REPOSITORY, contents(tmp_path / "folder"))
    with pytest.raises(InputError, match=rf"^{REPOSITORY}: not as `sdzoo push` publishes: .*{said}"):
        pull(REPOSITORY, onnx=name.endswith(".onnx"))


@pytest.mark.usefixtures("commit", "impatient")
def test_an_attempt_that_succeeds_after_all_is_not_told_as_the_cache(hub: LocalHub):
    hub.faults = [Fault("503", "HEAD .*model.safetensors", times=2)]
    assert not pull(REPOSITORY).from_cache


# names from outside

OUTSIDE = ["../evil", "onnx/../../evil.onnx", "/tmp/evil", "onnx\\..\\..\\evil.onnx", "a/../../evil"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str):
    with pytest.raises(InputError, match="leads out of"):
        inside(tmp_path, name)
    assert inside(tmp_path, "onnx/model.onnx") == tmp_path / "onnx" / "model.onnx"


def test_a_hub_that_lists_paths_outside_writes_nothing_there(hub: LocalHub, published: Path, tmp_path: Path):
    evil = {"onnx/../../../../../../evil.onnx": b"evil", "../evil.onnx": b"evil", "/evil.onnx": b"evil"}
    hub.put(REPOSITORY, contents(published) | evil)
    with pytest.raises(InputError, match="Invalid filename"):
        pull(REPOSITORY, onnx=True, output=tmp_path / "out")
    assert not list(tmp_path.rglob("*evil*"))
    assert not list(Path(constants.HF_HUB_CACHE).parent.rglob("*evil*"))


@pytest.mark.usefixtures("commit")
@pytest.mark.parametrize("link", ["out/onnx", "out/config.json"])
def test_links_in_the_target_folder_are_not_followed(tmp_path: Path, link: str):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / link).symlink_to(elsewhere / "config.json" if link.endswith("json") else elsewhere)
    with pytest.raises(InputError, match="leads out of"):
        pull(REPOSITORY, onnx=True, output=tmp_path / "out")
    assert contents(elsewhere) == {}
    assert [path.name for path in (tmp_path / "out").iterdir()] == [Path(link).name]


@pytest.mark.parametrize("name", ["a/b/c", "../../x", "a/..", "nothing", "me/x y", "me/x@../y", "me/x@-y"])
def test_names_that_are_no_repository_or_revision_reach_nothing(hub: LocalHub, name: str):
    with pytest.raises(InputError, match=r"is no (repository|revision)"):
        pull(name)
    assert hub.log == []


def test_a_name_that_is_nearly_a_tag_is_told_its_near_ones(hub: LocalHub):
    for name, near in (("sd_resnet20.cifar100", "sd_resnet20"), ("sd_resnet111", "sd_resnet110")):
        with pytest.raises(InputError, match=f"unknown model '{name}'; near names: .*{near}"):
            pull(name)
    assert hub.log == []


def test_two_revisions_are_refused():
    assert split_revision("a/b@c", None) == ("a/b", "c")
    assert split_revision("a/b", "c") == ("a/b", "c")
    with pytest.raises(InputError, match="give one of them"):
        split_revision("a/b@c", "d")


# tags of the zoo


def test_a_tag_is_looked_for_in_the_namespace(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="Set SDZOO_HUB_NAMESPACE, or write NAMESPACE/sd_resnet20"):
        repository_of("sd_resnet20")
    monkeypatch.setattr("sdzoo.hub.pull.NAMESPACE", "somebody")
    for name in timm.list_models("sd_resnet*", include_tags=True):
        assert repository_of(name) == f"somebody/{name}"
    assert repository_of("sd_resnet20") == "somebody/sd_resnet20.cifar10"  # its default tag
    assert repository_of("sd_resnet110") == "somebody/sd_resnet110.cifar10"
    assert repository_of("sd_resnet152") == "somebody/sd_resnet152"


def test_every_shipped_tag_is_published_and_loaded_back_through_plain_timm(hub: LocalHub, tmp_path: Path):
    shipped = timm.list_pretrained("sd_resnet*")
    assert shipped
    for tag in shipped:
        source: Source = find_source(tag)
        (tmp_path / tag).mkdir()
        write_folder(tmp_path / tag, f"somebody/{tag}", source, load_source(source), None)
        publish(tmp_path / tag, f"somebody/{tag}", message=tag)
        theirs = timm.create_model(f"hf-hub:somebody/{tag}", pretrained=True)
        ours = timm.create_model(tag, pretrained=True)
        assert digest(theirs.state_dict()) == digest(ours.state_dict())
        write_onnx(theirs.eval(), tmp_path / "theirs.onnx")
        write_onnx(ours.eval(), tmp_path / "ours.onnx")
        assert (tmp_path / "theirs.onnx").read_bytes() == (tmp_path / "ours.onnx").read_bytes()


# as a new user, in processes of their own


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    variables = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=variables, cwd=root)


@pytest.mark.usefixtures("commit")
def test_a_new_process_loads_offline_and_reads_the_namespace(hub: LocalHub):
    pull(REPOSITORY)
    hub.close()
    program = (
        "import sys, timm, sdzoo, sdzoo.weights\n"
        "print(timm.create_model(sys.argv[1], pretrained=True).survival[-1], sdzoo.weights.NAMESPACE)"
    )
    child = run("-c", program, f"hf-hub:{REPOSITORY}", HF_HUB_OFFLINE="1", SDZOO_HUB_NAMESPACE="somebody")
    assert (child.returncode, child.stdout) == (0, "0.9 somebody\n"), child.stderr


@pytest.mark.slow
def test_scripts_of_a_clone_and_the_environment(hub: LocalHub, run_folder: Path, tmp_path: Path):
    pushed = run("hub/push.py", str(run_folder), "--repo", REPOSITORY)
    assert (pushed.returncode, pushed.stdout[:9]) == (0, "published"), pushed.stderr
    pulled = run("hub/pull.py", REPOSITORY, "--output", str(tmp_path / "out"))
    assert pulled.returncode == 0 and f"in {tmp_path / 'out'}" in pulled.stdout, pulled.stderr
    hub.close()
    offline = run("hub/pull.py", REPOSITORY, HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    missing = run("hub/pull.py", "somebody/else", HF_HUB_OFFLINE="1")
    assert missing.returncode == 1
    assert missing.stderr.strip().splitlines()[-1].startswith("error: somebody/else: not in the cache")
    assert TOKEN not in "".join(process.stdout + process.stderr for process in (pushed, pulled, offline, missing))


@pytest.mark.usefixtures("commit")
def test_the_snippets_of_the_card_run(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    Image.new("L", (40, 30)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    blocks = (published / "README.md").read_text().split("```python\n")[1:]
    assert len(blocks) == 2
    for block in blocks:
        exec(block.partition("```")[0], {})
    assert capsys.readouterr().out.strip() in trained_labels()


def trained_labels() -> tuple[str, ...]:
    from published import FASHION

    return FASHION.labels
