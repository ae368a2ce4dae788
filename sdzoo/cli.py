"""The ``sdzoo`` command: every part of the package brings its commands, this file puts them under one name."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import typer
from rich.console import Console

from sdzoo.errors import InputError

# command: the module and the function behind it, imported when the command runs
COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("sdzoo.training.commands", "train"),
    "evaluate": ("sdzoo.training.commands", "evaluate"),
    "report": ("sdzoo.training.commands", "report"),
    "analyse gradients": ("sdzoo.training.commands", "gradients"),
    "analyse survival": ("sdzoo.training.commands", "survival"),
    "data": ("sdzoo.training.commands", "data"),
    "export": ("sdzoo.export.commands", "export"),
    "verify": ("sdzoo.export.commands", "verify"),
    "quantize": ("sdzoo.export.commands", "quantize"),
    "classify": ("sdzoo.export.commands", "classify"),
    "serve": ("sdzoo.serving.commands", "serve"),
    "triton": ("sdzoo.export.triton_command", "triton"),
    "push": ("sdzoo.hub.commands", "push"),
    "pull": ("sdzoo.hub.commands", "pull"),
    "info": ("sdzoo.hub.commands", "info"),
}
# These hand what they do not know themselves on to timm's script.
TRAINING = ("train", "analyse gradients", "analyse survival")
PASS_THROUGH = {command: {"allow_extra_args": True, "ignore_unknown_options": True} for command in TRAINING}
GROUPS = {"analyse": "The paper's analyses: trainings side by side, as a table and a figure."}


def _load(command: str) -> Callable[..., None]:
    module, function = COMMANDS[command]
    loaded: Callable[..., None] = getattr(import_module(module), function)
    return loaded


def app() -> typer.Typer:
    """Return the command line with all its commands."""
    sdzoo = typer.Typer(
        name="sdzoo",
        help="Deep networks with stochastic depth, from training to a verified ONNX file.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    groups = {"": sdzoo} | {name: typer.Typer(help=text, no_args_is_help=True) for name, text in GROUPS.items()}
    for name in GROUPS:
        sdzoo.add_typer(groups[name], name=name)
    for command in COMMANDS:
        group, _, name = command.rpartition(" ")
        groups[group].command(name, context_settings=PASS_THROUGH.get(command))(_load(command))
    return sdzoo


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; input that cannot be used ends in one line on stderr and exit status 1."""
    with _one_line_errors():
        app()(arguments, prog_name="sdzoo")


def run_script(command: Callable[..., None]) -> None:
    """Run a script's function with the command line's arguments; errors are like those of ``main``."""
    script = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    script.command()(command)
    with _one_line_errors():
        script()


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except (InputError, OSError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[red]error:[/red] {_one_line(error)}")
        sys.exit(1)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).replace("[", r"\[")
