"""Train a recipe several times, over survival probabilities, rules and seeds, and keep what is already trained."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from sdzoo.errors import InputError
from sdzoo.files import replacing
from sdzoo.models.skip_names import PREFIX
from sdzoo.models.survival import RULES
from sdzoo.training import launch

COMMAND = "command.txt"
OWN = ("--drop-path", "--model-kwargs", "--seed", "--output", "--experiment", "--resume", "--device-modules")


@dataclass(frozen=True)
class Cell:
    """One training of a sweep."""

    p_L: float  # noqa: N815  the paper's symbol
    rule: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.rule}-{self.p_L:g}-seed{self.seed}"


def cells(p_L: Sequence[float], rules: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Return the trainings of a sweep; constant depth, p_L = 1, is the same under every rule and stands once.

    Raises:
        InputError: A survival probability outside (0, 1], or a rule that is unknown.
    """
    for probability in p_L:
        if not 0 < probability <= 1:
            raise InputError(f"p_L is {probability:g}, must be in (0, 1]")
    for rule in rules:
        if rule not in RULES:
            raise InputError(f"survival is {rule!r}, must be one of {', '.join(RULES)}")
    every = (Cell(p, rule if p < 1 else "constant", seed) for seed, p, rule in product(seeds, p_L, rules))
    return list(dict.fromkeys(every))


@dataclass(frozen=True)
class Sweep:
    """How the trainings of a sweep are run.

    Attributes:
        recipe: What to train.
        arguments: More arguments for timm's script, the same for all.
        output: Folder; each training has its own under ``runs``.
        modules: Modules that the script imports beside those of every training.
        variables: More of the script's environment; ``{folder}`` in a value is the training folder.
    """

    recipe: launch.Recipe
    arguments: Sequence[str]
    output: Path
    modules: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)

    def setting(self, option: str) -> Any:
        """Return what timm's script is told: an argument, else the recipe's value, None without either."""
        name = option.removeprefix("--").replace("-", "_")
        return launch.value_of(option, self.arguments) or self.recipe.values().get(name)

    def model_options(self) -> dict[str, Any]:
        """Return the recipe's options for the network."""
        return dict(self.setting("--model-kwargs") or {})

    def check(self) -> None:
        """Raise InputError for what cannot be trained, before anything starts."""
        for option in OWN:
            if launch.value_of(option, self.arguments) is not None:
                raise InputError(f"{option} is set by the sweep itself")
        launch.check_recipe(self.recipe, launch.script_arguments(launch.find_script()))
        launch.check_arguments(self.arguments, launch.Machines())
        launch.check_model(self.recipe, self.arguments)
        launch.check_data(self.recipe, self.arguments)

    def folder(self, cell: Cell) -> Path:
        """Return the training folder of a cell."""
        return self.output / "runs" / cell.name

    def words(self, cell: Cell) -> list[str]:
        """Return the command that trains a cell."""
        folder = self.folder(cell)
        own = [
            *("--drop-path", f"{1 - cell.p_L:g}", "--seed", str(cell.seed)),
            *("--model-kwargs", *self._model_options(cell)),
            *("--device-modules", *launch.MODULES, *self.modules),
            *("--output", str(folder.parent), "--experiment", folder.name),
        ]
        return launch.command(self.recipe, [*self.arguments, *own], launch.find_script(), launch.Machines())

    def _model_options(self, cell: Cell) -> list[str]:
        options = self.model_options()
        if cell.p_L < 1:
            skips = str(self.setting("--model")).startswith(PREFIX)
            options["schedule" if skips else "survival"] = cell.rule
        return [f"{key}={value}" for key, value in options.items()]

    def run(self, every: Sequence[Cell]) -> Iterator[tuple[Cell, Path]]:
        """Train what is not trained yet; yield every cell with its folder as soon as it is there.

        Raises:
            InputError: A training failed, or a folder was trained by another command.
        """
        for cell in every:
            self._check_trained(cell)
        for cell in every:
            folder, words = self.folder(cell), self.words(cell)
            if not (folder / COMMAND).exists():
                launch.run(words, {name: value.format(folder=folder) for name, value in self.variables.items()})
                with replacing(folder / COMMAND) as file:
                    file.write_text(_text(words), encoding="utf-8")
            yield cell, folder

    def _check_trained(self, cell: Cell) -> None:
        file = self.folder(cell) / COMMAND
        if file.exists() and file.read_text(encoding="utf-8") != _text(self.words(cell)):
            raise InputError(f"{file.parent} was trained by another command, see its {COMMAND}; give another --output")


def _text(words: Sequence[str]) -> str:
    return shlex.join(words[1:]) + "\n"
