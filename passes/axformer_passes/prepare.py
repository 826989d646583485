"""Bring a graph into the form that labels can walk: same function, same names, one use per constant.

Each step is exact and changes no arithmetic:

    Constant node                         -> initializer of the same name
    model-local function call             -> its body, inlined
    initializer read by n nodes           -> n initializers that share one tensor object (written once again by `share`)
    Transpose/Cast/... of an initializer
      read by n nodes                     -> n such chains
    Reshape/Squeeze/... of an initializer -> the reshaped initializer
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from axformer_passes.errors import ModelError

Array = npt.NDArray[Any]

CHAIN_OPS = frozenset({"Transpose", "Cast", "Identity", "DequantizeLinear"})
"""Operators through which a weight is followed back to its initializer."""

_FOLD_OPS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
_SHARED_FROM = "axformer.shared_from"


def prepared(model: ir.Model) -> ir.Model:
    """A walkable clone of `model`; the memory of its tensors is shared with it, not copied.

    Raises: ModelError for a graph that contradicts itself (an input that nothing makes, a shape that does not fit).
    """
    try:
        return _prepared(model)
    except ModelError:
        raise
    except Exception as error:  # onnx-ir's and NumPy's own
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__  # onnx-ir wraps each level in the text of the whole graph
        text = str(cause).strip().splitlines() or [type(cause).__name__]
        raise ModelError(f"the graph is malformed: {text[0][:300]}") from None


def _prepared(model: ir.Model) -> ir.Model:
    clone = model.clone()
    if clone.functions:
        common.InlinePass()(clone)
    if any(node.op_type == "Loop" or node.op_type == "Scan" for node in clone.graph):
        raise ModelError("the graph holds a Loop or Scan node; only straight-line graphs are supported")
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(clone)
    _own_tensors(clone.graph)
    _detach_inputs(clone.graph)
    _fold(clone.graph)
    _unshare_chains(clone.graph)
    _unshare_initializers(clone.graph)
    return clone


def source_name(value: ir.Value) -> str:
    """Name of the initializer in the source graph of which `value` is an un-shared use."""
    return str(value.meta.get(_SHARED_FROM, value.name))


def share(graph: ir.Graph) -> int:
    """Merge initializers that hold the very same tensor object again; returns how many went.

    Un-shared uses that no pass has cut still point at one object, so this is the inverse of un-sharing.
    """
    first: dict[tuple[int, str], ir.Value] = {}
    merged = 0
    for name, value in list(graph.initializers.items()):
        if value.const_value is None:
            continue
        keep = first.setdefault((id(value.const_value), source_name(value)), value)
        if keep is value or value.is_graph_output():
            continue
        value.replace_all_uses_with(keep)
        del graph.initializers[name]
        merged += 1
    for value in first.values():
        wanted = value.meta.get(_SHARED_FROM)
        if wanted is not None and wanted not in graph.initializers and value.name is not None:
            del graph.initializers[value.name]
            value.name = wanted
            graph.register_initializer(value)
    return merged


def constant(value: ir.Value | None) -> Array | None:
    """The value of an initializer as an array, or None where `value` is computed or missing."""
    if value is None or value.const_value is None or value.producer() is not None:
        return None
    return np.asarray(value.const_value.numpy())


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a constant tensor comes from: its initializer, and for each of its axes the initializer's axis."""

    value: ir.Value
    axes: tuple[int, ...]


def origin(value: ir.Value | None) -> Origin | None:
    """Follow `value` back through CHAIN_OPS to an initializer; None if it depends on the inputs."""
    if value is None:
        return None
    node = value.producer()
    if node is None:
        if value.const_value is None:
            return None
        return Origin(value, tuple(range(len(value.const_value.shape))))
    if node.op_type not in CHAIN_OPS or node.domain not in ("", "ai.onnx", "com.microsoft"):
        return None
    behind = origin(node.inputs[0])
    if behind is None or node.op_type != "Transpose":
        return behind
    perm = node.attributes.get_ints("perm", list(range(len(behind.axes)))[::-1])
    return Origin(behind.value, tuple(behind.axes[i] for i in perm))


