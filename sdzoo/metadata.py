"""What an ONNX file knows about itself: whose weights it holds and how images must be prepared for it.

The facts travel in the graph's ``metadata_props``, every value as JSON, in the order of the fields below. There are
no time stamps and no paths among them: the same weights give the same bytes everywhere.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, get_args, get_origin

from sdzoo.errors import InputError

if TYPE_CHECKING:
    from sdzoo.models.sd_resnet import SdResNet

PRODUCER = "sdzoo"
FLOAT32 = "float32"


@dataclass(frozen=True)
class Metadata:
    """Facts about the weights in an ONNX file.

    Attributes:
        model: Architecture, a name that timm knows after ``import sdzoo``.
        tag: Tag of the published weights, empty for others.
        labels: Name of every class, in the order of the logits.
        mean: Mean of every channel, of pixels scaled to [0, 1].
        std: Standard deviation of every channel, likewise.
        p_L: Survival probability of the last block (paper, section 3).
        schedule: Survival probabilities p_1..p_L, folded into the weights.
        digest: sha256 of the weights before folding.
        version: Version of sdzoo that wrote the file.
        precision: ``float32``, or the kind of ``sdzoo quantize`` that made the file smaller.
    """

    model: str
    tag: str
    labels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    p_L: float  # noqa: N815  the paper's symbol
    schedule: tuple[float, ...]
    digest: str
    version: str
    precision: str = FLOAT32

    @property
    def name(self) -> str:
        """The model with its tag, as timm and the command line take it."""
        return f"{self.model}.{self.tag}" if self.tag else self.model

    @classmethod
    def of(cls, model: "SdResNet") -> "Metadata":
        """Collect the facts of a network created by ``timm.create_model``.

        Raises:
            InputError: It was not created so, or its mean and std are for another number of channels.
        """
        from sdzoo import __version__
        from sdzoo.models.digest import digest

        cfg = configuration(model)
        mean, std = (tuple(float(channel) for channel in cfg[key]) for key in ("mean", "std"))
        if not len(mean) == len(std) == model.in_chans:
            raise InputError(
                f"the network has {model.in_chans} input channels, its mean {len(mean)} and its std {len(std)}: "
                "give timm.create_model both in pretrained_cfg_overlay"
            )
        return cls(
            model=cfg["architecture"],
            tag=cfg.get("tag") or "",
            labels=_labels(cfg.get("label_names"), model.num_classes),
            mean=mean,
            std=std,
            p_L=model.survival[-1],
            schedule=model.survival,
            digest=digest(model.state_dict()),
            version=__version__,
        )

    @classmethod
    def decode(cls, props: Mapping[str, str]) -> "Metadata":
        """Read the facts back.

        Raises:
            InputError: One is missing, not JSON, or of another type.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            try:
                value = json.loads(props[field.name])
            except (KeyError, ValueError) as error:
                raise InputError(f"its metadata has no readable {field.name!r}") from error
            value = tuple(value) if isinstance(value, list) else value
            kind = get_origin(field.type) or field.type
            if not isinstance(value, kind) or not _holds(value, get_args(field.type)):  # type: ignore[arg-type]
                raise InputError(f"its metadata has {value!r} for {field.name!r}")
            values[field.name] = value
        return cls(**values)

    def encode(self) -> dict[str, str]:
        """Return every field as JSON, in a fixed order; ``decode`` gives the same numbers back."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}


def _holds(value: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether every element of a ``tuple[kind, ...]`` is of that kind; what is no tuple has no kinds."""
    return not kinds or all(isinstance(element, kinds[0]) for element in value)


def configuration(model: "SdResNet") -> dict[str, Any]:
    """Return timm's configuration of a network.

    Raises:
        InputError: It was not created by ``timm.create_model`` and has none.
    """
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    if "architecture" not in cfg:
        raise InputError("the network has no pretrained_cfg: create it by timm.create_model")
    return cfg


def _labels(names: tuple[str, ...] | None, classes: int) -> tuple[str, ...]:
    """Return the names of the classes, their numbers where the names are of another data set or unknown."""
    if names is not None and len(names) == classes:
        return tuple(names)
    return tuple(str(label) for label in range(classes))
