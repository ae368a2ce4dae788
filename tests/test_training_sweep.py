"""Sweeps: which trainings, their commands, and that nothing is trained twice or under another command."""

from pathlib import Path

import pytest
from timm_runs import write_recipe

from sdzoo.errors import InputError
from sdzoo.training import launch
from sdzoo.training.sweep import COMMAND, Cell, Sweep, cells


def parsed(sweep: Sweep, cell: Cell, script: Path) -> dict[str, object]:
    """Return what timm's script makes of a cell's command."""
    words = sweep.words(cell)
    assert words[1] == str(script.resolve())
    config = words.index("--config")  # the script reads it before it reads all others
    assert words[config + 1] == str(sweep.recipe.path)
    return vars(launch.script_parser(script, sweep.recipe).parse_args(words[2:config] + words[config + 2 :]))


def test_constant_depth_stands_once_under_all_rules() -> None:
    every = cells([0.5, 1.0], ["linear", "uniform"], [1, 2])
    assert len(every) == len(set(every)) == 6
    assert [cell for cell in every if cell.p_L == 1] == [Cell(1.0, "constant", 1), Cell(1.0, "constant", 2)]
    assert len({cell.name for cell in every}) == 6


@pytest.mark.parametrize("p_L", [0.0, -0.5, 1.5])
def test_survival_probabilities_out_of_range(p_L: float) -> None:
    with pytest.raises(InputError, match=rf"p_L is {p_L:g}, must be in \(0, 1\]"):
        cells([0.5, p_L], ["linear"], [1])


def test_an_unknown_rule() -> None:
    with pytest.raises(InputError, match="'cubic', must be one of linear, uniform"):
        cells([0.5], ["cubic"], [1])


def test_a_cell_is_a_command_of_timms_script(timm_script: Path, tmp_path: Path) -> None:
    sweep = Sweep(write_recipe(tmp_path, model_kwargs={"gate_seed": 7}), ["--epochs", "3"], tmp_path / "out")
    uniform = parsed(sweep, Cell(0.2, "uniform", 5), timm_script)
    assert (uniform["drop_path"], uniform["seed"], uniform["epochs"]) == (0.8, 5, 3)
    assert uniform["model_kwargs"] == {"gate_seed": 7, "survival": "uniform"}
    assert Path(str(uniform["output"])) / str(uniform["experiment"]) == sweep.folder(Cell(0.2, "uniform", 5))
    constant = parsed(sweep, Cell(1.0, "constant", 5), timm_script)
    assert (constant["drop_path"], constant["model_kwargs"]) == (0.0, {"gate_seed": 7})


def test_networks_of_timm_take_the_rule_as_their_schedule(timm_script: Path, tmp_path: Path) -> None:
    sweep = Sweep(launch.find_recipe("imagenet_resnet50"), [], tmp_path)
    options = parsed(sweep, Cell(0.5, "uniform", 1), timm_script)["model_kwargs"]
    assert options == {"rule": "paper", "schedule": "uniform", "zero_init_last": False}


@pytest.mark.parametrize("option", ["--drop-path", "--model-kwargs", "--seed", "--output", "--experiment"])
def test_what_the_sweep_sets_cannot_be_given(option: str, timm_script: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{option} is set by the sweep itself"):
        Sweep(write_recipe(tmp_path), [option, "1"], tmp_path).check()


def test_what_is_trained_is_not_trained_again(timm_script: Path, tmp_path: Path) -> None:
    """Two trained cells are yielded at once; under another command they are refused before anything is trained."""
    recipe, every = write_recipe(tmp_path), cells([0.5, 1.0], ["linear"], [1])
    sweep = Sweep(recipe, [], tmp_path / "out")
    for cell in every:
        sweep.folder(cell).mkdir(parents=True)
        words = sweep.words(cell)[1:]
        (sweep.folder(cell) / COMMAND).write_text(" ".join(words) + "\n")
    assert [cell for cell, _ in sweep.run(every)] == every
    other = Sweep(recipe, ["--epochs", "9"], tmp_path / "out")
    with pytest.raises(InputError, match=r"linear-0\.5-seed1 was trained by another command"):
        list(other.run(every))


def test_a_failed_training_is_no_trained_cell(timm_script: Path, tmp_path: Path) -> None:
    sweep = Sweep(write_recipe(tmp_path, data_dir=str(tmp_path / "absent")), [], tmp_path / "out")
    cell = Cell(0.5, "linear", 1)
    with pytest.raises(InputError, match="training ended with exit status 1"):
        list(sweep.run([cell]))
    assert not (sweep.folder(cell) / COMMAND).exists()
