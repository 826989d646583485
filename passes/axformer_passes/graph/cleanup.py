"""Drop what nothing reads, merge what is written twice. Exact; names of inputs and outputs stay."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from axformer_passes.graph.values import CHAIN_OPS, SHARED_FROM, share


class Cleanup(ir.passes.InPlacePass):
    """Remove dead nodes, unread initializers and what names them, until nothing changes.

    before  x -> dead nodes            initializers nobody reads, un-shared twins
    after   only what an output needs  each tensor once, each Transpose or Cast of a weight once
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Clean `model` in place."""
        nodes, initializers = len(model.graph), len(model.graph.initializers)
        common.RemoveUnusedNodesPass()(model)
        share(model.graph)
        _share_chains(model.graph)
        for name, value in list(model.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del model.graph.initializers[name]
        changed = nodes != len(model.graph) or initializers != len(model.graph.initializers)
        return ir.passes.PassResult(model, modified=changed)


def _share_chains(graph: ir.Graph) -> None:
    """Merge the twins of a Transpose or Cast of a weight that were made to label each use alone; others are the source's own."""
    first: dict[tuple[object, ...], ir.Value] = {}
    for node in list(graph):
        out = node.outputs[0]
        if node.op_type not in CHAIN_OPS or len(node.outputs) != 1:
            continue
        inputs, attributes = tuple(map(id, node.inputs)), tuple(map(repr, node.attributes.values()))
        keep = first.setdefault((node.domain, node.op_type, inputs, attributes), out)
        if keep is not out and SHARED_FROM in out.meta and not out.is_graph_output():
            out.replace_all_uses_with(keep)
            graph.remove(node, safe=True)
