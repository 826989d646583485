"""Prune: remove heads, neurons, attention blocks, feed-forward blocks.

Shapes: B batch, S tokens, D model width, H heads, F neurons.
Exact: equals the source with the removed activations zeroed, up to the order of float32 sums (METHOD.md 1.1).

    head    columns of query, key, value with their biases, rows of the output projection; the output bias stays
    neuron  columns of up (and gate) with bias, rows of down; the down bias stays
    block   sum = residual + branch  ->  sum = residual; the branch is dead, output bias included
    all heads (or neurons) of a block that stays: the branch becomes the output bias, for every token
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.anatomy import AttentionBlock, FeedForwardBlock, Linear
from axformer_passes.cut import Cut
from axformer_passes.errors import PlanError
from axformer_passes.labels import Labelling
from axformer_passes.plan import Plan
from axformer_passes.prepare import constant, fresh, initializer, origin
from axformer_passes.recognise import Examined

Block = AttentionBlock | FeedForwardBlock


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
        for block in removed:
            bypass(model.graph, block)
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
                feed, all_classes = layers[index].feed_forward, self.examined.neuron_classes[index][0]
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


def bypass(graph: ir.Graph, block: Block) -> None:
    """sum = residual + branch -> sum = residual. The block's nodes die in the clean-up.

    The residual is what the addition reads now: the block below may have been taken out before.
    """
    total = find(graph, block.sum)
    node = total.producer()
    assert node is not None
    residual = next(v for v in node.inputs if v is not None and v.name != block.branch)
    if total.is_graph_output():
        total_name, total.name = total.name, fresh(graph, f"{total.name}_unused")
        out = ir.Value(name=total_name, shape=total.shape, type=total.type)
        graph.insert_after(node, ir.node("Identity", [residual], outputs=[out]))
        total.replace_all_uses_with(out, replace_graph_outputs=True)
        return
    total.replace_all_uses_with(residual)


def keep_only_bias(labelling: Labelling, block: Block) -> None:
    """The output projection of a block without heads (neurons): its bias, for every token.

    before  y[.., D] = context[.., 0] @ weight[0, D] (+ bias)
    after   y[.., D] = Expand(bias or 0, Shape(x)), x the projected input of the block, of y's own shape
    """
    linear = block.output if isinstance(block, AttentionBlock) else block.down
    graph = labelling.model.graph
    out = find(graph, linear.output)
    node = out.producer()
    assert node is not None
    like = _alike(labelling, block, linear)
    bias = origin(node.inputs[2]) if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    dtype = labelling.values[linear.output].dtype
    values = constant(bias.value) if bias is not None else np.zeros(linear.columns, dtype=dtype)
    assert values is not None
    fill = initializer(graph, f"{linear.output}_fill", np.asarray(values, dtype=dtype))
    shape = ir.Value(name=fresh(graph, f"{linear.output}_shape"), type=ir.TensorType(ir.DataType.INT64))
    filled = ir.Value(name=fresh(graph, f"{linear.output}_filled"), shape=out.shape, type=out.type)
    graph.insert_before(
        node, [ir.node("Shape", [like], outputs=[shape]), ir.node("Expand", [fill, shape], outputs=[filled])]
    )
    out.replace_all_uses_with(filled)


def _alike(labelling: Labelling, block: Block, linear: Linear) -> ir.Value:
    """A tensor from before the block that has the output projection's shape."""
    wanted = np.shape(labelling.values[linear.output])
    inputs = [block.value.input] if isinstance(block, AttentionBlock) else [up.input for up in block.up]
    for name in (*inputs, block.residual):
        if name is not None and name in labelling.values and np.shape(labelling.values[name]) == wanted:
            return find(labelling.model.graph, name)
    raise PlanError(
        f"{linear.output}: all its heads (neurons) are listed, and no tensor before it has its shape {wanted}; "
        "keep one, or remove the block"
    )


def find(graph: ir.Graph, name: str | None) -> ir.Value:
    """The value called `name`: a graph input, an initializer or a node's output."""
    for value in graph.inputs:
        if value.name == name:
            return value
    if name is not None and name in graph.initializers:
        return graph.initializers[name]
    for node in graph:
        for value in node.outputs:
            if value.name == name:
                return value
    raise PlanError(f"no tensor {name!r} in the graph; the plan or anatomy is another model's")
