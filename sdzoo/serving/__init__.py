"""Serving ONNX files over HTTP: the Open Inference Protocol, pictures, and a page to try it on."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Give ``app``, for ``serve run sdzoo.serving:app``; only who asks for it needs Ray."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sdzoo.serving.replica import app

    return app
