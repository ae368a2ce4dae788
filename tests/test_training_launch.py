"""Launching timm's own script: recipes are known to its parser, arguments reach it, real steps train."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from commandline import sdzoo

from sdzoo.checkpoints import load_model
from sdzoo.errors import InputError
from sdzoo.training import launch
from sdzoo.training.runs import Run

SMALL = ["--input-size", "3", "8", "8", "--batch-size", "128", "--validation-batch-size", "500"]


@pytest.mark.parametrize("recipe", launch.recipes(), ids=lambda recipe: recipe.name)
def test_recipes_open_with_their_header_and_are_known_to_the_script(recipe: launch.Recipe, timm_script: Path) -> None:
    assert list(recipe.header()) == list(launch.HEADER)
    assert f"sdzoo train {recipe.name}" in recipe.header()["Command"]
    launch.check_recipe(recipe, launch.script_arguments(timm_script))


def test_recipes_ship() -> None:
    assert {"fashion_mnist_resnet20", "cifar10_resnet56_few"} <= {recipe.name for recipe in launch.recipes()}


def test_a_misspelt_key_is_an_error(tmp_path: Path, timm_script: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: sd_resnet20\ndrop_paths: 0.5\n")
    with pytest.raises(InputError, match=r"unknown key 'drop_paths'; did you mean 'drop_path'\?"):
        launch.check_recipe(launch.find_recipe(str(tmp_path / "mine.yaml")), launch.script_arguments(timm_script))


def test_command_line(tmp_path: Path) -> None:
    recipe = launch.find_recipe("fashion_mnist_resnet20")
    words = launch.command(recipe, ["--epochs", "3", "--output=here", "-j", "4"], Path("train.py"), launch.Machines())
    assert words[:2] == [sys.executable, "train.py"]
    assert words[words.index("--device-modules") + 1] == "sdzoo"
    assert words[words.index("--config") + 1] == str(recipe.path)
    assert words[-5:] == ["--epochs", "3", "--output=here", "-j", "4"]
    assert "--output" not in words
    assert "--workers" not in words
    assert ("--no-prefetcher" in words) != torch.cuda.is_available()
    several = launch.command(recipe, [], Path("train.py"), launch.Machines(4))
    assert several[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]


def test_command_line_of_several_machines_and_of_a_run_that_resumes_itself() -> None:
    recipe = launch.find_recipe("fashion_mnist_resnet20")
    words = launch.command(recipe, [], Path("train.py"), launch.Machines(8, 2, "host:29400"))
    assert words[1:11] == [
        *("-m", "torch.distributed.run", "--nnodes", "2", "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", "host:29400", "--nproc-per-node", "8"),
    ]
    assert words[11] == "train.py"
    alone = launch.command(recipe, [], Path("train.py"), launch.Machines(restarts=2))
    assert alone[1:11] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "--max-restarts", "2"),
        *("-m", "sdzoo.training.resume", "train.py"),
    ]


def test_a_resumed_run_goes_on_in_its_folder(tmp_path: Path) -> None:
    recipe = launch.find_recipe("fashion_mnist_resnet20")
    words = launch.command(
        recipe, ["--resume", str(tmp_path / "run" / "last.pth.tar")], Path("t.py"), launch.Machines()
    )
    assert launch.value_of("--output", words) == str(tmp_path)
    assert launch.value_of("--experiment", words) == "run"


def test_value_of() -> None:
    assert launch.value_of("--a", ["--a", "1", "--a=2", "--b"]) == "2"
    assert launch.value_of("--b", ["--a", "1", "--b"]) == ""
    assert launch.value_of("--c", ["--a", "1"]) is None


def test_script_is_found_in_the_cache_only_if_it_is_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timm_script: Path
) -> None:
    monkeypatch.delenv(launch.SCRIPT_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    cached = tmp_path / "sdzoo" / f"timm-train-{launch.SCRIPT_COMMIT[:12]}.py"
    with pytest.raises(InputError, match=r"cannot fetch timm's train script .* set SDZOO_TIMM_TRAIN"):
        launch.find_script()
    cached.write_text("print('not the script')")
    with pytest.raises(InputError, match="cannot fetch timm's train script"):
        launch.find_script()
    cached.write_bytes(timm_script.read_bytes())
    assert launch.find_script() == cached


def test_script_variable_must_name_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(launch.SCRIPT_VARIABLE, "/absent/train.py")
    with pytest.raises(InputError, match=r"'/absent/train\.py', which is not a file"):
        launch.find_script()


def test_unknown_recipe() -> None:
    with pytest.raises(InputError, match=r"unknown recipe 'fashion_resnet20'; near names: fashion_mnist_resnet20"):
        launch.find_recipe("fashion_resnet20")
    with pytest.raises(InputError, match=r"absent\.yaml: no such recipe"):
        launch.find_recipe("absent.yaml")


def train(root: Path, output: Path, *arguments: str) -> Run:
    where = ["--data-dir", str(root), "--output", str(output.parent), "--experiment", output.name]
    sdzoo("train", "fashion_mnist_resnet20", *where, *SMALL, *arguments)
    return Run(output)


def test_trains_real_steps_resumes_exactly_and_evaluates(
    timm_script: Path, fashion_mnist_root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = train(fashion_mnist_root, tmp_path / "whole", "--epochs", "3")
    best, checkpoint = whole.best()
    printed = capfd.readouterr().out
    assert printed.splitlines()[-2:] == [
        f"best epoch {best.number}: validation top-1 {best.top1:.2f} %",
        str(checkpoint),
    ]
    assert yaml.safe_load((whole.folder / "args.yaml").read_text())["drop_path"] == 0.1

    resumed = train(fashion_mnist_root, tmp_path / "resumed", "--epochs", "3", "--resume", str(stop_after(whole, 1)))
    ours, theirs = (torch.load(run.folder / "last.pth.tar", weights_only=False) for run in (resumed, whole))
    assert ours["state_dict"]["gate_step"] == 12  # 3 epochs of 512 images in batches of 128
    for name, value in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], value), name
    assert [epoch.top1 for epoch in resumed.epochs()] == [epoch.top1 for epoch in whole.epochs()[2:]]

    model = load_model("sd_resnet20", checkpoint=checkpoint)
    assert model.survival[-1] == pytest.approx(0.9)
    assert model.pretrained_cfg["label_names"][9] == "Ankle boot"
    sdzoo("evaluate", "sd_resnet20", "--checkpoint", checkpoint, "--data-dir", fashion_mnist_root, "--record")
    assert f"top-1 {best.top1:.2f} %" in capfd.readouterr().out
    recorded = (checkpoint.parent / "evaluations.csv").read_text().splitlines()
    assert recorded[1].startswith(f"{checkpoint.name},validation,{round(50 * best.top1)},5000,")


def stop_after(run: Run, epoch: int) -> Path:
    """Return the checkpoint after an epoch (from 0); the run keeps its two best and the last."""
    checkpoint = run.folder / f"checkpoint-{epoch}.pth.tar"
    assert checkpoint.is_file(), sorted(path.name for path in run.folder.iterdir())
    return checkpoint


def test_a_failing_script_fails_the_command(
    timm_script: Path, fashion_mnist_root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sdzoo("train", "fashion_mnist_resnet20", "--data-dir", fashion_mnist_root, "--no-such-option", expect=1)
    assert "training ended with exit status 2" in capfd.readouterr().err


def test_absent_data_is_said_before_anything_runs(
    timm_script: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sdzoo("train", "fashion_mnist_resnet20", "--data-dir", tmp_path, expect=1)
    said = capfd.readouterr().err
    assert said.startswith(f"error: no Fashion-MNIST in {tmp_path}")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nnodes", "2"], "give --rdzv-endpoint HOST:PORT"),
        (["--nnodes", "2", "--rdzv-endpoint", "host:29400"], "name the run with --experiment"),
        (["--torchscript"], "cannot train under --torchscript"),
    ],
)
def test_what_cannot_train_is_said_before_anything_runs(
    timm_script: Path, arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    sdzoo("train", "fashion_mnist_resnet20", *arguments, expect=1)
    printed = capfd.readouterr().err
    assert said in printed
    assert len(printed.splitlines()) == 1


def test_list_and_dry_run(timm_script: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sdzoo("train", "--list")
    listed = capfd.readouterr().out
    assert len(launch.recipes()) > 8
    for recipe in launch.recipes():
        assert recipe.name in listed
    assert "4.91 %" in " ".join(listed.split())
    sdzoo("train", "fashion_mnist_resnet20", "--dry-run", "--lr", "0.05")
    printed = capfd.readouterr().out
    assert printed.strip().endswith("--lr 0.05")
    assert str(timm_script.resolve()) in printed


def test_broken_recipes_scripts_and_resumes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: [")
    with pytest.raises(InputError, match=r"mine\.yaml: not YAML"):
        launch.find_recipe(str(tmp_path / "mine.yaml")).values()
    (tmp_path / "train.py").write_text("def (")
    with pytest.raises(InputError, match=r"train\.py: not timm's train script"):
        launch.script_arguments(tmp_path / "train.py")
    with pytest.raises(InputError, match=r"--resume .*absent\.pth\.tar: no such checkpoint"):
        launch.check_arguments(["--resume", str(tmp_path / "absent.pth.tar")], launch.Machines(1))
