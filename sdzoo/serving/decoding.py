"""Decoding an inference request of the Open Inference Protocol: every malformed one is a ProtocolError, none a crash.

Keys and parameters that are not the protocol's are ignored, except those that ask for something else than the tensor
itself (shared memory, Triton's classification). NaN and infinities are refused, in JSON and in bytes: one of them in a
picture makes every answer of it NaN, which JSON cannot express.
"""

from dataclasses import dataclass
from typing import Any

import orjson
from numpy.typing import NDArray

from sdzoo.serving.signature import Limits, ProtocolError, Signature, Tensor, shown
from sdzoo.serving.tensors import from_bytes, from_json, read_shape

LENGTH = "Inference-Header-Content-Length"
REFUSED = ("shared_memory_region", "classification")  # parameters of a tensor that change what it means
CONTAINERS = 250_000  # lists and objects in one JSON: nested data of the largest body has fewer, a bomb has more

Object = dict[str, Any]


@dataclass(frozen=True)
class Output:
    """An output that the client asks for, as bytes after the JSON or as numbers in it."""

    name: str
    binary: bool


@dataclass(frozen=True)
class Request:
    """A decoded request. Arrays of binary tensors share the body's memory and cannot be written to."""

    id: str | None
    inputs: dict[str, NDArray[Any]]
    outputs: tuple[Output, ...]


def decode(body: bytes, header_length: str | None, signature: Signature, limits: Limits) -> Request:
    """Turn the body of an inference request into arrays.

    Args:
        body: All bytes of it.
        header_length: The header Inference-Header-Content-Length; None where the body is JSON alone.
        signature: The model asked.
        limits: How much a request may ask for.

    Raises:
        ProtocolError: The body is malformed, does not fit the signature or is over a limit.
    """
    if len(body) > limits.max_bytes:
        raise ProtocolError(f"the body has {len(body)} bytes, must be at most {limits.max_bytes}", 413)
    length = len(body) if header_length is None else _length(header_length, len(body))
    request = _parse(body[:length])
    inputs, rest = {}, memoryview(body)[length:]
    for tensor, description in _described(request, "inputs", signature.inputs):
        inputs[tensor.name], rest = _array(tensor, description, rest, limits)
    if missing := [tensor.name for tensor in signature.inputs if tensor.name not in inputs]:
        raise ProtocolError(f"input {missing[0]!r} is missing, must be among the inputs")
    if rest:
        raise ProtocolError(f"{len(rest)} bytes follow the last tensor, must be none")
    return Request(_id(request), inputs, _outputs(request, signature))


def _length(text: str, available: int) -> int:
    digits = text.isascii() and text.isdecimal() and len(text) < 20
    if not digits or not 1 <= int(text) <= available:
        raise ProtocolError(f"{LENGTH} is {shown(text)}, must be from 1 to {available}, the bytes of the body")
    return int(text)


def _parse(head: bytes) -> Object:
    if (containers := head.count(b"[") + head.count(b"{")) > CONTAINERS:
        raise ProtocolError(f"the JSON has {containers} lists and objects, must have at most {CONTAINERS}", 413)
    try:
        request = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(
            f"the first {len(head)} bytes are not JSON in UTF-8, which has no NaN and no Infinity: {error}"
        ) from error
    if type(request) is not dict:
        raise ProtocolError(f"the JSON is {shown(request)}, must be an object")
    return request


def _described(request: Object, key: str, tensors: tuple[Tensor, ...]) -> list[tuple[Tensor, Object]]:
    """Return the client's descriptions of tensors, in its order, beside the model's."""
    descriptions, known = request.get(key, []), {tensor.name: tensor for tensor in tensors}
    if type(descriptions) is not list or not all(type(each) is dict for each in descriptions):
        raise ProtocolError(f"{key} is {shown(descriptions)}, must be a list of objects")
    names = [each.get("name") for each in descriptions]
    for place, name in enumerate(names):
        if type(name) is not str or name not in known:
            raise ProtocolError(f"{key} has the name {shown(name)}, must be one of {', '.join(known)}")
        if name in names[:place]:
            raise ProtocolError(f"{key} has {name!r} twice, must have it once")
    return [(known[name], each) for name, each in zip(names, descriptions, strict=True)]


def _array(tensor: Tensor, description: Object, rest: memoryview, limits: Limits) -> tuple[NDArray[Any], memoryview]:
    """Return the values of one input, and what is left of the bytes after the JSON."""
    what = f"input {tensor.name!r}"
    if description.get("datatype") != tensor.datatype:
        raise ProtocolError(f"{what} has datatype {shown(description.get('datatype'))}, must be {tensor.datatype}")
    shape = read_shape(tensor, description.get("shape"), limits)
    parameters = _parameters(what, description)
    if ("data" in description) == ("binary_data_size" in parameters):
        raise ProtocolError(f"{what} must have either data or a binary_data_size")
    if "data" in description:
        return from_json(tensor, shape, description["data"]), rest
    size = parameters["binary_data_size"]
    if type(size) is not int or not 0 <= size <= len(rest):
        raise ProtocolError(
            f"{what} has binary_data_size {shown(size)}, must be at most the {len(rest)} bytes after the JSON"
            f" (its end is given by the header {LENGTH})"
        )
    return from_bytes(tensor, shape, rest[:size]), rest[size:]


def _outputs(request: Object, signature: Signature) -> tuple[Output, ...]:
    """Return the outputs asked for: by default all of them."""
    binary = _flag("the request", _parameters("the request", request), "binary_data_output", default=False)
    described = _described(request, "outputs", signature.outputs) or [(each, {}) for each in signature.outputs]
    outputs = []
    for tensor, description in described:
        what = f"output {tensor.name!r}"
        outputs.append(Output(tensor.name, _flag(what, _parameters(what, description), "binary_data", default=binary)))
    return tuple(outputs)


def _parameters(what: str, description: Object) -> Object:
    parameters = description.get("parameters", {})
    if type(parameters) is not dict:
        raise ProtocolError(f"{what} has parameters {shown(parameters)}, must be an object")
    for name in REFUSED:
        if name in parameters:
            raise ProtocolError(f"{what} has the parameter {name}, which this server does not offer")
    return parameters


def _flag(what: str, parameters: Object, name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if type(value) is not bool:
        raise ProtocolError(f"{what} has {name} {shown(value)}, must be true or false")
    return value


def _id(request: Object) -> str | None:
    identity = request.get("id")
    if identity is not None and type(identity) is not str:
        raise ProtocolError(f"id is {shown(identity)}, must be a string")
    return identity
