"""A path to a checked model: what is not one is refused here, before anything looks at its weights.

Nothing but regular files is opened, nothing outside the model's folder is read, and every tensor holds as many bytes as its
shape says. What the graph means is not looked at.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from axformer_passes.errors import ModelError
from axformer_passes.io.file_signatures import file_kind

PROTOBUF_LIMIT = 2**31 - 1
"""Bytes at which protobuf ends."""

_SHORTEST_MODEL = 16
_LARGEST_EMPTY = 2**20
"""Product of the other sizes of a tensor without elements: no bytes bound them, and memory is kept for each of them."""
_OLDEST_IR = 3  # the first with operator sets
_PACKED = {4: 2, 2: 4}  # values in one entry of int32_data, by bits of a value


def read_regular(path: Path, limit: int = PROTOBUF_LIMIT) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises: ModelError for folders, pipes, devices, what may not be read, and longer files. A link is followed.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ModelError(f"{path}: {_sort(found.st_mode)}, expected a file")
        if found.st_size > limit:
            hint = "; weights of a larger model lie in external data (onnx.save_model(.., save_as_external_data=True))"
            raise ModelError(
                f"{path}: {found.st_size} bytes, expected at most {limit}{hint if limit == PROTOBUF_LIMIT else ''}"
            )
        with path.open("rb") as stream:
            return stream.read(limit)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise ModelError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _sort(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for test, name in kinds.items() if test(mode)), "a device")


def read_model(path: Path) -> ir.Model:
    """Parse the file at `path`; its external data is mapped when it is first used.

    Raises: ModelError for what is not a complete ONNX model, with what it is instead where that can be told.
    """
    content = read_regular(path)
    if len(content) < _SHORTEST_MODEL:
        raise ModelError(f"{path}: {len(content)} bytes is too short for an ONNX model")
    kind = file_kind(content[:64])
    try:
        proto = onnx.ModelProto.FromString(content)
        del content
        _check_texts(proto)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys of external data that onnx does not know, in the file's own words
            model: ir.Model = ir.from_proto(proto)
    except Exception as error:  # protobuf, onnx-ir and the file system each raise their own
        if kind is not None:
            raise _other_kind(path, kind) from None
        raise ModelError(f"{path}: not an ONNX model, or truncated ({first_line(error)})") from None
    if len(model.graph) == 0 or not model.graph.outputs:
        if kind is not None:
            raise _other_kind(path, kind)
        raise ModelError(f"{path}: not an ONNX model: it has no nodes or no outputs")
    _check_proto(proto, path)
    check_tensors(model, path)
    return model


def _check_texts(proto: onnx.ModelProto) -> None:
    """Protobuf hands out text that is not UTF-8 as bytes, which nobody behind it expects. Raises: ValueError."""
    left: list[Any] = [proto]
    while left:
        for field, value in left.pop().ListFields():
            if field.type == field.TYPE_MESSAGE:
                left.extend((value,) if hasattr(value, "ListFields") else value)
            elif field.type == field.TYPE_STRING and bytes in map(
                type, (value,) if type(value) in (str, bytes) else value
            ):
                raise ValueError(f"{field.containing_type.name}.{field.name} is not UTF-8")


def _check_proto(proto: onnx.ModelProto, path: Path) -> None:
    """What onnx-ir would drop or pass over in silence."""
    if proto.ir_version < _OLDEST_IR:
        raise ModelError(f"{path}: IR version {proto.ir_version}, expected {_OLDEST_IR} or later; the file is damaged")
    if len(proto.graph.sparse_initializer):
        raise ModelError(f"{path}: holds sparse initializers, expected dense ones; write them as ordinary tensors")
    counts = Counter(tensor.name for tensor in proto.graph.initializer)
    name, count = next(iter(counts.most_common(1)), ("", 0))
    if count > 1:
        raise ModelError(f"{path}: {count} initializers are called {name[:80]!r}, expected one; the file is damaged")


def _other_kind(path: Path, kind: tuple[str, str]) -> ModelError:
    return ModelError(f"{path}: not an ONNX model but {kind[0]}; {kind[1]}")


def check_tensors(model: ir.Model, path: Path) -> None:
    """Every tensor has the bytes that its shape claims; external data is bound to the folder of `path` and lies in it."""
    folder = os.path.abspath(path.parent)
    for tensor in tensors(model):
        where = f"{path}: tensor {str(tensor.name)[:80]!r}"
        dims = [int(n) for n in tensor.shape]
        if any(n < 0 for n in dims):
            raise ModelError(f"{where} has the shape {dims}: a negative size; the file is damaged")
        if 0 in dims and math.prod(n for n in dims if n) > _LARGEST_EMPTY:
            raise ModelError(f"{where} has the shape {dims}, and nothing in it; the file is damaged")
        _check_type(tensor, where)
        if isinstance(tensor, ir.ExternalTensor):
            tensor.base_dir = folder
            _check_external(tensor, path)
        elif isinstance(tensor, ir.StringTensor):
            _check_count(len(tensor.string_data()), math.prod(dims), "strings", dims, where)
        elif isinstance(tensor, ir.TensorProtocol) and isinstance(getattr(tensor, "raw", None), onnx.TensorProto):
            _check_inline(tensor.raw, tensor.dtype, math.prod(dims), where)


def tensors(model: ir.Model) -> Iterator[Any]:
    """Every tensor of a model once: initializers and attributes, in subgraphs and functions too."""
    containers: list[Any] = [model.graph, *model.functions.values()]
    graphs = [model.graph, *itertools.chain.from_iterable(c.subgraphs() for c in containers)]
    for graph in graphs:
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for node in itertools.chain.from_iterable(c.all_nodes() for c in containers):
        for attribute in node.attributes.values():
            if attribute.is_ref() or attribute.value is None:
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                yield attribute.value
            elif attribute.type == ir.AttributeType.TENSORS:
                yield from attribute.value


def _check_type(tensor: Any, where: str) -> None:
    try:
        kind = tensor.dtype
    except ValueError as error:  # "38 is not a valid DataType"
        raise ModelError(
            f"{where} has an element type that is not known here ({first_line(error)}); the file is damaged, or too new"
        ) from None
    if kind == ir.DataType.UNDEFINED:
        raise ModelError(f"{where} has no element type; the file is damaged")


def _check_inline(proto: onnx.TensorProto, dtype: ir.DataType, size: int, where: str) -> None:
    if proto.HasField("raw_data"):
        found, expected = len(proto.raw_data), -(-size * dtype.bitwidth // 8)
        what = "bytes"
    else:
        fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
        found = sum(len(getattr(proto, field)) for field in fields)
        pairs = dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)
        expected = 2 * size if pairs else -(-size // _PACKED.get(_bits(dtype), 1))
        what = "values"
    _check_count(found, expected, what, list(proto.dims), where)


def _check_count(found: int, expected: int, what: str, dims: list[int], where: str) -> None:
    if found != expected:
        raise ModelError(f"{where} has {found} {what}, but its shape {dims} needs {expected}; the file is damaged")


def _bits(dtype: ir.DataType) -> int:
    return 0 if dtype == ir.DataType.STRING else int(dtype.bitwidth)


def _check_external(tensor: ir.ExternalTensor, path: Path) -> None:
    """External data must be a plain file inside the model's folder and long enough."""
    where, location = f"{path}: tensor {str(tensor.name)[:80]!r}", f"external data {os.fspath(tensor.location)[:80]!r}"
    folder = path.parent.resolve()
    try:
        target = Path(tensor.path).resolve()
        inside = target.is_relative_to(folder)
        regular = inside and target.is_file()
        length = target.stat().st_size if regular else 0
        links = target.stat().st_nlink if regular else 1
    except (OSError, RuntimeError, ValueError) as error:  # loops of links, names too long, null bytes
        raise ModelError(f"{where}: {location} cannot be read: {first_line(error)}") from None
    if os.path.isabs(tensor.location) or not inside:
        raise ModelError(
            f"{where} points outside the model's folder, at {location}; put a copy beside the model "
            "(a cache of links: copy the folder with `cp -rL`)"
        )
    if not regular:
        raise ModelError(f"{path}: {location} is missing; it must lie beside the model")
    if links > 1:
        raise ModelError(f"{where}: {location} is a hard link; put a copy beside the model")
    offset, needed = tensor.offset or 0, -(-math.prod(map(int, tensor.shape)) * _bits(tensor.dtype) // 8)  # type: ignore[arg-type]
    if offset < 0 or tensor.dtype == ir.DataType.STRING:
        raise ModelError(f"{where}: external data at offset {offset} of type {tensor.dtype}; the file is damaged")
    if tensor.length not in (None, 0, needed):
        raise ModelError(
            f"{where}: {tensor.length} bytes of external data, but its shape needs {needed}; the file is damaged"
        )
    if length < offset + needed:
        raise ModelError(f"{path}: {location} has {length} bytes, expected {offset + needed}: truncated")


def first_line(error: BaseException) -> str:
    """The first line of the innermost cause's text, at most 160 characters; its type where it has none."""
    while error.__cause__ is not None:
        error = error.__cause__  # onnx-ir wraps each level in the text of the whole graph
    text = ""
    with contextlib.suppress(Exception):
        text = str(error).strip()
    return text.splitlines()[0][:160] if text else type(error).__name__
