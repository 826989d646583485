"""Finish an exported graph: stable axis names, no traces of the machine, provenance, one file or external data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from axformer_passes.io import save_model

AxisNames = Mapping[str, Sequence[str | int]]

# dynamo notes the source file and line of every node: long, and full of the exporting machine's paths.
_TRACES = (
    "pkg.torch.onnx.stack_trace",
    "pkg.torch.onnx.fx_node",
    "pkg.torch.export.ExportedProgram.graph_signature",
)


def finish(raw: Path, path: Path, axes: AxisNames, provenance: Mapping[str, str], single_file_limit: int) -> ir.Model:
    """Read `raw`, write it to `path` with `axes` as the shapes of its inputs and outputs. Returns what was written.

    Above `single_file_limit` bytes of weights they go to `<path>.data`.
    """
    model = ir.load(raw)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.name is not None and value.name in axes:
            value.shape = ir.Shape(axes[value.name])
    for properties in (model.metadata_props, model.graph.metadata_props, *_properties(model.graph)):
        for key in _TRACES:
            properties.pop(key, None)
    for node in model.graph.all_nodes():
        node.doc_string = None
    model.metadata_props.update(provenance)
    save_model(model, path, single_file_limit=single_file_limit)
    return model


def _properties(graph: ir.Graph) -> list[dict[str, str]]:
    nodes = list(graph.all_nodes())
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in nodes for v in node.outputs)]
    return [*(node.metadata_props for node in nodes), *(value.metadata_props for value in values)]
