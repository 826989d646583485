"""Look values up by name, in constant time after the first."""

from __future__ import annotations

import onnx_ir as ir

from axformer_passes.errors import PlanError

INDEX = "axformer.values"
"""Key in the meta of a graph: its values by name."""


def find(graph: ir.Graph, name: str | None) -> ir.Value:
    """The value called `name`: a graph input, an initializer or a node's output.

    An index is kept with the graph, and made again where it is out of date, so that a pass over many blocks stays linear.
    """
    for attempt in range(2):
        known: dict[str | None, ir.Value] | None = graph.meta.get(INDEX) if attempt == 0 else None
        if known is None:
            known = graph.meta[INDEX] = _values(graph)
        value = known.get(name)
        node = value.producer() if value is not None else None
        if value is not None and value.name == name and (node is None or node.graph is graph):
            return value
    raise PlanError(f"no tensor {name!r} in the graph; the plan or anatomy is another model's")


def _values(graph: ir.Graph) -> dict[str | None, ir.Value]:
    made: dict[str | None, ir.Value] = {value.name: value for node in graph for value in node.outputs}
    made.update(graph.initializers)
    made.update((value.name, value) for value in graph.inputs)
    return made


def anchor(node: ir.Node) -> str:
    """A node's identity: the name of its first output (node names may be missing or repeated)."""
    return str(node.outputs[0].name)


PART_OF = "axformer.part_of"
"""Key in the meta of a product's output: the anchor of the product that it was a part of, in the source."""


def whole_of(node: ir.Node) -> str:
    """The anchor of a product in the source, of which this may be a part."""
    return str(node.outputs[0].meta.get(PART_OF, anchor(node)))


def operator(node: ir.Node) -> str:
    """The key of a node in a table of operators."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"
