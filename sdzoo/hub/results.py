"""What is known of weights before they are published: how they were trained, and how many test images they get right.

Weights that ship with the package have a ``.json`` beside them, published ones a ``results/test.json``; both hold the
fields of ``Results``.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sdzoo.errors import InputError
from sdzoo.models.datasets import DATASETS

if TYPE_CHECKING:
    from sdzoo.training.evaluation import Score


@dataclass(frozen=True)
class Results:
    """Top-1 of one split.

    Attributes:
        dataset: Key of ``DATASETS``.
        split: ``"test"``.
        correct: Images whose label has the largest logit.
        n: Images of the split.
        digest: Digest of the weights that were evaluated.
        recipe: Name of the recipe they were trained with, empty where it is not one of the package's.
    """

    dataset: str
    split: str
    correct: int
    n: int
    digest: str
    recipe: str = ""

    @property
    def score(self) -> "Score":
        """The same as a score, which knows its 95 % interval."""
        from sdzoo.training.evaluation import Score

        return Score(self.correct, self.n)

    def encode(self) -> str:
        """Return the fields as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> "Results":
        """Read the fields back.

        Raises:
            InputError: The file does not hold them.
        """
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{name: fields[name] for name in cls.__dataclass_fields__ if name in fields})
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: no readable results ({error})") from error


def dataset_of(labels: tuple[str, ...]) -> str | None:
    """Return the key of the data set that has these labels, None where the zoo knows none."""
    return next((key for key, info in DATASETS.items() if info.labels == tuple(labels)), None)


def public_arguments(arguments: dict[str, Any]) -> str:
    """Return the arguments of a training as YAML, without the paths of the machine it ran on."""

    def is_path(value: Any) -> bool:
        return isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("~", "..")))

    kept = {name: None if is_path(value) else value for name, value in arguments.items()}
    return yaml.safe_dump(kept, default_flow_style=False)
