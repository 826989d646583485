"""The edge to onnx-graphsurgeon, so that a pass runs inside an existing script:

    graph = gs.import_onnx(onnx.load("model.onnx"))
    graph = apply_to_graphsurgeon(graph, Plan().without_heads(0, [1, 3]))
    onnx.save(gs.export_onnx(graph.cleanup().toposort()), "smaller.onnx")

A graphsurgeon graph has no place for the metadata of the model, its graph, nodes and values, for doc strings of nodes and
values, for the model's domain and version, and for quantisation annotations: they are lost on the way in. Names, shapes with
their named axes, operator sets, IR version, producer, functions and subgraphs are kept. Without a script to fit into, use
`axformer_passes.apply` directly, which keeps all of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from axformer_onnx.errors import ModelError, RuntimeFailure
from axformer_passes.apply import apply_plan
from axformer_passes.io import load_model, serialized
from axformer_passes.plan import Plan

Graph = Any
"""onnx_graphsurgeon.Graph"""


def to_graphsurgeon(model: ir.Model | str | Path) -> Graph:
    """A new onnx_graphsurgeon.Graph of a model or a file; external data is read into memory.

    Raises: ModelError, and RuntimeFailure where onnx-graphsurgeon is not installed.
    """
    import onnx

    gs = _graphsurgeon()
    found = model if isinstance(model, ir.Model) else load_model(model)
    return gs.import_onnx(onnx.load_from_string(serialized(found)))


def from_graphsurgeon(graph: Graph) -> ir.Model:
    """A new model of an onnx_graphsurgeon.Graph, which is left as it is (its nodes may be in any order).

    A graph built by hand states no IR version; it gets the oldest that its operator sets need.

    Raises: ModelError for a graph that cannot be exported, RuntimeFailure where onnx-graphsurgeon is not installed.
    """
    from onnx.helper import find_min_ir_version_for

    gs = _graphsurgeon()
    try:
        proto = gs.export_onnx(graph.copy().toposort())
    except Exception as error:  # graphsurgeon's, protobuf's and NumPy's own
        raise ModelError(f"graph {graph.name!r}: onnx-graphsurgeon cannot export it: {_first_line(error)}") from None
    proto.producer_name, proto.producer_version = graph.producer_name, graph.producer_version  # `copy` forgets them
    proto.ir_version = graph.ir_version or find_min_ir_version_for(proto.opset_import)
    model: ir.Model = ir.from_proto(proto)
    return model


def apply_to_graphsurgeon(graph: Graph, plan: Plan) -> Graph:
    """A new onnx_graphsurgeon.Graph: `graph` with `plan` carried out. Ids in the plan count in `graph`.

    Raises: what `from_graphsurgeon` and `axformer_passes.apply.apply_plan` raise.
    """
    from axformer_onnx.runtime import run_once

    return to_graphsurgeon(apply_plan(from_graphsurgeon(graph), plan, run_once))


def _graphsurgeon() -> Any:
    try:
        import onnx_graphsurgeon
    except ImportError:
        raise RuntimeFailure(
            "onnx-graphsurgeon is not installed; install it with: pip install 'axformer-onnx[graphsurgeon]'"
        ) from None
    return onnx_graphsurgeon


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__


__all__ = ["apply_to_graphsurgeon", "from_graphsurgeon", "to_graphsurgeon"]
