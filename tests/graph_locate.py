"""Where a module's output projections lie in a file, found by the values of their weights alone; for `graph_oracle`.

Weights may be transposed, cast, quantised, behind nodes or inside functions: constants are followed to float first.
Plain onnx and NumPy, nothing of the package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
from onnx import ModelProto, NodeProto, helper, numpy_helper

Array = npt.NDArray[Any]

# operator -> operand of the weight's zero point (None: the weight is a float)
_PROJECTIONS: dict[str, int | None] = {
    "MatMul": None, "Gemm": None, "FusedMatMul": None, "FusedGemm": None,
    "MatMulInteger": 3, "MatMulIntegerToFloat": 5, "DynamicQuantizeMatMul": 3,
}  # fmt: skip
_EINSUM = b"ibnd,hnd->ibh"  # XLNet's: heads n and their columns d are axes of their own
_SAME, _OTHER = 0.98, 0.9
"""Mean cosine of the columns of two matrices: a quantised weight and its source; two that have nothing in common are near 0."""


class Graph:
    """A model that is edited: its nodes as a list, new ones are put before a given one."""

    def __init__(self, model: ModelProto) -> None:
        self.model = onnx.inliner.inline_local_functions(model) if model.functions else model
        self.nodes: list[NodeProto] = list(self.model.graph.node)
        self.inserted = 0
        self.opset = next(o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx"))

    def producer(self, name: str) -> NodeProto | None:
        """The node that writes the tensor, None for inputs and initializers."""
        return next((node for node in self.nodes if name and name in node.output), None)

    def readers(self, name: str) -> list[tuple[NodeProto, int]]:
        """Every (node, operand) that reads the tensor."""
        return [(node, i) for node in self.nodes for i, given in enumerate(node.input) if given == name]

    def constant(self, values: Array) -> str:
        """A new initializer's name."""
        name = f"oracle.{len(self.model.graph.initializer)}"
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def insert(
        self, before: NodeProto, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any
    ) -> str:
        """A new node's output, by the name given or a new one."""
        self.inserted += 1
        name = f"oracle.{operator}.{self.inserted}"
        place = next(i for i, node in enumerate(self.nodes) if node is before)
        self.nodes.insert(place, helper.make_node(operator, inputs, [output or name], name, **attributes))
        return output or name

    def serialized(self) -> bytes:
        """The model as it is now."""
        result = ModelProto.FromString(self.model.SerializeToString())
        del result.graph.node[:], result.graph.value_info[:]
        result.graph.node.extend(self.nodes)
        return result.SerializeToString()


@dataclasses.dataclass(frozen=True)
class Projection:
    """The node that multiplies by a torch Linear's weight; its activation is operand 0.

    shape, dtype     of a mask for the activation: (width,), or (heads, head size) where these are axes of their own
    """

    node: NodeProto
    shape: tuple[int, ...]
    dtype: Any


def locate(graph: Graph, linears: Sequence[Any]) -> list[Projection | None]:
    """The projection of each torch module (None stays None). Modules of equal weights take theirs in graph order."""
    candidates = _candidates(graph)
    wanted = [None if linear is None else _weight_of(linear) for linear in linears]
    found: list[Projection | None] = []
    for index, weight in enumerate(wanted):
        if weight is None:
            found.append(None)
            continue
        scores = [_likeness(weight, given) for _, given in candidates]
        nodes = [candidate[0] for candidate, score in zip(candidates, scores, strict=True) if score > _SAME]
        unclear = [round(score, 3) for score in scores if _OTHER < score <= _SAME]
        sharing = [i for i, other in enumerate(wanted) if other is not None and np.array_equal(weight, other)]
        assert not unclear, f"linear {index} is like several weights: {unclear}"
        assert len(nodes) == len(sharing), f"linear {index} {weight.shape}: {len(nodes)} nodes, expected {len(sharing)}"
        found.append(nodes[sharing.index(index)])
    return found


