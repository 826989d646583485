"""Named tensors of the Open Inference Protocol v2: from the lists or bytes of a request to arrays, and back.

Every mistake is a `BadRequest` that names the field: "inputs[0].data: has 3 elements, expected 4 (shape [2, 2])".
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.errors import DataError

Array = npt.NDArray[Any]
INTEGERS = {"INT64": np.int64, "INT32": np.int32}
"""Datatypes of token ids and masks."""
NUMBERS = {**INTEGERS, "FP32": np.float32}
TEXT = "BYTES"


class BadRequest(DataError):
    """A request that cannot be answered as it is. field: where in it, as "inputs[0].shape"."""

    def __init__(self, field: str, said: str) -> None:
        super().__init__(f"{field}: {said}")
        self.field = field


@dataclasses.dataclass(frozen=True)
class Tensor:
    """values: int64 for ids, float32 for numbers, objects of type str for texts; their shape is the tensor's."""

    name: str
    datatype: str
    values: Array

    @property
    def shape(self) -> list[int]:
        """Sizes of the axes."""
        return list(self.values.shape)


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """What a model takes or gives: -1 in `shape` stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """As metadata states it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


def read_tensor(name: str, datatype: str, shape: Sequence[int], data: Any, field: str) -> Tensor:
    """A tensor of a request.

    data    the elements in row-major order, flat or nested, or their bytes (little-endian; texts with their length before them)
    field   where it stands in the request, for messages

    Raises: BadRequest naming the datatype, the shape or the data.
    """
    if datatype not in (*INTEGERS, TEXT):
        raise BadRequest(
            f"{field}.datatype", f"is {datatype!r:.40}, expected BYTES for texts, or INT64 or INT32 for ids"
        )
    if len(shape) not in (1, 2) or min(shape) < 1:
        raise BadRequest(f"{field}.shape", f"is {list(shape)!s:.60}, expected one or two axes, each of at least 1")
    count = math.prod(shape)
    if isinstance(data, bytes | bytearray | memoryview):
        values = _texts_of(bytes(data), field) if datatype == TEXT else _integers_of(bytes(data), datatype, field)
    else:
        values = _checked(_flat(data, count, field), datatype, field)
    if len(values) != count:
        raise BadRequest(f"{field}.data", f"has {len(values)} elements, expected {count} (shape {list(shape)})")
    return Tensor(name, datatype, values.reshape(shape))


def elements(tensor: Tensor) -> list[Any]:
    """In row-major order, as JSON has them."""
    found: list[Any] = tensor.values.ravel().tolist()
    return found


def raw(tensor: Tensor) -> bytes:
    """The same as bytes."""
    if tensor.datatype != TEXT:
        return tensor.values.astype(np.dtype(NUMBERS[tensor.datatype]).newbyteorder("<")).tobytes()
    texts = [text.encode() for text in elements(tensor)]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _flat(data: Any, count: int, field: str) -> list[Any]:
    """Elements of lists in lists, without recursion; one more than `count` at most."""
    if not isinstance(data, list | tuple):
        raise BadRequest(f"{field}.data", f"is {_shown(data)}, expected a list")
    found: list[Any] = []
    stack = [iter(data)]
    while stack and len(found) <= count:
        one = next(stack[-1], stack)
        if one is stack:
            stack.pop()
        elif isinstance(one, list | tuple):
            stack.append(iter(one))
        else:
            found.append(one)
    return found


def _checked(flat: list[Any], datatype: str, field: str) -> Array:
    if datatype == TEXT:
        flat = [_decoded(one, field, i) if isinstance(one, bytes) else one for i, one in enumerate(flat)]
    kind, expected = (str, "a string") if datatype == TEXT else (int, "an integer")
    for i, one in enumerate(flat):
        if type(one) is not kind:
            raise BadRequest(f"{field}.data[{i}]", f"is {_shown(one)}, expected {expected} ({datatype})")
    if datatype == TEXT:
        return np.array(flat, dtype=object)
    try:
        return np.array(flat, dtype=INTEGERS[datatype]).astype(np.int64)
    except OverflowError:
        largest = max(flat, key=abs)
        raise BadRequest(f"{field}.data", f"holds {largest!s:.30}, which does not fit into {datatype}") from None


def _integers_of(data: bytes, datatype: str, field: str) -> Array:
    kind = np.dtype(INTEGERS[datatype]).newbyteorder("<")
    if len(data) % kind.itemsize:
        raise BadRequest(f"{field}.data", f"has {len(data)} bytes, expected a multiple of {kind.itemsize} ({datatype})")
    return np.frombuffer(data, dtype=kind).astype(np.int64)


def _texts_of(data: bytes, field: str) -> Array:
    """Texts, each behind its length in four bytes."""
    texts, at = list[str](), 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at) if at + 4 <= len(data) else (len(data),)
        if at + 4 + length > len(data):
            raise BadRequest(
                f"{field}.data", f"ends within element {len(texts)}; each is four bytes of length, then the text"
            )
        texts.append(_decoded(data[at + 4 : at + 4 + length], field, len(texts)))
        at += 4 + length
    return np.array(texts, dtype=object)


def _decoded(text: bytes, field: str, i: int) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise BadRequest(f"{field}.data[{i}]", f"is not UTF-8: {error.reason} at byte {error.start}") from None


def _shown(value: Any) -> str:
    """A value for a message, shortened."""
    return "null" if value is None else f"{value!r:.40}"
