"""Constants and names of a graph: what is constant and where it comes from, what reads what, new initializers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]

CHAIN_OPS = frozenset({"Transpose", "Cast", "Identity", "QuantizeLinear", "DequantizeLinear"})
"""Operators through which a weight is followed back to its initializer."""

SHARED_FROM = "axformer.shared_from"
"""Key in the meta of a value: the name that its uses go by together."""


def source_name(value: ir.Value) -> str:
    """Name of the initializer in the source graph of which `value` is an un-shared use."""
    return str(value.meta.get(SHARED_FROM, value.name))


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
        wanted = value.meta.get(SHARED_FROM)
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


def read_by(node: ir.Node) -> list[ir.Value]:
    """What a node reads from its graph, from inside its subgraphs too."""
    found = {id(v): v for v in node.inputs if v is not None}
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                found.update((id(v), v) for v in inner.inputs if v is not None and _graph_of(v) is node.graph)
    return list(found.values())


def _graph_of(value: ir.Value) -> ir.Graph | ir.Function | None:
    node = value.producer()
    return node.graph if node is not None else value.graph


NAMES = "axformer.names"
"""Key in the meta of a graph: its names, each with the suffixes that were tried for it."""


def fresh(graph: ir.Graph, base: str) -> str:
    """A value name that `graph` does not use yet, made from `base`."""
    taken: dict[str | None, int] | None = graph.meta.get(NAMES)
    if taken is None:
        taken = dict.fromkeys(graph.initializers, 0)
        taken.update((v.name, 0) for v in graph.inputs)
        taken.update((v.name, 0) for node in graph.all_nodes() for v in node.outputs)
        graph.meta[NAMES] = taken
    name, count = base, taken.get(base, 0)
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    taken[base], taken[name] = count, taken.get(name, 0)
    return name


def initializer(graph: ir.Graph, base: str, array: Array) -> ir.Value:
    """Register a new initializer with a fresh name made from `base`."""
    name = fresh(graph, base)
    tensor = ir.Tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


_SIZES = frozenset({"Shape", "Size"})


def made_of_shapes(value: ir.Value | None) -> bool:
    """Does it depend on sizes and constants alone?"""
    queue, seen = [value], set[ir.Value]()
    while queue:
        one = queue.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        node = one.producer()
        if node is None and one.const_value is None:
            return False
        if node is not None and node.op_type not in _SIZES:
            queue.extend(node.inputs)
    return True
