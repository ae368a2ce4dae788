"""The comparison of runs: numbers from the folders, files complete, the same bytes every time."""

import csv
import statistics
from pathlib import Path

import pytest
import timm
import torch
import yaml

from sdzoo.errors import InputError
from sdzoo.models.gates import Gates
from sdzoo.models.survival import survival_probabilities
from sdzoo.training.evaluation import Score, note
from sdzoo.training.report import label, read_result, rows, write_report

STEPS = 40


def write_run(root: Path, seed: int, drop_path: float, top1: list[float], step_seconds: float) -> Path:
    """Write a folder as timm's script leaves it, of 10 steps an epoch."""
    folder = root / f"run-{drop_path}-{seed}"
    folder.mkdir()
    arguments = {"model": "sd_resnet20", "dataset": "torch/sd_cifar10", "epochs": len(top1), "seed": seed}
    (folder / "args.yaml").write_text(yaml.safe_dump(arguments | {"model_kwargs": {"gate_seed": seed}}))
    header = "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr"
    lines = [f"{epoch},0.5,0.4,{value},99,0.1" for epoch, value in enumerate(top1)]
    (folder / "summary.csv").write_text("\n".join([header, *lines]))
    log = "Train: {} [   9/10 (100%)]  Loss:  0.3 (0.4)  Time: 0.5s, 256.0/s  ({:.3f}s,  31.4/s)  LR: 1e-01  Data: 0.1"
    (folder / "train.log").write_text("\n".join(log.format(epoch, step_seconds) for epoch in range(len(top1))))
    model = timm.create_model("sd_resnet20", drop_path_rate=drop_path)
    model.gates.step = STEPS
    for epoch in range(len(top1)):
        torch.save({"state_dict": model.state_dict()}, folder / f"checkpoint-{epoch}.pth.tar")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [
        write_run(tmp_path, 1, 0.5, [50.0, 90.0, 89.0], step_seconds=0.6),
        write_run(tmp_path, 2, 0.5, [50.0, 88.0, 92.0], step_seconds=0.8),
        write_run(tmp_path, 1, 0.0, [60.0, 85.0, 86.0], step_seconds=1.0),
    ]


def test_a_run_is_read_as_it_was(folders: list[Path]) -> None:
    result = read_result(folders[0])
    assert (result.arm, result.seed, result.error) == ("p_L = 0.5", 1, 10.0)
    assert result.seconds == {0: pytest.approx(6), 1: pytest.approx(6), 2: pytest.approx(6)}
    assert result.expected_open == pytest.approx((3 * 9 - 1) / (4 * 9))
    gates = Gates(timm.create_model("sd_resnet20").survival, seed=1)
    assert result.measured_open == pytest.approx(statistics.mean(sum(gates.at(s)) / 9 for s in range(STEPS)))


def test_arms_are_compared_with_constant_depth(folders: list[Path]) -> None:
    stochastic, constant = rows([read_result(folder) for folder in folders])
    assert (stochastic["arm"], constant["arm"]) == ("p_L = 0.5", "constant depth")
    assert stochastic["validation error %"] == "9.00 ± 1.41"
    assert stochastic["time / constant"] == "0.60", "seed 1, the pair that ran side by side"
    assert constant["validation error %"] == "14.00"
    assert (constant["time / constant"], constant["open blocks, measured"]) == ("1.00", "1.000")


def test_times_count_while_both_arms_ran(tmp_path: Path) -> None:
    """The stochastic arm ends after 12 s; the epochs of the other that begin later, alone and faster, do not count."""
    stochastic = write_run(tmp_path, 1, 0.5, [50.0, 60.0, 70.0, 80.0], step_seconds=0.3)
    constant = write_run(tmp_path, 1, 0.0, [50.0, 60.0, 70.0, 80.0], step_seconds=0.5)
    log = (constant / "train.log").read_text().splitlines()
    alone = log[3].replace("0.500s", "0.200s")
    (constant / "train.log").write_text("\n".join([*log[:3], alone]))
    rates = [row["time / constant"] for row in rows([read_result(folder) for folder in (stochastic, constant)])]
    assert rates == ["0.60", "1.00"]


