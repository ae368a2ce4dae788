"""From a name ``skip_...`` and, if given, a checkpoint file to a converted network of timm ready to evaluate."""

import ast
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
            rate, rule and schedule.
        pretrained: Without a checkpoint: load timm's weights (True) or initialise at random (False).
        drop_path: timm's drop_path_rate, in (0, 1); needed where the checkpoint does not know it.

    Raises:
        InputError: An unknown name, weights that cannot be read or belong to another network, or no rate.
    """
    check_name(name)
    weights = None if checkpoint is None else read_checkpoint(checkpoint)
    arguments: Mapping[str, Any] = {} if weights is None else weights.arguments
    rate = arguments.get("drop_path") if drop_path is None else drop_path
    if not rate:
        raise InputError(f"{checkpoint or name}: its DropPath rate is not known; say it with --drop-path")
    untagged = None if pretrained and weights is None else {"tag": ""}
    try:
        model: nn.Module = timm.create_model(
            name,
            pretrained=pretrained and weights is None,
            drop_path_rate=rate,
            num_classes=arguments.get("num_classes"),
            pretrained_cfg_overlay=untagged,
            **_options(arguments),
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


def _options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the model's own arguments of a run of timm's script."""
    options = arguments.get("model_kwargs") or {}
    return dict(ast.literal_eval(options) if isinstance(options, str) else options)


def _state_dict(weights: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.state_dict.items() if name != STEP_KEY}
