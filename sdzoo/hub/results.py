"""What is known of weights before they are published: how they were trained, and how many test images they get right.

Weights that ship with the package have a ``.json`` beside them, published ones a ``results/results.json``: ``tag`` (the
data set), ``digest``, ``recipe``, ``test`` with ``top1`` in percent, ``n`` and, where it is a part of the test split
only, its name ``images``, and what else was worth noting.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sdzoo.errors import InputError

if TYPE_CHECKING:
    from sdzoo.training.evaluation import Score

STARTED = re.compile(r"-\d{8}-\d{6}$")  # what `sdzoo train` adds to a recipe's name to name the experiment


@dataclass(frozen=True)
class Results:
    """Top-1 on the test split.

    Attributes:
        dataset: Key of ``DATASETS``.
        top1: Percent of the images whose label has the largest logit.
        n: How many images that is of.
        digest: Digest of the weights that were evaluated.
        recipe: Recipe of the package they were trained with, empty where it is none of them.
        validation: Best validation epoch and its top-1 in percent, where they were noted.
        images: Which part of the test split it is, empty for the whole.
    """

    dataset: str
    top1: float
    n: int
    digest: str
    recipe: str = ""
    validation: tuple[int, float] | None = None
    images: str = ""

    @property
    def score(self) -> "Score":
        """The same as a score, which knows its 95 % interval."""
        from sdzoo.training.evaluation import Score

        return Score(round(self.top1 * self.n / 100), self.n)

    def encode(self) -> str:
        """Return JSON that ``read`` understands."""
        test = {"top1": self.top1, "n": self.n} | ({"images": self.images} if self.images else {})
        fields = {"tag": self.dataset, "recipe": self.recipe, "test": test, "digest": self.digest}
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read the results from a file.

        Raises:
            InputError: The file does not hold them.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            test, best = fields["test"], fields.get("best_epoch")
            validation = None if best is None else (int(best), float(fields["validation_top1"]))
            recipe, images = fields.get("recipe", ""), test.get("images", "")
            return cls(fields["tag"], test["top1"], test["n"], fields["digest"], recipe, validation, images)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: no readable results ({error!r})") from error


def recipe_of(arguments: dict[str, Any]) -> str:
    """Return the recipe of the package that a training ran, empty where it was none of them or changed one."""
    from sdzoo.training.launch import recipes

    name = STARTED.sub("", str(arguments.get("experiment")))
    values = next((recipe.values() for recipe in recipes() if recipe.name == name), None)
    if values is None or any(key not in arguments or arguments[key] != values[key] for key in values):
        return ""
    return name


def recipe_arguments(name: str) -> dict[str, Any]:
    """Return the arguments in a recipe of the package, none where the name is empty."""
    from sdzoo.training.launch import find_recipe

    return dict(find_recipe(name).values()) if name else {}


def public_arguments(arguments: dict[str, Any]) -> str:
    """Return the arguments of a training as YAML, without the paths of the machine it ran on."""

    def is_path(value: Any) -> bool:
        return isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("~", "..")))

    kept = {name: None if is_path(value) else value for name, value in arguments.items()}
    return yaml.safe_dump(kept, default_flow_style=False)
