"""Several ranks of timm's unmodified script: the same gates and the same weights, also after one was killed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import sdzoo
from ports import free_port
from timm_runs import assert_gates_were_followed, load, rank_environment, write_recipe

from sdzoo.training.runs import Run

EPOCHS, STEPS = 3, 4  # 200 images, in batches of 25 on each of two ranks
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
COMMAND = "from sdzoo.cli import main; main()"
MODULES = ["--device-modules", "sdzoo", "cpu_ranks"]


def train(folder: Path, *arguments: str, dies: str = "") -> str:
    """Run ``sdzoo train`` to its end and return what it wrote into its log."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in rank_environment(folder / "ranks", SDZOO_DIES=dies).items():
            patch.setenv(name, value)
        sdzoo("train", *words(folder), *arguments)
    return (folder / "run" / "train.log").read_text()


def words(folder: Path) -> list[str]:
    recipe = write_recipe(folder, epochs=EPOCHS, batch_size=25)
    return [str(recipe.path), "--output", str(folder), "--experiment", "run", *MODULES]


def finish(*processes: subprocess.Popen[str]) -> list[str]:
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)[-4000:]
    return outputs


def ranks(folder: Path) -> list[dict[str, Any]]:
    files = sorted((folder / "ranks").glob("*.pt"))
    return [torch.load(file, weights_only=False) for file in files]


def different(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    assert list(ours) == list(theirs)
    return [name for name, value in theirs.items() if not torch.equal(ours[name], value)]


@pytest.fixture(scope="module")
def two_ranks(timm_script: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of two ranks without interruption."""
    folder = tmp_path_factory.mktemp("two")
    train(folder, "--nproc-per-node", "2", "--no-ddp-bb")
    return folder


def test_two_ranks_agree(two_ranks: Path) -> None:
    """``--dist-bn reduce`` is the script's default: the statistics too are the same at the end of an epoch."""
    first, second = ranks(two_ranks)
    assert different(first["state_dict"], second["state_dict"]) == []
    assert_gates_were_followed(load(two_ranks / "run")["state_dict"], EPOCHS * STEPS)


def test_batch_norms_are_called_in_the_same_order_on_every_rank(two_ranks: Path) -> None:
    """Which is what SyncBatchNorm needs: a rank that called another one next would wait for ever."""
    first, second = ranks(two_ranks)
    assert len(set(first["calls"])) == 19
    assert len(first["calls"]) < EPOCHS * STEPS * 19  # some were closed
    assert first["calls"] == second["calls"]


def test_four_ranks_agree(timm_script: Path, tmp_path: Path) -> None:
    """The weights are the same; the statistics are each rank's own where neither broadcast nor reduction is on."""
    arguments = ["--epochs", "1", "--batch-size", "10", "--no-ddp-bb", "--dist-bn", ""]
    train(tmp_path, "--nproc-per-node", "4", *arguments)
    first, *others = ranks(tmp_path)
    assert len(others) == 3
    for other in others:
        assert all("running" in name for name in different(first["state_dict"], other["state_dict"]))
        assert different(first["state_dict"], other["state_dict"]) != []
        assert other["calls"] == first["calls"]
    assert_gates_were_followed(load(tmp_path / "run")["state_dict"], 5)


def assert_as_if_nothing_had_happened(folder: Path, whole: Path) -> None:
    ours, theirs = load(folder / "run"), load(whole / "run")
    assert different(ours["state_dict"], theirs["state_dict"]) == []
    momenta = [[state["momentum_buffer"] for state in run["optimizer"]["state"].values()] for run in (ours, theirs)]
    assert len(momenta[0]) > 50
    assert all(map(torch.equal, *momenta))
    assert losses(folder) == losses(whole)


def losses(folder: Path) -> dict[int, tuple[float, float]]:
    epochs = {epoch.number: (epoch.train_loss, epoch.validation_loss) for epoch in Run(folder / "run").epochs()}
    assert list(epochs) == list(range(EPOCHS))
    return epochs


def test_a_killed_rank_is_replaced(two_ranks: Path, tmp_path: Path) -> None:
    """In the middle of the second epoch: gates, losses and weights go on from the end of the first."""
    log = train(tmp_path, "--nproc-per-node", "2", "--no-ddp-bb", "--auto-resume", dies="1:6:1")
    assert (tmp_path / "ranks" / "deaths").read_text() == "x"
    before, _, after = log.partition("(exitcode: -9)")
    assert "Loaded checkpoint" not in before
    assert f"Loaded checkpoint '{tmp_path / 'run' / 'last.pth.tar'}' (epoch 0)" in after
    assert_as_if_nothing_had_happened(tmp_path, two_ranks)


@pytest.mark.slow
def test_a_rank_that_is_killed_again_and_again(
    two_ranks: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three deaths use up torchrun's restarts; it ends, and is started again because an epoch had been finished."""
    train(tmp_path, "--nproc-per-node", "2", "--no-ddp-bb", "--auto-resume", dies="1:6:3")
    assert (tmp_path / "ranks" / "deaths").read_text() == "xxx"
    assert f"going on from {tmp_path / 'run' / 'last.pth.tar'}" in capfd.readouterr().out
    assert_as_if_nothing_had_happened(tmp_path, two_ranks)


def two_machines() -> list[str]:
    return ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]


def test_two_machines_train_as_two_ranks_of_one(two_ranks: Path, timm_script: Path, tmp_path: Path) -> None:
    """Two plain torchrun agents that know of each other by host and port alone, each with one rank."""
    together = [*two_machines(), "--rdzv-backend", "c10d"]
    recipe, *arguments = words(tmp_path)
    command = [*TORCHRUN, *together, str(timm_script), "--config", recipe, *arguments, "--no-ddp-bb"]
    finish(*start_both(command, rank_environment(tmp_path / "ranks")))
    assert len(ranks(tmp_path)) == 2
    assert_as_if_nothing_had_happened(tmp_path, two_ranks)


@pytest.mark.slow
def test_two_machines_go_on_together_when_a_rank_of_one_is_killed(two_ranks: Path, tmp_path: Path) -> None:
    together = [*two_machines(), "--auto-resume"]
    command = [sys.executable, "-c", COMMAND, "train", *words(tmp_path), *together, "--no-ddp-bb"]
    for said in finish(*start_both(command, rank_environment(tmp_path / "ranks", SDZOO_DIES="1:6:1"))):
        assert f"the run is in {tmp_path / 'run'}" in said
    assert (tmp_path / "ranks" / "deaths").read_text() == "x"
    assert_as_if_nothing_had_happened(tmp_path, two_ranks)


def start_both(command: list[str], environment: dict[str, str]) -> list[subprocess.Popen[str]]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
