"""What a model takes and gives, in the words of the Open Inference Protocol (KServe V2)."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sdzoo.errors import InputError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, NodeArg

PLATFORM = "onnxruntime_onnx"  # as Triton names it
DYNAMIC = -1  # a size that the client chooses

# onnxruntime's name of a type: the protocol's
DATATYPES = {
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}
# the protocol's name: NumPy's, little-endian as the binary extension says
DTYPES = {name: np.dtype(name.lower().replace("fp", "float")).newbyteorder("<") for name in sorted(DATATYPES.values())}

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


class ProtocolError(InputError):
    """A request that cannot be answered; the message is one line that names the value and what is allowed.

    Attributes:
        status: The status of the HTTP response: 400, 404 for what does not exist, 413 for what is too large.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def shown(value: object) -> str:
    """Return a value from a client for an error message: on one line, and short whatever its size."""
    return _short.repr(value)


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model; a size of -1 in its shape is the client's to choose."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> "np.dtype[Any]":
        """The type of its values in NumPy."""
        return DTYPES[self.datatype]


@dataclass(frozen=True)
class Signature:
    """A model as its clients see it: name, versions on offer, inputs and outputs."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @classmethod
    def of(cls, session: "InferenceSession", name: str, versions: Sequence[str] = ("1",)) -> "Signature":
        """Return the signature of the graph in a session of onnxruntime.

        Raises:
            InputError: An input or output is not of numbers.
        """
        inputs = tuple(_tensor(value) for value in session.get_inputs())
        return cls(name, tuple(versions), PLATFORM, inputs, tuple(_tensor(value) for value in session.get_outputs()))


def _tensor(value: "NodeArg") -> Tensor:
    if value.type not in DATATYPES:
        raise InputError(f"{value.name} is {value.type}, must be one of {', '.join(DATATYPES)}")
    sizes = tuple(size if isinstance(size, int) else DYNAMIC for size in value.shape)
    return Tensor(value.name, DATATYPES[value.type], sizes)


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for.

    Attributes:
        max_batch: Rows along a dynamic first dimension, at least 1.
        max_bytes: Bytes of the body, JSON and binary tensors together.
    """

    max_batch: int = 256
    max_bytes: int = 16 * 2**20
