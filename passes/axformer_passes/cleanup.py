"""Drop what nothing reads, merge what is written twice. Exact; names of inputs and outputs stay."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from axformer_passes.prepare import share


class Cleanup(ir.passes.InPlacePass):
    """Remove dead nodes, unread initializers and what names them, until nothing changes.

    before  x -> dead nodes            initializers nobody reads, un-shared twins
    after   only what an output needs  each tensor once
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Clean `model` in place."""
        nodes, initializers = len(model.graph), len(model.graph.initializers)
        common.RemoveUnusedNodesPass()(model)
        share(model.graph)
        for name, value in list(model.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del model.graph.initializers[name]
        changed = nodes != len(model.graph) or initializers != len(model.graph.initializers)
        return ir.passes.PassResult(model, modified=changed)
