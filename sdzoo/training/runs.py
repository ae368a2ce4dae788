"""Read the folder that timm's script leaves: the best epoch, its checkpoint, what was trained and how long."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from sdzoo.errors import InputError

LOG = "train.log"
# The last step line of an epoch: "Train: 3 [ 428/429 (100%)] ... Time: 0.41s, 310.12/s  (0.402s,  318.40/s) ..."
STEPS = re.compile(r"Train: (\d+) \[ *\d+/(\d+) \(100%\)\].*? Time: .*?\(([\d.]+)s,")
# Any step line, its own loss before the epoch's mean: "Train: 3 [  50/429 ( 12%)]  Loss: 0.41 (0.52) ... LR: 1e-01"
STEP = re.compile(r"Train: (\d+) \[ *(\d+)/(\d+) .*?Loss: +(\S+) .*? LR: (\S+)")


@dataclass(frozen=True)
class Epoch:
    """One row of ``summary.csv``: numbers from 0, losses, validation top-1 in percent."""

    number: int
    train_loss: float
    validation_loss: float
    top1: float


@dataclass(frozen=True)
class Run:
    """A training folder of timm's script."""

    folder: Path

    def arguments(self) -> dict[str, object]:
        """Return the arguments the script ran with."""
        file = self.folder / "args.yaml"
        if not file.is_file():
            raise InputError(f"{self.folder}: not a training folder, it has no args.yaml")
        try:
            arguments = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise InputError(f"{file}: not YAML ({error})") from error
        if not isinstance(arguments, dict) or not arguments.get("model"):
            raise InputError(f"{file}: not the arguments of timm's script, it names no model")
        return arguments

    def epochs(self) -> list[Epoch]:
        """Return the epochs in order; where a resumed run repeated one, the later row counts.

        The script writes the header again on every resume.
        """
        file = self.folder / "summary.csv"
        if not file.is_file():
            raise InputError(f"{self.folder}: no epoch has been finished, summary.csv is missing")
        with file.open(newline="", encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        try:
            epochs = {int(row["epoch"]): _epoch(row) for row in rows if row["epoch"] != "epoch"}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}: not a summary of timm's script ({error})") from error
        return [epochs[number] for number in sorted(epochs)]

    def seconds(self) -> dict[int, float]:
        """Return the seconds of training in each epoch, without validation, from the log."""
        found = map(STEPS.match, self._log())
        return {int(match[1]): int(match[2]) * float(match[3]) for match in found if match}

    def steps(self) -> list[tuple[float, float, float]]:
        """Return epoch, loss and learning rate of the single updates in the log; a repeated one counts once."""
        found = map(STEP.match, self._log())
        steps = {(int(m[1]), int(m[2])): (int(m[3]), float(m[4]), float(m[5])) for m in found if m}
        return [
            (epoch + update / updates, loss, rate) for (epoch, update), (updates, loss, rate) in sorted(steps.items())
        ]

    def _log(self) -> list[str]:
        log = self.folder / LOG
        return log.read_text(encoding="utf-8").splitlines() if log.is_file() else []

    def checkpoints(self) -> dict[int, Path]:
        """Return the checkpoints that were kept, by their epochs."""
        return {
            int(match[1]): path
            for path in self.folder.glob("checkpoint-*.pth.tar")
            if (match := re.fullmatch(r"checkpoint-(\d+)\.pth\.tar", path.name))
        }

    def best(self) -> tuple[Epoch, Path]:
        """Return the first epoch of the highest validation top-1 whose checkpoint was kept, and that checkpoint.

        A resumed script forgets its earlier best and overwrites ``model_best``, so the whole summary decides.
        """
        kept = self.checkpoints()
        candidates = [epoch for epoch in self.epochs() if epoch.number in kept]
        if not candidates:
            raise InputError(f"{self.folder}: no checkpoint of a finished epoch was kept")
        best = max(candidates, key=lambda epoch: (round(epoch.top1, 3), -epoch.number))
        return best, kept[best.number]


def _epoch(row: dict[str, str]) -> Epoch:
    return Epoch(int(row["epoch"]), float(row["train_loss"]), float(row["eval_loss"]), float(row["eval_top1"]))
