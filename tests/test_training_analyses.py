"""The analyses of the paper on trainings of a few steps: what is recorded, what is written, what is refused."""

import csv
import statistics
from pathlib import Path

import pytest
import timm
import torch
from commandline import sdzoo
from timm_runs import run_script, write_recipe
from torch import nn

from sdzoo.training import gradients
from sdzoo.training.analyse_survival import _has_test_split
from sdzoo.training.gradients import find_weight
from sdzoo.training.sweep import Sweep

FIRST_BLOCK = "layer1.0.conv1.weight"
FIGURES = [".csv", ".png", ".svg"]


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_a_weight_is_found_inside_of_wrappers() -> None:
    network = timm.create_model("sd_resnet20")
    assert find_weight(network, FIRST_BLOCK) is network.layer1[0].conv1.weight
    assert find_weight(nn.ModuleDict({"module": network}), FIRST_BLOCK) is network.layer1[0].conv1.weight
    assert find_weight(network, "1.0.conv1.weight") is None


def test_the_gradient_at_the_update_is_recorded(tmp_path: Path) -> None:
    """With accumulation over two micro-batches it is the sum, once an update; evaluation is not seen."""
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    gradients.record("0.weight", tmp_path / "gradients.csv")
    network.eval()(torch.ones(4, 3))
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.1)
    expected = []
    for _update in range(3):
        for _ in range(2):
            network(torch.randn(4, 3)).square().sum().backward()
        expected.append(float(network[0].weight.grad.abs().mean()))
        optimizer.step()
        optimizer.zero_grad()
    rows = read(tmp_path / "gradients.csv")
    assert [int(row["update"]) for row in rows] == [0, 1, 2]
    assert [float(row["gradient"]) for row in rows] == pytest.approx(expected, rel=1e-5)


def test_timms_script_records_every_update(timm_script: Path, tmp_path: Path) -> None:
    """The gradients are those of the update, after clipping: here all of them together have a norm of 1e-6."""
    gradients.record(FIRST_BLOCK, tmp_path / "gradients.csv")
    run_script(timm_script, tmp_path / "run", "--clip-grad", "1e-6")
    values = [float(row["gradient"]) for row in read(tmp_path / "gradients.csv")]
    assert len(values) == 4
    assert all(0 <= value < 1e-6 for value in values)
    assert max(values) > 0


@pytest.mark.slow
def test_gradients_of_two_arms(timm_script: Path, tmp_path: Path) -> None:
    recipe, output = write_recipe(tmp_path), tmp_path / "out"
    sdzoo("analyse", "gradients", str(recipe.path), "--epochs", "2", "--output", str(output))
    rows = read(output / "gradients.csv")
    assert [(row["p_L"], row["epoch"]) for row in rows] == [("0.5", "1"), ("0.5", "2"), ("1.0", "1"), ("1.0", "2")]
    recorded = [float(row["gradient"]) for row in read(output / "runs" / "constant-1-seed1" / "gradients.csv")]
    assert len(recorded) == 8
    means = [statistics.mean(recorded[:4]), statistics.mean(recorded[4:])]
    assert [float(row["gradient"]) for row in rows[2:]] == pytest.approx(means, rel=1e-4)
    assert all((output / f"gradients{suffix}").stat().st_size > 0 for suffix in FIGURES)


@pytest.mark.slow
def test_survival_sweep_is_taken_up_where_it_stopped(
    timm_script: Path, fashion_mnist_root: Path, tmp_path: Path
) -> None:
    """The second call trains the new cell alone; the table has test errors, the best epochs' own."""
    data = {"dataset": "torch/sd_fashion_mnist_few", "data_dir": str(fashion_mnist_root), "batch_size": 500}
    recipe, output = write_recipe(tmp_path, **data), tmp_path / "out"
    words = ["analyse", "survival", str(recipe.path), "--output", str(output), "--rule", "linear"]
    sdzoo(*words, "--p-l", "0.5")
    trained = {file: file.stat().st_mtime_ns for file in output.glob("runs/*/*")}
    assert trained
    sdzoo(*words, "--p-l", "0.5", "--p-l", "1")
    assert all(file.stat().st_mtime_ns == moment for file, moment in trained.items())
    rows = read(output / "survival.csv")
    assert [(row["survival"], row["p_L"]) for row in rows] == [("linear", "0.5"), ("constant", "1.0")]
    for row in rows:
        (noted,) = read(output / "runs" / f"{row['survival']}-{float(row['p_L']):g}-seed1" / "evaluations.csv")
        assert (noted["images"], noted["n"]) == ("test", "200")
        assert float(noted["error"]) == pytest.approx(float(row["test error %"]), abs=1e-3)
    assert all((output / f"survival{suffix}").stat().st_size > 0 for suffix in FIGURES)


def test_whether_there_are_test_images_is_known_before_anything_is_trained(
    timm_script: Path, fashion_mnist_root: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, dataset="torch/sd_fashion_mnist_few", data_dir=str(fashion_mnist_root))
    assert _has_test_split(Sweep(recipe, [], tmp_path))
    assert not _has_test_split(Sweep(recipe, ["--data-dir", str(tmp_path)], tmp_path))
    assert not _has_test_split(Sweep(recipe, ["--dataset", "folder"], tmp_path))
    assert not _has_test_split(Sweep(recipe, ["--model", "skip_test_vit"], tmp_path)), (
        "evaluation knows sd_resnet* alone"
    )


# Bad input.


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    sdzoo("analyse", *arguments, expect=1)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return said


def test_a_weight_that_is_not_there(timm_script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, output = write_recipe(tmp_path), tmp_path / "out"
    said = refused(
        capsys, "gradients", str(recipe.path), "--weight", "blocks.0.attn.qkv.weight", "--output", str(output)
    )
    assert "sd_resnet20 has no parameter 'blocks.0.attn.qkv.weight'; its first ones: conv1.weight, layer1.0" in said
    assert not output.exists()


@pytest.mark.parametrize("kind", ["gradients", "survival"])
def test_a_wrong_probability_an_unknown_recipe_and_what_is_the_sweeps_own(
    kind: str, timm_script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(write_recipe(tmp_path).path)
    assert "p_L is 1.5, must be in (0, 1]" in refused(capsys, kind, recipe, "--p-l", "1.5")
    assert "unknown recipe 'no-such'" in refused(capsys, kind, "no-such")
    assert "--drop-path is set by the sweep itself" in refused(capsys, kind, recipe, "--drop-path", "0.1")
    assert "must be one of linear, uniform" in refused(capsys, kind, recipe, "--rule", "cubic")