@pytest.mark.parametrize(("name", "value"), [("lr", 0.05), ("amp", True)])
@pytest.mark.parametrize("differs", [1, 2])
def test_only_what_differs_in_survival_and_seed_is_compared(
    folders: list[Path], differs: int, name: str, value: object
) -> None:
    file = folders[differs] / "args.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {name: value}))
    with pytest.raises(InputError, match=rf"{folders[differs].name} has {name} {value}, .*run-0\.5-1 has None"):
        rows([read_result(folder) for folder in folders])


def test_another_schedule_or_sampling_is_another_arm() -> None:
    assert label(survival_probabilities(9, 0.5)) == "p_L = 0.5"
    assert label(survival_probabilities(9, 0.5, "uniform")) == "p_L = 0.5, uniform"
    assert label((0.9, 0.4, 0.5)) == "p_L = 0.5, every p_l given"
    assert label(survival_probabilities(9, 0.5), "systematic") == "p_L = 0.5, systematic"
    assert label((1.0,) * 9) == "constant depth"


def test_recorded_evaluations_of_the_best_checkpoint_count(folders: list[Path]) -> None:
    note(folders[1] / "checkpoint-2.pth.tar", "test", Score(910, 1_000))
    note(folders[1] / "checkpoint-0.pth.tar", "test", Score(1, 2))
    assert read_result(folders[1]).test_errors == {"test": 9.0}


def test_a_broken_file_of_evaluations_is_one_line(folders: list[Path]) -> None:
    (folders[1] / "evaluations.csv").write_text("checkpoint,images\ncheckpoint-2.pth.tar,test\n")
    with pytest.raises(InputError, match=r"evaluations\.csv: not the evaluations"):
        read_result(folders[1])


def test_a_run_without_its_log_counts_for_errors_alone(folders: list[Path], tmp_path: Path) -> None:
    (folders[0] / "train.log").unlink()
    stochastic, _ = write_report(folders, tmp_path / "report")
    assert stochastic["validation error %"] == "9.00 ± 1.41"
    assert (stochastic["s / epoch"], stochastic["hours"]) == ("8.0", "0.01 (1 of 2 runs)")
    assert stochastic["time / constant"] == "", "no pair of one seed has both logs"
    with (tmp_path / "report" / "curves.csv").open() as lines:
        minutes = {row["run"]: row["training minutes"] for row in csv.DictReader(lines)}
    assert minutes == {"run-0.5-1": "", "run-0.5-2": "0.4", "run-0.0-1": "0.5"}
    for folder in folders:
        (folder / "train.log").unlink(missing_ok=True)
    untimed, _ = write_report(folders, tmp_path / "untimed")
    assert untimed["s / epoch"] == untimed["hours"] == ""
    assert not list((tmp_path / "untimed").glob("time.*"))


def test_files_are_complete_and_the_same_every_time(folders: list[Path], tmp_path: Path) -> None:
    for output in ("first", "second"):
        write_report(folders, tmp_path / output)
    figures = [f"{name}.{suffix}" for name in ("curves", "steps", "time") for suffix in ("png", "svg")]
    names = sorted(["curves.csv", "steps.csv", "table.csv", "table.md", *figures])
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == names
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    with (tmp_path / "first" / "curves.csv").open() as lines:
        points = list(csv.DictReader(lines))
    assert len(points) == 9
    assert points[4]["training minutes"] == str(round(2 * 8 / 60, 3))
    with (tmp_path / "first" / "steps.csv").open() as lines:
        updates = list(csv.DictReader(lines))
    assert len(updates) == 9
    assert (updates[1]["epoch"], updates[1]["training loss"], updates[1]["learning rate"]) == ("1.9", "0.3", "0.1")
    assert len((tmp_path / "first" / "table.md").read_text().splitlines()) == 4


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a training folder"):
        write_report([tmp_path], tmp_path / "report")
    assert not (tmp_path / "report").exists()


class Code:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple:
        return exec, ("raise SystemError('a pickle ran code')",)


def test_a_checkpoint_with_code_is_refused(folders: list[Path]) -> None:
    torch.save({"state_dict": Code()}, folders[0] / "checkpoint-1.pth.tar")
    with pytest.raises(InputError, match="refused, it would run code"):
        read_result(folders[0])


def test_a_run_without_gates_is_one_line(folders: list[Path]) -> None:
    weights = timm.create_model("sd_resnet20").state_dict()
    torch.save({"state_dict": weights}, folders[0] / "checkpoint-1.pth.tar")
    with pytest.raises(InputError, match="counts no draws of gates"):
        read_result(folders[0])
