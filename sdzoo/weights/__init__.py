"""Weights that ship with the package: ``<model>.<tag>.safetensors`` and its results, ``<model>.<tag>.json``."""

from pathlib import Path

FOLDER = Path(__file__).parent


def shipped_weights(model: str, tag: str) -> Path | None:
    """Return the file of shipped weights, None where there is none."""
    file = FOLDER / f"{model}.{tag}.safetensors"
    return file if file.is_file() else None