def constants(graph: Graph) -> dict[str, Array]:
    """Initializers, and what Constant, Cast, Transpose, Identity, Reshape and quantisation make of them alone."""
    known: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in graph.model.graph.initializer}
    for node in graph.nodes:
        values = [known.get(name) for name in node.input if name]
        if any(value is None for value in values):
            continue
        folded = _folded(node, values)
        if folded is not None:
            known[node.output[0]] = folded
    return known


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """A node's attribute as a plain value."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _candidates(graph: Graph) -> list[tuple[Projection, Array]]:
    known = constants(graph)
    found = []
    for node in graph.nodes:
        given = known.get(node.input[1]) if len(node.input) > 1 else None
        if given is not None and node.op_type == "Einsum" and attribute(node, "equation") == _EINSUM:
            found.append((Projection(node, given.shape[1:], given.dtype), given.reshape(given.shape[0], -1).T))
        if node.op_type not in _PROJECTIONS or given is None or given.ndim != 2:
            continue
        weight, operand = given, _PROJECTIONS[node.op_type]
        assert not attribute(node, "transA", 0), f"{node.name}: transA"
        dtype = np.dtype(np.float32) if operand is not None else weight.dtype
        weight = weight.astype(np.float32)
        if operand is not None and len(node.input) > operand and node.input[operand]:
            weight = weight - known[node.input[operand]].astype(np.float32)
        weight = weight.T if attribute(node, "transB", 0) else weight
        found.append((Projection(node, weight.shape[:1], dtype), weight))
    return found


def _weight_of(linear: Any) -> Array:
    """w of x @ w. XLNet's attention has no module for it: o[D, heads, head size]."""
    if hasattr(linear, "post_attention"):
        return np.asarray(linear.o.detach().flatten(1).numpy().T)
    weight = linear.weight.detach().numpy()
    return np.asarray(weight if type(linear).__name__ == "Conv1D" else weight.T)


def _likeness(first: Array, second: Array) -> float:
    if first.shape != second.shape:
        return -1.0
    norms = np.linalg.norm(first, axis=0) * np.linalg.norm(second, axis=0)
    return float(np.mean((first * second).sum(axis=0) / np.maximum(norms, 1e-12)))


def _folded(node: NodeProto, values: list[Any]) -> Array | None:
    match node.op_type:
        case "Constant":
            value = helper.get_attribute_value(node.attribute[0])
            return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
        case "Cast":
            return np.asarray(values[0].astype(helper.tensor_dtype_to_np_dtype(attribute(node, "to"))))
        case "Transpose":
            return np.asarray(values[0].transpose(attribute(node, "perm")))
        case "Identity":
            return np.asarray(values[0])
        case "Reshape":
            return np.asarray(values[0].reshape([d or values[0].shape[i] for i, d in enumerate(values[1])]))
        case "QuantizeLinear":
            return _quantised(node, values)
        case "DequantizeLinear":
            return _dequantised(node, values)
    return None


def _quantised(node: NodeProto, values: list[Any]) -> Array:
    scale, zero = _along_axis(node, values)
    limits = np.iinfo(values[2].dtype)
    return np.asarray(np.clip(np.rint(values[0] / scale) + zero, limits.min, limits.max).astype(values[2].dtype))


def _dequantised(node: NodeProto, values: list[Any]) -> Array:
    scale, zero = _along_axis(node, values)
    return np.asarray(((values[0].astype(np.int32) - zero) * scale).astype(scale.dtype))


def _along_axis(node: NodeProto, values: list[Any]) -> tuple[Array, Array]:
    """Scale and zero point of QuantizeLinear or DequantizeLinear, shaped to broadcast."""
    rank, scale = values[0].ndim, values[1]
    zero = values[2].astype(np.int32) if len(values) > 2 else np.zeros_like(scale, np.int32)
    if np.size(scale) == 1:
        return scale.reshape(()), zero.reshape(())
    shape = [-1 if i == attribute(node, "axis", 1) % rank else 1 for i in range(rank)]
    return scale.reshape(shape), zero.reshape(shape)
