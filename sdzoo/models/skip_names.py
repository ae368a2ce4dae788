"""``skip_<name>`` for every network of timm: created by timm, then converted by ``skip_drop_path``.

Importing the module registers the names, so that timm's own script trains them:

    python train.py --device-modules sdzoo.models.skip_names --model skip_vit_small_patch16_224 --drop-path 0.4

Weights, tags and arguments are those of timm's network; the options of ``skip_drop_path`` are arguments too.
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import timm
from timm.models import is_model, list_models, model_entrypoint, register_model
from torch import nn

from sdzoo.errors import InputError
from sdzoo.models.skip import skip_drop_path

PREFIX = "skip_"


def timm_names() -> list[str]:
    """Return the names of the networks that timm itself defines."""
    return [name for name in list_models() if model_entrypoint(name).__module__.startswith(f"{timm.__name__}.")]


def check_name(name: str) -> None:
    """Raise InputError, with near names, where ``skip_...`` has no network of timm's behind it."""
    name, _, _ = name.partition(".")
    if name.startswith(PREFIX) and not is_model(name):
        known = timm_names()
        near = get_close_matches(name.removeprefix(PREFIX), known, n=4, cutoff=0.6)
        names = ", ".join(PREFIX + other for other in near) or "none; timm.list_models() shows timm's names"
        raise InputError(f"unknown model {name!r}: timm has no {name.removeprefix(PREFIX)!r}; near names: {names}")


def _register(name: str) -> None:
    def create(
        pretrained: bool = False,
        mode: str = "batch",
        rule: str = "inverted",
        schedule: str | None = None,
        sampling: str = "bernoulli",
        gate_seed: int = 0,
        strict: bool = True,
        **kwargs: Any,
    ) -> nn.Module:
        return skip_drop_path(
            _create(name, pretrained, kwargs),
            mode=mode,
            rule=rule,
            schedule=schedule,
            sampling=sampling,
            gate_seed=gate_seed,
            strict=strict,
        )

    create.__name__ = create.__qualname__ = PREFIX + name
    create.__doc__ = f"timm's {name} whose dropped paths are skipped (paper, section 3)."
    register_model(create)


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    entrypoint: Callable[..., nn.Module] = model_entrypoint(name)
    try:
        return entrypoint(pretrained=pretrained, **kwargs)
    except TypeError as error:
        if "drop_path_rate" not in str(error):
            raise
        raise InputError(f"timm's {name} has no DropPath: there is nothing that {PREFIX}{name} could skip") from error


for _name in timm_names():
    _register(_name)
