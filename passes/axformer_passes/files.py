"""Load and save: lazily mapped external data, atomic writes, hashes.

A model is written beside its name and renamed, so that a reader sees the old file or the new one, never a part.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir

from axformer_passes.errors import ModelError, RuntimeFailure

SINGLE_FILE_LIMIT = 2**31 - 2**20
"""Bytes above which weights go to `<name>.data` (protobuf ends at 2 GiB)."""

_SHORTEST_MODEL = 16


def model_path(path: str | Path) -> Path:
    """The model file that `path` names: itself, or `model.onnx` in it where it is a folder."""
    path = Path(path)
    found = path / "model.onnx" if path.is_dir() else path
    if not found.exists():
        hint = "a folder without model.onnx" if path.is_dir() else "no such file"
        raise ModelError(f"{path}: {hint}; give an .onnx file or a folder that holds model.onnx")
    return found


def load_model(path: str | Path) -> ir.Model:
    """Read an ONNX file. Weights are mapped, not copied.

    Raises: ModelError for what is not a complete ONNX model with a default operator set of 7 or later.
    """
    found = model_path(path)
    if found.stat().st_size < _SHORTEST_MODEL:
        raise ModelError(f"{found}: {found.stat().st_size} bytes is too short for an ONNX model")
    try:
        model = ir.load(found)
    except Exception as error:  # protobuf, onnx-ir and the file system each raise their own
        raise ModelError(f"{found}: not an ONNX model, or truncated ({_first_line(error)})") from None
    _check(model, found)
    return model


def _check(model: ir.Model, path: Path) -> None:
    if len(model.graph) == 0 or not model.graph.outputs:
        raise ModelError(f"{path}: not an ONNX model: it has no nodes or no outputs")
    opset = model.opset_imports.get("")
    if opset is None or opset < 7:
        raise ModelError(f"{path}: operator set {opset}, expected 7 or later; convert it with onnx.version_converter")
    for tensor in external_tensors(model):
        _check_external(tensor, path)


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor that points at a file: initializers and attributes, in subgraphs and functions too."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
    nodes = itertools.chain(model.graph.all_nodes(), *(f.all_nodes() for f in model.functions.values()))
    for attribute in (a for node in nodes for a in node.attributes.values()):
        tensors = [attribute.value] if attribute.type == ir.AttributeType.TENSOR else []
        tensors = list(attribute.as_tensors()) if attribute.type == ir.AttributeType.TENSORS else tensors
        yield from (tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor))


def _check_external(tensor: ir.ExternalTensor, path: Path) -> None:
    """External data must be a plain file inside the model's folder and long enough."""
    folder = path.parent.resolve()
    target = Path(tensor.path).resolve()
    if not target.is_relative_to(folder):
        raise ModelError(f"{path}: tensor {tensor.name!r} points outside the model's folder: {tensor.location}")
    if not target.is_file():
        raise ModelError(f"{path}: external data {tensor.location!r} is missing; it must lie beside the model")
    end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
    if target.stat().st_size < end:
        raise ModelError(
            f"{path}: external data {tensor.location!r} has {target.stat().st_size} bytes, expected {end}: truncated"
        )


def save_model(model: ir.Model, path: str | Path, *, single_file_limit: int = SINGLE_FILE_LIMIT) -> None:
    """Write `model` to `path` through a temporary folder beside it; external data only above the limit.

    The same model gives the same bytes. Raises RuntimeFailure where the folder cannot be written.
    """
    path = Path(path)
    size = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
    data = f"{path.name}.data" if size > single_file_limit else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            written = Path(folder) / path.name
            if data is None:
                _save_single(model, written)
            else:
                ir.save(model, written, external_data=data)
                os.replace(Path(folder) / data, path.parent / data)
            os.replace(written, path)
            if data is None:
                (path.parent / f"{path.name}.data").unlink(missing_ok=True)
    except OSError as error:
        raise RuntimeFailure(f"{path}: cannot be written: {error.strerror or error}") from None


def _save_single(model: ir.Model, path: Path) -> None:
    path.write_bytes(serialized(model))


def serialized(model: ir.Model) -> bytes:
    """The bytes of `model`, deterministic, with all weights inside (below 2 GiB)."""
    proto = ir.to_proto(model)
    constants = {tensor.name for tensor in proto.graph.initializer}  # onnx-ir states their shapes a second time
    stated = [info for info in proto.graph.value_info if info.name not in constants]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(stated)
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


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:160] if text else type(error).__name__
