"""The values of one input: from numbers in JSON, flat or nested, or from the bytes after it."""

import math
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdzoo.serving.signature import DYNAMIC, Limits, ProtocolError, Tensor, shown

LARGEST = 2**31 - 1  # size of a dimension


def read_shape(tensor: Tensor, shape: object, limits: Limits) -> tuple[int, ...]:
    """Return the shape that a client gives for an input; nothing is allocated for it.

    Raises:
        ProtocolError: It does not fit the tensor, is empty, or has more rows than the limit (status 413).
    """
    if type(shape) is not list or not _fits(shape, tensor.shape):
        allowed = f"{list(tensor.shape)} with -1 for any size from 1 to {LARGEST}"
        raise ProtocolError(f"input {tensor.name!r} has shape {shown(shape)}, must be {allowed}")
    if tensor.shape[:1] == (DYNAMIC,) and shape[0] > limits.max_batch:
        allowed = f"at most {limits.max_batch}"
        raise ProtocolError(f"input {tensor.name!r} has shape {shown(shape)}, its batch must be {allowed}", 413)
    return tuple(shape)


def _fits(shape: list[Any], allowed: tuple[int, ...]) -> bool:
    return len(shape) == len(allowed) and all(
        type(size) is int and (1 <= size <= LARGEST if wanted == DYNAMIC else size == wanted)
        for size, wanted in zip(shape, allowed, strict=True)
    )


def from_bytes(tensor: Tensor, shape: tuple[int, ...], data: memoryview) -> NDArray[Any]:
    """Return an array over a client's bytes, without a copy where they are aligned.

    Raises:
        ProtocolError: They are too few or too many for the shape, or some value is not finite.
    """
    needed = math.prod(shape) * tensor.dtype.itemsize
    if len(data) != needed:
        raise ProtocolError(
            f"input {tensor.name!r} has {len(data)} bytes of data, must be {needed} for {tensor.datatype} {list(shape)}"
        )
    array = np.frombuffer(data, tensor.dtype).reshape(shape)
    check_finite(f"input {tensor.name!r}", array)
    return array if array.flags.aligned else array.copy()


def from_json(tensor: Tensor, shape: tuple[int, ...], data: object) -> NDArray[Any]:
    """Return an array of a client's numbers, a flat list or one nested as the shape says.

    Raises:
        ProtocolError: They are too few or too many, nested differently, no numbers, or out of the datatype's range.
    """
    what = f"input {tensor.name!r}"
    if type(data) is not list:
        raise ProtocolError(f"{what} has data {shown(data)}, must be a list")
    values = _flat(what, data, shape)
    numbers = {int} if tensor.dtype.kind in "iu" else {int, float}
    if not numbers.issuperset(map(type, values)):
        wrong = next(value for value in values if type(value) not in numbers)
        raise ProtocolError(f"{what} has the value {shown(wrong)}, must be {_range(tensor)}")
    try:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            array = np.array(values, tensor.dtype).reshape(shape)
    except OverflowError as error:
        raise ProtocolError(f"{what} has a value out of range, must be {_range(tensor)}") from error
    check_finite(what, array)
    return array


def _flat(what: str, data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Return the values in order, once the list has the form of the shape, or is flat with as many values."""
    count = math.prod(shape)
    if not data or type(data[0]) is not list:
        if len(data) != count:
            raise ProtocolError(f"{what} has {len(data)} values, must be {count} for shape {list(shape)}")
        return data
    lists: list[Any] = [data]
    for size in shape:
        if not all(type(each) is list and len(each) == size for each in lists):
            raise ProtocolError(f"{what} has data nested in another way than its shape {list(shape)}, must be as it")
        lists = list(chain.from_iterable(lists))
    return lists


def check_finite(what: str, array: NDArray[Any]) -> None:
    """Raise ProtocolError where a value is NaN or infinite."""
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        wrong = array[~finite][0]
        raise ProtocolError(f"{what} has the value {wrong}, must be finite and in the range of {array.dtype.name}")


def _range(tensor: Tensor) -> str:
    if tensor.dtype.kind in "iu":
        limits = np.iinfo(tensor.dtype)
        return f"an integer from {limits.min} to {limits.max}"
    return f"a number in the range of {tensor.datatype}"
