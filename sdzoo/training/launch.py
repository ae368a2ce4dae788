"""Run timm's own, unmodified train script with a recipe of ours."""

import argparse
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import urllib.error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path

import torch
import yaml

from sdzoo.errors import InputError
from sdzoo.models.skip_names import check_name
from sdzoo.training.data import PROTOCOLS, open_split
from sdzoo.training.runs import LOG

MODULES = ("sdzoo", "sdzoo.models.skip_names")  # what the script imports before it creates the network
RECIPES = Path(__file__).parent / "recipes"
HEADER = ("Goal", "Paper", "Command", "Expected")

SCRIPT_VARIABLE = "SDZOO_TIMM_TRAIN"
SCRIPT_COMMIT = "aa4b5850c1543fa488abf260f18390eda46cf85d"
SCRIPT_SHA256 = "f0bb70b9e1c8c576eb1f7beba9cb46953d01ec1308d68c59ec055a6266f76388"
SCRIPT_URL = f"https://raw.githubusercontent.com/huggingface/pytorch-image-models/{SCRIPT_COMMIT}/train.py"

# torchrun gives restarted ranks the store of the dead ones, with their addresses still in it; this makes a new one.
FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@dataclass(frozen=True)
class Recipe:
    """A training recipe: values for timm's script, and a header that says what they are for."""

    path: Path

    @property
    def name(self) -> str:
        """File name without its ending."""
        return self.path.stem

    def values(self) -> dict[str, object]:
        """Return the arguments for timm's script, by their names in its parser."""
        try:
            loaded = yaml.safe_load(self.path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise InputError(f"{self.path}: not YAML ({error})") from error
        if not isinstance(loaded, dict):
            raise InputError(f"{self.path}: not a recipe, it must be a table of timm's arguments")
        return loaded

    def header(self) -> dict[str, str]:
        """Return the lines ``# Goal: ...``, ``# Paper: ...``, ``# Command: ...``, ``# Expected: ...``."""
        lines = self.path.read_text(encoding="utf-8").splitlines()
        found = (re.match(rf"# ({'|'.join(HEADER)}): +(.+)", line) for line in lines)
        return {match[1]: match[2] for match in found if match}


@dataclass(frozen=True)
class Machines:
    """Where a training runs.

    Attributes:
        processes: Processes on this machine, one a GPU.
        nodes: Machines; each of them gets the same command.
        endpoint: ``host:port`` of one of the machines, where several meet.
        restarts: How often torchrun starts all processes again after one of them died.
    """

    processes: int = 1
    nodes: int = 1
    endpoint: str = ""
    restarts: int = 0

    def launcher(self) -> list[str]:
        """Return the beginning of the command line: torchrun, where it is needed."""
        if self.processes == self.nodes == 1 and not self.restarts:
            return []
        together = ["--nnodes", str(self.nodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", self.endpoint]
        return [
            *("-m", "torch.distributed.run"),
            *(together if self.nodes > 1 else ["--standalone"]),
            *("--nproc-per-node", str(self.processes)),
            *(["--max-restarts", str(self.restarts)] if self.restarts else []),
        ]


def recipes() -> list[Recipe]:
    """Return the recipes that ship with the package."""
    return [Recipe(path) for path in sorted(RECIPES.glob("*.yaml"))]


def find_recipe(name: str) -> Recipe:
    """Return a shipped recipe by name, or the YAML file at a path."""
    if Path(name).suffix in (".yaml", ".yml"):
        if not Path(name).is_file():
            raise InputError(f"{name}: no such recipe")
        return Recipe(Path(name))
    shipped = {recipe.name: recipe for recipe in recipes()}
    if name not in shipped:
        near = get_close_matches(name, shipped, n=4, cutoff=0.4) or shipped
        raise InputError(f"unknown recipe {name!r}; near names: {', '.join(near)}; or give a .yaml file")
    return shipped[name]


def find_script() -> Path:
    """Return timm's train script: from $SDZOO_TIMM_TRAIN, else the cache, else downloaded into the cache.

    The script is not in timm's wheel. The download is pinned to one commit and checked by its sha256.
    """
    if given := os.environ.get(SCRIPT_VARIABLE):
        if not Path(given).is_file():
            raise InputError(f"{SCRIPT_VARIABLE} is {given!r}, which is not a file")
        return Path(given).resolve()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    script = cache / "sdzoo" / f"timm-train-{SCRIPT_COMMIT[:12]}.py"
    if not (script.is_file() and hashlib.sha256(script.read_bytes()).hexdigest() == SCRIPT_SHA256):
        _download(script)
    return script


def _download(script: Path) -> None:
    script.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(SCRIPT_URL, str(script), hash_prefix=SCRIPT_SHA256, progress=False)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise InputError(
            f"cannot fetch timm's train script ({error}); get {SCRIPT_URL} and set {SCRIPT_VARIABLE} to its path"
        ) from error


def script_parser(script: Path, recipe: Recipe | None = None) -> argparse.ArgumentParser:
    """Return the script's own parser, with a recipe's values as its defaults: what the script makes of them."""
    spec = importlib.util.spec_from_file_location("timm_train", script)
    if spec is None or spec.loader is None:
        raise InputError(f"{script}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a file that is no train script may raise anything
        raise InputError(f"{script}: not timm's train script ({error})") from error
    parser: argparse.ArgumentParser = module.parser
    parser.set_defaults(**(recipe.values() if recipe else {}))
    return parser


def script_arguments(script: Path) -> set[str]:
    """Return the names that a recipe may set: those of the arguments in the script's parser."""
    return {action.dest for action in script_parser(script)._actions}


def check_recipe(recipe: Recipe, allowed: set[str]) -> None:
    """Raise InputError where a recipe sets something that timm's script does not know: it would say nothing."""
    for key in recipe.values():
        if key not in allowed:
            near = get_close_matches(key, allowed, n=1)
            raise InputError(f"{recipe.path}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def check_arguments(arguments: Sequence[str], machines: Machines) -> None:
    """Raise InputError for what cannot train, before anything starts."""
    if value_of("--torchscript", arguments) is not None:
        raise InputError("stochastic depth cannot train under --torchscript: its gates are Python; use --torchcompile")
    resumed = value_of("--resume", arguments)
    if resumed and not Path(resumed).is_file():
        raise InputError(f"--resume {resumed}: no such checkpoint")
    if machines.nodes > 1 and not machines.endpoint:
        raise InputError("several machines must meet somewhere: give --rdzv-endpoint HOST:PORT of one of them")
    if machines.nodes > 1 and not value_of("--experiment", arguments):
        raise InputError("name the run with --experiment: every machine must write to the same folder")


def check_model(recipe: Recipe, arguments: Sequence[str]) -> None:
    """Raise InputError, with near names, for a name ``skip_...`` that timm has no network for."""
    check_name(value_of("--model", arguments) or str(recipe.values().get("model", "")))


def check_data(recipe: Recipe, arguments: Sequence[str]) -> None:
    """Raise InputError where the files of a data set of ours are not in place, before the script starts."""
    name = value_of("--dataset", arguments) or str(recipe.values().get("dataset", ""))
    protocol = name.removeprefix("torch/")
    if protocol in PROTOCOLS:
        root = value_of("--data-dir", arguments) or recipe.values().get("data_dir") or "data"
        open_split(protocol, "train", Path(str(root)), download="--dataset-download" in arguments)


def command(recipe: Recipe, arguments: Sequence[str], script: Path, machines: Machines) -> list[str]:
    """Return the command line that trains a recipe.

    Args:
        recipe: What to train.
        arguments: Arguments for timm's script; they win over the recipe's values.
        script: timm's train script.
        machines: Where; with restarts every start goes on from the last checkpoint.
    """
    return [
        sys.executable,
        *machines.launcher(),
        *(["-m", "sdzoo.training.resume"] if machines.restarts else []),
        str(script),
        *("--device-modules", *MODULES),
        *("--config", str(recipe.path)),
        *_defaults(recipe, arguments),
        *arguments,
    ]


def _defaults(recipe: Recipe, arguments: Sequence[str]) -> list[str]:
    """Return what the script should be told where the user did not: the run's folder and, without a GPU, the CPU."""
    resumed = value_of("--resume", arguments)
    fresh = Path("runs") / f"{recipe.name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(resumed).resolve().parent if resumed else fresh
    defaults = {"--output": [str(folder.parent)], "--experiment": [folder.name]}
    if not torch.cuda.is_available():
        defaults |= {"--device": ["cpu"], "--no-prefetcher": [], "--workers": ["0"]}
    aliases = {"--workers": ("--workers", "-j")}
    return [
        word
        for option, values in defaults.items()
        if not any(value_of(alias, arguments) is not None for alias in aliases.get(option, (option,)))
        for word in (option, *values)
    ]


def value_of(option: str, arguments: Sequence[str]) -> str | None:
    """Return the last value given to an option as ``--option value`` or ``--option=value``; "" for a switch."""
    value = None
    for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
        if word == option:
            value = following
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
    return value


def folder_of(words: Sequence[str]) -> Path:
    """Return the training folder that a command names."""
    return Path(value_of("--output", words) or ".") / (value_of("--experiment", words) or "")


def run(words: Sequence[str], variables: Mapping[str, str] | None = None) -> Path:
    """Run a training command to its end and return the folder it wrote; what it prints also goes to ``train.log``.

    Args:
        words: The command.
        variables: More variables of its environment.

    Raises:
        InputError: The script failed; it has said why.
    """
    folder = folder_of(words)
    folder.mkdir(parents=True, exist_ok=True)
    # The script is a process of its own, which must find this package in a clone that is not installed, too.
    package = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"} | FRESH_STORE | dict(variables or {})
    with (
        (folder / LOG).open("a", buffering=1, encoding="utf-8") as log,
        subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
        ) as script,
    ):
        for line in script.stdout or ():
            print(line, end="", flush=True)
            log.write(line)
    if script.returncode:
        raise InputError(f"training ended with exit status {script.returncode}")
    return folder
