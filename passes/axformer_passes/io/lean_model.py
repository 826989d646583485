"""A model without its large weights: what is handed to whoever runs it, so that gigabytes are neither copied nor serialised.

weights in external data   -> stay in their files; the graph refers to them as it did
large weights in memory    -> stay where they are; the graph says their names, types and shapes
all others                 -> inside the graph
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import onnx
import onnx_ir as ir

from axformer_passes.errors import ModelError
from axformer_passes.io.reading import first_line

LARGE_BYTES = 2**16
"""Bytes from which on a weight stays out of the graph."""

_NOWHERE = "in memory"
_WHOLE_BYTES = frozenset({8, 16, 32, 64})


@dataclasses.dataclass(frozen=True)
class Detached:
    """One model in two parts.

    proto     the graph; external data that it refers to lies in `folder`
    folder    absolute path of the folder of external data; None: there is none
    weights   tensors of the initializers without data in `proto`, by name: those of `folder`, and those in memory
    """

    proto: onnx.ModelProto
    folder: str | None
    weights: Mapping[str, Any]

    @property
    def in_memory(self) -> dict[str, Any]:
        """Weights that lie in no file of `folder`: whoever runs the graph must be given them."""
        return {name: tensor for name, tensor in self.weights.items() if not _lies_in(tensor, self.folder)}

    def content(self) -> bytes:
        """The bytes of the graph alone, deterministic."""
        return bytes(self.proto.SerializeToString(deterministic=True))

    def whole(self) -> onnx.ModelProto:
        """A copy of the graph with all weights inside (below 2 GiB)."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        for stub in proto.graph.initializer:
            if stub.name in self.weights:
                tensor = self.weights[stub.name]
                del stub.external_data[:]
                stub.ClearField("data_location")
                stub.raw_data = tensor.tobytes()
        return proto

    def serialized(self) -> bytes:
        """The bytes of `whole`, deterministic."""
        return bytes(self.whole().SerializeToString(deterministic=True))


def detached(model: ir.Model) -> Detached:
    """`model` in two parts. Its tensors are shared, not copied; `model` is as before when this returns.

    Raises: ModelError for a graph that cannot be written (an attribute without a kind, say).
    """
    held = model.graph.initializers.items()
    unread = {n for n, v in held if not v.uses() and not v.is_graph_output()}  # a runtime may not know them by name
    constants = {n: v.const_value for n, v in held if v.const_value is not None and n not in unread}
    weights = {name: tensor for name, tensor in constants.items() if _is_large(tensor)}
    folder = next((str(t.base_dir) for t in weights.values() if isinstance(t, ir.ExternalTensor) and t.base_dir), None)
    written: dict[str, Any] = {name: _stub(name, t) for name, t in weights.items() if not _lies_in(t, folder)}
    written |= {n: _inside(n, t) for n, t in constants.items() if n not in weights and isinstance(t, ir.ExternalTensor)}
    with _replaced(model.graph, written):
        proto = _written(model)
    if unread:
        kept = [tensor for tensor in proto.graph.initializer if tensor.name not in unread]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
    return Detached(proto, folder, weights)


def _written(model: ir.Model) -> onnx.ModelProto:
    try:
        return ir.to_proto(model)
    except ir.serde.SerdeError as error:
        raise ModelError(f"the graph is malformed: {first_line(error)}") from None


def _is_large(tensor: Any) -> bool:
    if tensor.dtype == ir.DataType.STRING or tensor.nbytes < LARGE_BYTES:
        return False
    return isinstance(tensor, ir.ExternalTensor) or tensor.dtype.bitwidth in _WHOLE_BYTES


def _lies_in(tensor: Any, folder: str | None) -> bool:
    return isinstance(tensor, ir.ExternalTensor) and folder is not None and str(tensor.base_dir) == folder


def _stub(name: str, tensor: Any) -> ir.ExternalTensor:
    """Name, type and shape alone."""
    return ir.ExternalTensor(_NOWHERE, 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape), name=name)


def _inside(name: str, tensor: ir.ExternalTensor) -> ir.Tensor[Any]:
    """ONNX Runtime infers shapes from small constants, but does not read files for that."""
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)


@contextmanager
def _replaced(graph: ir.Graph, tensors: Mapping[str, Any]) -> Iterator[None]:
    """While this lasts, these initializers hold these tensors."""
    before = {name: graph.initializers[name].const_value for name in tensors}
    try:
        for name, tensor in tensors.items():
            graph.initializers[name].const_value = tensor
        yield
    finally:
        for name, own in before.items():
            graph.initializers[name].const_value = own
