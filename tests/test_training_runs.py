"""Reading a training folder: the best epoch counts over resumes, and only where its checkpoint was kept."""

from pathlib import Path

import pytest

from sdzoo.errors import InputError
from sdzoo.training.runs import Run

HEADER = "epoch,train_loss,eval_loss,eval_top1,eval_top5,lr"


def folder(root: Path, rows: list[tuple[int, float]], kept: list[int]) -> Run:
    lines = [HEADER if row is None else f"{row[0]},0.5,0.4,{row[1]},99.0,0.1" for row in [None, *rows]]
    (root / "summary.csv").write_text("\n".join(lines) + "\n")
    for number in kept:
        (root / f"checkpoint-{number}.pth.tar").touch()
    return Run(root)


def test_best_is_the_first_of_the_highest(tmp_path: Path) -> None:
    run = folder(tmp_path, [(0, 80.0), (1, 91.02000007), (2, 91.02000027), (3, 90.0)], kept=[1, 2, 3])
    epoch, checkpoint = run.best()
    assert epoch.number == 1, "as many images right; the rest is what float32 made of the sum"
    assert checkpoint.name == "checkpoint-1.pth.tar"


def test_resumed_summary_has_two_headers_and_the_earlier_best_counts(tmp_path: Path) -> None:
    run = folder(tmp_path, [(0, 80.0), (1, 91.0), None, (1, 90.5), (2, 90.0)], kept=[0, 1, 2])
    assert [(epoch.number, epoch.top1) for epoch in run.epochs()] == [(0, 80.0), (1, 90.5), (2, 90.0)]
    assert run.best()[0].number == 1


def test_an_epoch_without_its_checkpoint_cannot_be_the_best(tmp_path: Path) -> None:
    assert folder(tmp_path, [(0, 99.0), (1, 91.0)], kept=[1]).best()[0].number == 1


def test_seconds_are_steps_times_their_average(tmp_path: Path) -> None:
    line = "Train: {} [{}/429 ({}%)]  Loss: 0.3 (0.4)  Time: 0.5s, 256.00/s  ({}s,  318.40/s)  LR: 1e-01  Data: 0.03"
    lines = [line.format(0, " 400", " 93", 9.9), line.format(0, " 428", "100", 0.402), "Test: [ 0/39]  Time: 0.1 (0.1)"]
    (tmp_path / "train.log").write_text("\n".join([*lines, line.format(12, " 428", "100", 0.5)]))
    assert Run(tmp_path).seconds() == {0: pytest.approx(429 * 0.402), 12: pytest.approx(429 * 0.5)}


def test_checkpoints_by_epoch(tmp_path: Path) -> None:
    folder(tmp_path, [], kept=[3, 12])
    (tmp_path / "checkpoint-x.pth.tar").touch()
    assert {epoch: path.name for epoch, path in Run(tmp_path).checkpoints().items()} == {
        3: "checkpoint-3.pth.tar",
        12: "checkpoint-12.pth.tar",
    }


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a training folder, it has no args\.yaml"):
        Run(tmp_path).arguments()
    with pytest.raises(InputError, match="no epoch has been finished"):
        Run(tmp_path).epochs()
    with pytest.raises(InputError, match="no checkpoint of a finished epoch"):
        folder(tmp_path, [(0, 99.0)], kept=[]).best()


def test_broken_files_are_one_line(tmp_path: Path) -> None:
    for text in ("", "[]", "seed: 1"):
        (tmp_path / "args.yaml").write_text(text)
        with pytest.raises(InputError, match="names no model"):
            Run(tmp_path).arguments()
    (tmp_path / "args.yaml").write_text("a: [")
    with pytest.raises(InputError, match=r"args\.yaml: not YAML"):
        Run(tmp_path).arguments()
    (tmp_path / "summary.csv").write_text("epoch,loss\n0,1\n")
    with pytest.raises(InputError, match=r"summary\.csv: not a summary of timm's script"):
        Run(tmp_path).epochs()
