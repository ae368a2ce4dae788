"""From a name ``skip_...`` and, if given, a checkpoint file to a converted network of timm ready to evaluate."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from sdzoo.checkpoints import Checkpoint, read_checkpoint
from sdzoo.errors import InputError
from sdzoo.models.gates import STEP_KEY
from sdzoo.models.skip_names import check_name


def load_adapted(
    name: str, *, checkpoint: Path | None = None, pretrained: bool = True, drop_path: float | None = None
) -> nn.Module:
    """Return a converted network in evaluation mode, with the options its checkpoint was trained with.

    Args:
        name: ``skip_<timm name>``, with or without a tag.
        checkpoint: Weights in place of the tag's: ``.safetensors``, or a checkpoint of timm's script, which knows
            rate, rule and schedule; a ``.safetensors`` is taken to be of timm's own rule and schedule.
        pretrained: Without a checkpoint: load timm's weights (True) or initialise at random (False).
        drop_path: timm's drop_path_rate, in (0, 1); needed where the checkpoint does not know it.

    Raises:
        InputError: An unknown name, weights that cannot be read or belong to another network, no rate, or one that
            contradicts them.
    """
    check_name(name)
    weights = None if checkpoint is None else read_checkpoint(checkpoint)
    arguments: Mapping[str, Any] = {} if weights is None else weights.arguments
    if weights is not None and arguments.get("model_ema"):
        warnings.warn(f"{checkpoint}: taking the moving average of the weights, not the plain ones", stacklevel=2)
    rate = _rate(str(checkpoint or name), arguments.get("drop_path"), drop_path)
    untagged = None if pretrained and weights is None else {"tag": ""}
    try:
        model: nn.Module = timm.create_model(
            name,
            pretrained=pretrained and weights is None,
            drop_path_rate=rate,
            num_classes=arguments.get("num_classes"),
            pretrained_cfg_overlay=untagged,
            **(arguments.get("model_kwargs") or {}),
        )
        if weights is not None:
            model.load_state_dict(_state_dict(weights))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{checkpoint or name}: {_short(error)}") from error
    return model.eval()


def _short(error: Exception, length: int = 300) -> str:
    """Return an error in one line; torch lists every parameter that is missing."""
    text = " ".join(str(error).split())
    return text if len(text) <= length else f"{text[:length]} ..."


def _rate(source: str, trained: float | None, asked: float | None) -> float:
    """Return the DropPath rate that the weights were trained with."""
    if trained == 0:
        raise InputError(
            f"{source}: trained with drop_path 0, constant depth: it is timm's own network, none to convert"
        )
    if trained is not None and asked is not None and not math.isclose(trained, asked):
        raise InputError(f"{source}: trained with drop_path {trained:g}, --drop-path asks for {asked:g}")
    rate = trained if asked is None else asked
    if rate is None:
        raise InputError(f"{source}: its DropPath rate is not known; say it with --drop-path")
    if not 0 < rate < 1:
        raise InputError(f"{source}: its DropPath rate is {rate:g}, must be in (0, 1)")
    return rate


def _state_dict(weights: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.state_dict.items() if name != STEP_KEY}
