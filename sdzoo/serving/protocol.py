"""The Open Inference Protocol (KServe V2) over HTTP with Triton's binary tensors: bytes to arrays and back.

Requests and responses are JSON. A tensor's values stand in it or follow it as little-endian bytes; then the header
Inference-Header-Content-Length says how long the JSON is.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sdzoo
from sdzoo.serving.decoding import LENGTH, Output, Request, decode
from sdzoo.serving.signature import Limits, ProtocolError, Signature, Tensor
from sdzoo.serving.tensors import check_finite

__all__ = [
    "LENGTH",
    "Limits",
    "Output",
    "ProtocolError",
    "Request",
    "Signature",
    "Tensor",
    "decode",
    "encode",
    "error_body",
    "model_metadata",
    "server_metadata",
]

EXTENSIONS = ["binary_tensor_data"]


def encode(
    signature: Signature, version: str, request: Request, outputs: Mapping[str, NDArray[Any]]
) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers (without Content-Length) of the answer to a request.

    Args:
        signature: The model that answered.
        version: Its version.
        request: The request; its outputs are answered, in its order.
        outputs: The arrays of at least these outputs, by name.

    Raises:
        ProtocolError: An output asked for in JSON has values that are not finite, which JSON cannot express.
    """
    tensors = {tensor.name: tensor for tensor in signature.outputs}
    descriptions, parts = [], []
    for output in request.outputs:
        tensor = tensors[output.name]
        array = np.asarray(outputs[output.name], dtype=tensor.dtype)
        description: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(array.shape)}
        if output.binary:
            parts.append(array.tobytes())
            description["parameters"] = {"binary_data_size": array.nbytes}
        else:
            check_finite(f"output {tensor.name!r}", array)
            description["data"] = array.ravel().tolist()
        descriptions.append(description)
    answer: dict[str, Any] = {"model_name": signature.name, "model_version": version, "outputs": descriptions}
    if request.id is not None:
        answer["id"] = request.id
    header = _dump(answer)
    if not parts:
        return header, {"Content-Type": "application/json"}
    return b"".join([header, *parts]), {"Content-Type": "application/octet-stream", LENGTH: str(len(header))}


def server_metadata() -> bytes:
    """Return the body of the answer to ``GET v2``."""
    return _dump({"name": "sdzoo", "version": sdzoo.__version__, "extensions": EXTENSIONS})


def model_metadata(signature: Signature) -> bytes:
    """Return the body of the answer to ``GET v2/models/NAME``."""
    inputs, outputs = (
        [{"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)} for tensor in tensors]
        for tensors in (signature.inputs, signature.outputs)
    )
    facts = {"name": signature.name, "versions": list(signature.versions), "platform": signature.platform}
    return _dump({**facts, "inputs": inputs, "outputs": outputs})


def error_body(message: str) -> bytes:
    """Return the body of an answer that says what went wrong."""
    return _dump({"error": message})


def _dump(answer: object) -> bytes:
    return json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
