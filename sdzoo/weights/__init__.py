"""Weights that ship with the package: ``<model>.<tag>.safetensors`` and its results, ``<model>.<tag>.json``.

With ``SDZOO_HUB_NAMESPACE`` set before the import, every tag also knows its repository on the Hub.
"""

import os
from pathlib import Path

FOLDER = Path(__file__).parent
NAMESPACE = os.environ.get("SDZOO_HUB_NAMESPACE", "")


def shipped_weights(model: str, tag: str) -> Path | None:
    """Return the file of shipped weights, None where there is none."""
    file = FOLDER / f"{model}.{tag}.safetensors"
    return file if file.is_file() else None


def weight_sources(model: str, tag: str) -> dict[str, str]:
    """Return where timm finds the weights, as keys of its configuration; empty where there are none."""
    file = shipped_weights(model, tag)
    if file is None:
        return {}
    # With a file name timm asks the Hub for no pickle; the shipped file comes before the Hub.
    hub = {"hf_hub_id": f"{NAMESPACE}/{model}.{tag}", "hf_hub_filename": "model.safetensors"} if NAMESPACE else {}
    return {"file": str(file), **hub}