def fresh(graph: ir.Graph, base: str) -> str:
    """A value name that `graph` does not use yet, made from `base`."""
    taken = graph.meta.setdefault("axformer.names", None)
    if taken is None:
        taken = set(graph.initializers) | {v.name for v in graph.inputs}
        taken |= {v.name for node in graph.all_nodes() for v in node.outputs}
        graph.meta["axformer.names"] = taken
    name, count = base, 1
    while name in taken:
        name, count = f"{base}_{count}", count + 1
    taken.add(name)
    return name


def initializer(graph: ir.Graph, base: str, array: Array) -> ir.Value:
    """Register a new initializer with a fresh name made from `base`."""
    name = fresh(graph, base)
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def _own_tensors(graph: ir.Graph) -> None:
    """Writing a graph names each tensor object after its value: the clone needs objects of its own, or it renames the source's."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = copy.copy(tensor)
        elif tensor is not None and not isinstance(tensor, ir.StringTensor):
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)


def _detach_inputs(graph: ir.Graph) -> None:
    """IR version 3 lists initializers among the inputs, too; a default value can be overridden there, so keep it."""
    for value in graph.inputs:
        if value.name in graph.initializers:
            raise ModelError(
                f"initializer {value.name!r} is also a graph input, so that a caller may replace it; "
                "export with keep_initializers_as_inputs=False"
            )


def _fold(graph: ir.Graph) -> None:
    """Reshape, Squeeze, Unsqueeze, Flatten of an initializer that nobody else reads: exact, the same bytes."""
    for node in list(graph):
        source = node.inputs[0] if node.inputs else None
        if node.op_type not in _FOLD_OPS or source is None or source.const_value is None:
            continue
        out = node.outputs[0]
        if len(source.uses()) != 1 or out.is_graph_output() or any(constant(v) is None for v in node.inputs):
            continue
        array = constant(source)
        if array is None:
            continue
        shaped = array.reshape(_folded_shape(node, array.shape))
        new = initializer(graph, f"{source.name}_{node.op_type.lower()}", shaped)
        out.replace_all_uses_with(new)
        graph.remove(node, safe=True)


def _folded_shape(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = [int(i) for i in (given if given is not None else node.attributes.get_ints("axes", []))]
    if node.op_type == "Reshape":
        return tuple(shape[i] if n == 0 else n for i, n in enumerate(axes))
    if node.op_type == "Flatten":
        axis = node.attributes.get_int("axis", 1) % (len(shape) + 1)
        return (int(np.prod(shape[:axis], dtype=np.int64)), -1)
    if node.op_type == "Squeeze":
        gone = {a % len(shape) for a in axes} or {i for i, n in enumerate(shape) if n == 1}
        return tuple(n for i, n in enumerate(shape) if i not in gone)
    out = list(shape)
    for axis in sorted(a % (len(shape) + len(axes)) for a in axes):
        out.insert(axis, 1)
    return tuple(out)


def _unshare_chains(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if node.op_type not in CHAIN_OPS or origin(node.outputs[0]) is None:
            continue
        out = node.outputs[0]
        for user, index in list(out.uses())[1:]:
            value = ir.Value(name=fresh(graph, f"{out.name}_use"), shape=out.shape, type=out.type)
            value.meta[_SHARED_FROM] = out.name
            twin = ir.Node(node.domain, node.op_type, node.inputs, node.attributes, outputs=[value])
            graph.insert_after(node, twin)
            user.replace_input_with(index, value)


def _unshare_initializers(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if value.const_value is None:
            continue
        for user, index in list(value.uses())[1:]:
            if user.graph is not graph:  # read from a subgraph: leave it shared
                continue
            copy = ir.Value(
                name=fresh(graph, f"{name}_use"),
                shape=value.shape,
                type=value.type,
                const_value=value.const_value,
            )
            copy.meta[_SHARED_FROM] = source_name(value)
            graph.register_initializer(copy)
            user.replace_input_with(index, copy)
