"""Load and save: lazily mapped external data, atomic writes, hashes.

A model is written beside its name and renamed, so that a reader sees the old file or the new one, never a part.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from axformer_passes.errors import ModelError, RuntimeFailure
from axformer_passes.io.layout import model_path
from axformer_passes.io.reading import first_line, read_model, tensors

SINGLE_FILE_LIMIT = 2**31 - 2**20
"""Bytes above which weights go to `<name>.data` (protobuf ends at 2 GiB)."""

EXTERNAL_LIMIT = 2**28
"""The same for a model whose weights lay beside it: one file would cost their size in memory several times over."""


def load_model(path: str | Path) -> ir.Model:
    """Read an ONNX file. Weights in external data are mapped, not copied.

    Raises: ModelError for what is not a complete ONNX model with a default operator set of 7 or later.
    """
    found = model_path(path)
    model = read_model(found)
    opset = model.opset_imports.get("")
    if opset is None or opset < 7:
        raise ModelError(f"{found}: operator set {opset}, expected 7 or later; convert it with onnx.version_converter")
    if not _is_sorted(model.graph):
        try:
            model.graph.sort()
        except ValueError as error:
            raise ModelError(f"{found}: its nodes cannot be put in order: {first_line(error)}") from None
    _state_shapes_of_weights(model)
    _leave_unknown_axes_open(model)
    return model


def _leave_unknown_axes_open(model: ir.Model) -> None:
    """A size below zero is how some exporters (paddle2onnx: -1) write an axis of unknown size: it becomes one without a name."""
    for graph in model.graphs():
        for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
            if value.shape is not None and any(isinstance(size, int) and size < 0 for size in value.shape):
                value.shape = ir.Shape([None if isinstance(n, int) and n < 0 else n for n in value.shape])


def _state_shapes_of_weights(model: ir.Model) -> None:
    """An initializer has its tensor's shape, whatever the file states beside it (a fused scale of shape [1] as a scalar)."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor, stated = value.const_value, value.shape
            if tensor is not None and stated is not None and stated.dims != tensor.shape.dims:
                value.shape = ir.Shape(tensor.shape.numpy())


def _is_sorted(graph: ir.Graph) -> bool:
    """Comes every node behind those that it reads? ONNX Runtime does not mind, and its quantiser writes such files."""
    made = set[ir.Node]()
    for node in graph:
        if any(maker.graph is graph and maker not in made for maker in _makers(node)):
            return False
        made.add(node)
    return True


def _makers(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes that make what `node`, or a node in its subgraphs, reads."""
    inner = [
        n
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
        for n in attribute.as_graph().all_nodes()
    ]
    for reader in (node, *inner):
        for value in reader.inputs:
            maker = value.producer() if value is not None else None
            if maker is not None:
                yield maker


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor that points at a file: initializers and attributes, in subgraphs and functions too."""
    yield from (tensor for tensor in tensors(model) if isinstance(tensor, ir.ExternalTensor))


def save_model(model: ir.Model, path: str | Path, *, single_file_limit: int | None = None) -> None:
    """Write `model` to `path` through a temporary folder beside it; external data only above the limit.

    Default limits: SINGLE_FILE_LIMIT, and EXTERNAL_LIMIT for a model that has external data already.

    The same model gives the same bytes. Raises RuntimeFailure where the folder cannot be written.
    """
    path = Path(path)
    weights = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    limit = _limit(weights) if single_file_limit is None else single_file_limit
    data = f"{path.name}.data" if sum(tensor.nbytes for tensor in weights) > limit else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            written = Path(folder) / path.name
            if data is None:
                _save_single(model, written)
            else:
                _save_beside(model, written, data)
                os.replace(Path(folder) / data, path.parent / data)
            os.replace(written, path)
            if data is None:
                (path.parent / f"{path.name}.data").unlink(missing_ok=True)
    except OSError as error:
        raise RuntimeFailure(f"{path}: cannot be written: {error.strerror or error}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all, by a file beside it and rename; what stood there keeps its mode. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        if path.exists():
            beside.chmod(path.stat().st_mode)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _limit(weights: list[Any]) -> int:
    return EXTERNAL_LIMIT if any(isinstance(tensor, ir.ExternalTensor) for tensor in weights) else SINGLE_FILE_LIMIT


def _save_single(model: ir.Model, path: Path) -> None:
    path.write_bytes(serialized(model))


def _save_beside(model: ir.Model, path: Path, data: str) -> None:
    """Weights go to the file `data`, one after the other; none is copied in memory."""
    ir.save(model, path, external_data=data)
    proto = onnx.ModelProto.FromString(path.read_bytes())
    _state_shapes_once(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _state_shapes_once(proto: onnx.ModelProto) -> None:
    constants = {tensor.name for tensor in proto.graph.initializer}  # onnx-ir states their shapes a second time
    stated = [info for info in proto.graph.value_info if info.name not in constants]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(stated)


def serialized(model: ir.Model) -> bytes:
    """The bytes of `model`, deterministic, with all weights inside (below 2 GiB)."""
    proto = ir.to_proto(model)
    _state_shapes_once(proto)
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            array = model.graph.initializers[tensor.name].const_value
            assert array is not None
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.numpy(), tensor.name))
    return bytes(proto.SerializeToString(deterministic=True))


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a model's file and, in order of name, of its external data files."""
    found = model_path(path)
    digest = hashlib.sha256()
    for part in (found, *external_files(found)):
        with part.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def external_files(path: Path) -> list[Path]:
    """Existing external data files of a model, sorted."""
    return sorted({Path(tensor.path) for tensor in external_tensors(load_model(path))})
