"""Prune: remove heads, neurons, attention blocks, feed-forward blocks.

Shapes: B batch, S tokens, D model width, H heads, F neurons.
Exact: equals the source with the removed activations zeroed, up to the order of float32 sums (docs/method.md 1.1).

    head    columns of query, key, value with their biases, rows of the output projection; the output bias stays
    neuron  columns of up (and gate) with bias, rows of down; the down bias stays
    block   sum = residual + branch  ->  sum = residual; the branch is dead, output bias included
    all heads (or neurons) of a block that stays: the branch becomes the output bias, for every token
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from axformer_passes.anatomy import Block
from axformer_passes.cut.cutting import Cut
from axformer_passes.cut.emptied import keep_only_bias
from axformer_passes.errors import PlanError
from axformer_passes.graph import find, fresh
from axformer_passes.plan import Plan
from axformer_passes.recognise import Examined


class Prune(ir.passes.InPlacePass):
    """Carry out the removals of `plan` on `examined.labelling.model`, the prepared clone that was examined."""

    def __init__(self, examined: Examined, plan: Plan) -> None:
        self.examined = examined
        self.plan = plan

    def requires(self, model: ir.Model) -> None:
        """The model is the examined clone and the plan fits it; every check before the first edit."""
        if model is not self.examined.labelling.model:
            raise PlanError("prune works on the model that was examined; examine again after an edit")
        self.plan.validate(self.examined.anatomy)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        classes, emptied = self._classes()
        for block in emptied:
            keep_only_bias(self.examined.labelling, block)
        removed = self._removed_blocks()
        bypass(model.graph, removed)
        cut = Cut(self.examined.labelling, classes).apply() if classes else False
        return ir.passes.PassResult(model, modified=bool(emptied or removed or cut))

    def _removed_blocks(self) -> list[Block]:
        layers = self.examined.anatomy.layers
        blocks: list[Block | None] = [layers[i].attention for i in sorted(self.plan.attention_blocks)]
        blocks += [layers[i].feed_forward for i in sorted(self.plan.feed_forward_blocks)]
        return [b for b in blocks if b is not None]

    def _classes(self) -> tuple[set[int], list[Block]]:
        """Classes to cut, and blocks that would lose every head or neuron and keep their output bias alone."""
        classes: set[int] = set()
        emptied: list[Block] = []
        layers = self.examined.anatomy.layers
        for index, heads in self.plan.heads.items():
            if index not in self.plan.attention_blocks:
                block, all_classes = layers[index].attention, self.examined.head_classes[index]
                assert block is not None
                _assign(block, heads, all_classes, classes, emptied)
        for index, neurons in self.plan.neurons.items():
            if index not in self.plan.feed_forward_blocks:
                feed, all_classes = layers[index].feed_forward, self.examined.neuron_classes[index]
                assert feed is not None
                _assign(feed, neurons, all_classes, classes, emptied)
        return classes, emptied


def _assign(
    block: Block, ids: frozenset[int], all_classes: tuple[int, ...], classes: set[int], emptied: list[Block]
) -> None:
    if len(ids) == len(all_classes):
        emptied.append(block)
    else:
        classes.update(all_classes[i] for i in ids)


def bypass(graph: ir.Graph, blocks: Sequence[Block]) -> None:
    """sum = residual + branch -> sum = residual. The nodes of the blocks die in the clean-up.

    The residual is what the addition reads now: the block below may have been taken out before. Of parallel blocks that are added
    to one another nothing may be left, and then it is what their sum is added to that stays:

        sum = attended + fed; out = sum + stream  ->  out = stream
    """
    gone = {find(graph, str(block.branch)) for block in blocks}
    for node in list(graph) if gone else ():
        if node.op_type not in ("Add", "Sum") or gone.isdisjoint(v for v in node.inputs if v is not None):
            continue
        left = [v for v in node.inputs if v is not None and v not in gone]
        if left:
            _put_for(graph, node, left[0])
        else:
            gone.add(node.outputs[0])


def _put_for(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """`value` for what the addition `node` made; the name of a graph output stays."""
    total = node.outputs[0]
    if not total.is_graph_output():
        total.replace_all_uses_with(value)
        return
    total_name, total.name = total.name, fresh(graph, f"{total.name}_unused")
    out = ir.Value(name=total_name, shape=total.shape, type=total.type)
    graph.insert_after(node, ir.node("Identity", [value], outputs=[out]))
    total.replace_all_uses_with(out, replace_graph_outputs=True)
