"""The catalogue: every network of the zoo, its weights, and what it costs, counted from the networks themselves."""

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from sdzoo.hub.results import Results
from sdzoo.models.sd_resnet import SdResNet
from sdzoo.weights import shipped_weights

BEGIN, END = "<!-- catalogue -->", "<!-- /catalogue -->"


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue; the names of the fields are the keys of its JSON.

    Attributes:
        name: What ``timm.create_model`` takes.
        weights: ``"shipped"``, the repository on the Hub, or empty where there are none yet.
        input_size: Channels, height and width the weights are for.
        parameters: Trained numbers.
        macs: Multiplications with an addition of an evaluation of one image.
        blocks: Residual blocks L.
        expected_blocks: How many of them are open on average in a training step: the sum of p_l.
        test_error: Top-1 error in percent on the test split, or on the part of it that was at hand.
        test_images: How many images that is of.
        recipe: Recipe of the package for these weights or, without weights, for this network.
    """

    name: str
    weights: str
    input_size: tuple[int, ...]
    parameters: int
    macs: int
    blocks: int
    expected_blocks: float
    test_error: float | None
    test_images: int | None
    recipe: str


COLUMNS: dict[str, Callable[[Entry], str]] = {
    "network": lambda entry: entry.name,
    "weights": lambda entry: entry.weights or "-",
    "input": lambda entry: "x".join(map(str, entry.input_size)),
    "parameters": lambda entry: _short(entry.parameters),
    "MACs": lambda entry: _short(entry.macs),
    "blocks L": lambda entry: str(entry.blocks),
    "open in training": lambda entry: f"{entry.expected_blocks:.1f}",
    "test error (images)": lambda entry: (
        f"{entry.test_error:.2f} % ({entry.test_images:,})" if entry.test_images else "-"
    ),
    "recipe": lambda entry: entry.recipe or "-",
}


def catalogue(name: str = "") -> list[Entry]:
    """Return the entries of the zoo; of one network with all its tags, or of one tag, where a name is given.

    Raises:
        InputError: There is no such network.
    """
    from sdzoo.checkpoints import check_name

    if name:
        check_name(name)
    names = sorted(timm.list_models("sd_resnet*", include_tags=True), key=lambda name: (_depth(name), name))
    return [_entry(known) for known in names if name in ("", known, known.partition(".")[0])]


def cost(model: nn.Module, input_size: tuple[int, ...]) -> tuple[int, int]:
    """Return parameters and MACs of a network for one image; nothing is computed, the shapes alone are run."""
    model = copy.deepcopy(model).to("meta").eval()
    macs = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        weight: Tensor = module.weight  # type: ignore[assignment]
        macs += output.numel() * weight[0].numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, *input_size, device="meta"))
    return sum(parameter.numel() for parameter in model.parameters()), macs


def rows(entries: Sequence[Entry]) -> list[list[str]]:
    """Return what people read of every entry, in the order of ``COLUMNS``."""
    return [[text(entry) for text in COLUMNS.values()] for entry in entries]


def as_json(entries: Sequence[Entry]) -> str:
    """Return the entries as a JSON list of objects."""
    return json.dumps([asdict(entry) for entry in entries], indent=2)


def as_markdown(entries: Sequence[Entry]) -> str:
    """Return the table of the README, between the markers it stands between there."""
    lines = [list(COLUMNS), ["---"] * len(COLUMNS), *rows(entries)]
    return "\n".join([BEGIN, *(f"| {' | '.join(line)} |" for line in lines), END])


def _entry(name: str) -> Entry:
    architecture, _, tag = name.partition(".")
    with torch.device("meta"):
        model = timm.create_model(name)
    cfg = model.pretrained_cfg
    file = shipped_weights(architecture, tag) if tag else None
    results = _results(file)
    survival = _survival(model, file)
    parameters, macs = cost(model, cfg["input_size"])
    return Entry(
        name=name,
        weights="shipped" if file else cfg.get("hf_hub_id") or "",
        input_size=tuple(cfg["input_size"]),
        parameters=parameters,
        macs=macs,
        blocks=len(survival),
        expected_blocks=round(sum(survival), 6),
        test_error=round(results.score.error, 2) if results else None,
        test_images=results.score.n if results else None,
        recipe=results.recipe if results else _recipe(architecture),
    )


def _results(file: Path | None) -> Results | None:
    described = file and file.with_suffix(".json")
    return Results.read(described) if described and described.is_file() else None


def _survival(model: SdResNet, file: Path | None) -> tuple[float, ...]:
    """Return the schedule of the weights, without weights the network's own."""
    from sdzoo.checkpoints import read_checkpoint

    return (read_checkpoint(file).schedule() if file else None) or model.survival


def _recipe(architecture: str) -> str:
    from sdzoo.training.launch import recipes

    return ", ".join(recipe.name for recipe in recipes() if recipe.values().get("model") == architecture)


def _depth(name: str) -> int:
    return int(name.partition(".")[0].removeprefix("sd_resnet"))


def _short(number: int) -> str:
    """Return a number with three digits and its unit: 272 k, 41.0 M, 1.23 G."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return str(number)
