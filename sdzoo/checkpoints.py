"""From a name and, if given, a checkpoint file to a network ready to evaluate, or one line that says why not."""

import json
import math
import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from timm.utils.checkpoint_saver import load_checkpoint_metadata
from torch import Tensor

from sdzoo.errors import InputError
from sdzoo.models.datasets import DATASETS
from sdzoo.models.digest import DIGEST_KEY
from sdzoo.models.gates import STEP_KEY
from sdzoo.models.sd_resnet import SURVIVAL_KEY, SdResNet
from sdzoo.models.survival import describe, survival_probabilities
from sdzoo.training.data import PROTOCOLS

COPIED = ("input_size", "mean", "std")
OPTIONAL_KEYS = {SURVIVAL_KEY, STEP_KEY, DIGEST_KEY}


@dataclass(frozen=True)
class Checkpoint:
    """Weights read from a file, and the training arguments where timm's script wrote it."""

    path: Path
    state_dict: Mapping[str, Tensor]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def schedule(self) -> tuple[float, ...] | None:
        """Survival probabilities that travel with the weights, None where there are none."""
        survival = self.state_dict.get(SURVIVAL_KEY)
        return None if survival is None else tuple(survival.double().tolist())

    def cfg(self) -> dict[str, Any]:
        """Return what timm's configuration should say of these weights, as far as the file or its folder tells."""
        published = self.path.with_name("config.json")
        said: Mapping[str, Any]
        if self.path.suffix == ".safetensors" and published.is_file():
            config = json.loads(published.read_text(encoding="utf-8"))
            said = {**config["pretrained_cfg"], "label_names": config.get("label_names")}
        else:
            said = self.arguments
        return {key: tuple(value) for key in COPIED if (value := said.get(key))} | self._classes(said)

    def _classes(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """Return number and names of the classes; names only where they are known and fit."""
        if "fc.weight" not in self.state_dict:
            return {}
        n = len(self.state_dict["fc.weight"])
        protocol = PROTOCOLS.get((said.get("dataset") or "").removeprefix("torch/"))
        labels = DATASETS[protocol.source].labels if protocol else tuple(said.get("label_names") or ())
        return {"num_classes": n} | ({"label_names": labels if len(labels) == n else ()} if said else {})


def read_checkpoint(path: Path, use_ema: bool = True) -> Checkpoint:
    """Read weights from a ``.safetensors`` file or a checkpoint of timm's script, never running code from it.

    Args:
        path: The file.
        use_ema: Take the moving average of the weights where the file has one.

    Raises:
        InputError: The file is missing, damaged, or a pickle with more than tensors in it.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about a format that it then refuses
            state_dict = load_state_dict(str(path), use_ema=use_ema)
            metadata = {} if path.suffix == ".safetensors" else load_checkpoint_metadata(str(path))
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise InputError(f"{path}: {_why_unreadable(path)}") from error
    if not state_dict or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise InputError(f"{path}: not a checkpoint, it holds no table of tensors")
    arguments = metadata.get("args")
    return Checkpoint(path, state_dict, vars(arguments) if isinstance(arguments, Namespace) else {})


def _why_unreadable(path: Path) -> str:
    try:
        code = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # whatever a damaged file makes the parser raise
        code = []
    if code:
        return f"refused, it would run code ({', '.join(code)}); only tensors are loaded"
    return "damaged, or not a checkpoint"


def load_model(
    name: str, *, checkpoint: Path | None = None, pretrained: bool = True, drop_path: float | None = None
) -> SdResNet:
    """Return a network of the zoo in evaluation mode.

    Args:
        name: Architecture with or without a tag, such as ``sd_resnet20.fashion_mnist``.
        checkpoint: Weights to load in place of the tag's.
        pretrained: Without a checkpoint: load the tag's weights (True) or initialise at random (False).
        drop_path: 1 - p_L of the linear decay, in [0, 1). Needed where the weights carry no schedule; where
            they do, it must agree.

    Raises:
        InputError: An unknown name, weights that do not exist, cannot be read or belong to another architecture,
            or a ``drop_path`` that contradicts them.
    """
    check_name(name)
    _check_rate(drop_path)
    if checkpoint is not None:
        weights = read_checkpoint(checkpoint)
        if weights.arguments.get("model_ema"):
            warnings.warn(f"{checkpoint}: taking the moving average of the weights, not the plain ones", stacklevel=2)
        model = _from_checkpoint(name, weights, drop_path)
    elif pretrained:
        model = _from_tag(name)
        _check_agreement(name, model.survival, drop_path)
    else:
        model = timm.create_model(name, drop_path_rate=drop_path, pretrained_cfg_overlay={"tag": ""})
    return model.eval()


def check_name(name: str) -> None:
    """Raise InputError with the nearest names unless ``name`` is a model of the zoo, with or without its tag."""
    known = sorted({*timm.list_models("sd_resnet*"), *timm.list_models("sd_resnet*", include_tags=True)})
    if name not in known:
        tags = [other for other in known if other.startswith(f"{name.partition('.')[0]}.")]
        near = tags or get_close_matches(name, known, n=4, cutoff=0.5) or timm.list_models("sd_resnet*")
        raise InputError(f"unknown model {name!r}; near names: {', '.join(near)}")


def _from_tag(name: str) -> SdResNet:
    tags = timm.list_pretrained("sd_resnet*")
    if name not in {*tags, *(tag.partition(".")[0] for tag in tags)}:
        raise InputError(f"{name} has no weights; give a checkpoint, or take one that has: {', '.join(tags) or 'none'}")
    try:
        model: SdResNet = timm.create_model(name, pretrained=True)
    except RuntimeError as error:
        raise InputError(f"{name}: {error}") from error
    return model


def _from_checkpoint(name: str, weights: Checkpoint, drop_path: float | None) -> SdResNet:
    """Create the network that the weights fit, and load them."""
    try:
        model = _fitting(name, weights, drop_path)
        _check_architecture(name, model, weights)
        schedule = _schedule_of(weights, drop_path, len(model.survival))
        model.load_state_dict({**weights.state_dict, SURVIVAL_KEY: torch.tensor(schedule, dtype=torch.float64)})
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:  # whatever odd tensors lead to
        raise InputError(f"{weights.path}: not a checkpoint of {name}: {error}") from error
    return model


def _fitting(name: str, weights: Checkpoint, drop_path: float | None) -> SdResNet:
    """Return a network with the classes and channels of the weights."""
    # A name with a tag says which classes these are, a bare one does not.
    cfg = ({} if "." in name else {"label_names": ()}) | weights.cfg()
    stem = weights.state_dict.get("conv1.weight")
    model: SdResNet = timm.create_model(
        name,
        in_chans=None if stem is None else stem.shape[1],
        num_classes=cfg.get("num_classes"),
        drop_path_rate=drop_path if weights.schedule() is None else None,
        pretrained_cfg_overlay=cfg | {"tag": ""},  # these are not the tag's weights
    )
    return model


def _schedule_of(weights: Checkpoint, drop_path: float | None, L: int) -> tuple[float, ...]:
    """Return the survival probabilities that the weights carry, else those of ``drop_path``."""
    schedule = weights.schedule()
    if schedule is not None:
        _check_agreement(str(weights.path), schedule, drop_path)
        return schedule
    if drop_path is None:
        raise InputError(f"{weights.path}: carries no survival probabilities; say them with --drop-path (1 - p_L)")
    return survival_probabilities(L, 1 - drop_path)


def _check_architecture(name: str, model: SdResNet, weights: Checkpoint) -> None:
    theirs = {key: value for key, value in weights.state_dict.items() if key not in OPTIONAL_KEYS}
    ours = {key: value for key, value in model.state_dict().items() if key not in OPTIONAL_KEYS}
    problems = {
        "missing": [key for key in ours if key not in theirs],
        "unknown": [key for key in theirs if key not in ours],
        "of another shape": [key for key in ours if key in theirs and ours[key].shape != theirs[key].shape],
    }
    said = [f"{_some(keys)} {problem}" for problem, keys in problems.items() if keys]
    if said:
        raise InputError(f"{weights.path}: not a checkpoint of {name}: {'; '.join(said)}")


def _some(keys: list[str], shown: int = 3) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(keys[:shown]) + more


def _check_rate(drop_path: float | None) -> None:
    if drop_path is not None and not 0 <= drop_path < 1:
        raise InputError(f"--drop-path is {drop_path}, must be in [0, 1): it is 1 - p_L")


def _check_agreement(source: str, survival: tuple[float, ...], drop_path: float | None) -> None:
    if drop_path is None:
        return
    asked = survival_probabilities(len(survival), 1 - drop_path)
    if not all(map(math.isclose, asked, survival)):
        raise InputError(
            f"{source}: trained with {describe(survival)}, --drop-path {drop_path:g} asks for {describe(asked)}"
        )
