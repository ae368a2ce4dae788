"""Two ranks of plain DistributedDataParallel, without ``find_unused_parameters``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).parent / "skip_ddp_worker.py"


def run(tmp_path: Path, family: str, mode: str) -> list[dict]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ran = subprocess.run([*launcher, WORKER, family, mode, tmp_path / "rank"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return [json.loads((tmp_path / f"rank.{rank}").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("family", ["test_convnext", pytest.param("test_resnet", marks=pytest.mark.slow)])
def test_batch_mode_has_the_same_gates_and_weights_on_both_ranks(family: str, tmp_path: Path) -> None:
    first, second = run(tmp_path, family, "batch")
    assert first == second
    assert first["step"] == 8
    rows = [rows for step in first["windows"] for _, rows in step]
    assert {0, 4} == set(rows)


def test_sample_mode_computes_as_many_rows_on_both_ranks_but_other_rows(tmp_path: Path) -> None:
    first, second = run(tmp_path, "test_convnext", "sample")
    assert first["weights"] == second["weights"]
    ours, theirs = ([window for step in rank["windows"] for window in step] for rank in (first, second))
    assert ours
    assert [rows for _, rows in ours] == [rows for _, rows in theirs]
    assert [start for start, _ in ours] != [start for start, _ in theirs]
