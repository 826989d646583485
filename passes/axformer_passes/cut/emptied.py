"""A block without heads (neurons): its output projection becomes its bias, for every token.

before  y[.., D] = context[.., 0] @ weight[0, D] (+ bias)
after   y[.., D] = Expand(bias or 0, [Shape(x)[:-1], D]), x[.., D'] a tensor from before the block with the same tokens;
        where y has its tokens flattened, Reshape([-1, D]) behind it
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.anatomy import AttentionBlock, Block, Linear
from axformer_passes.errors import PlanError
from axformer_passes.graph import find, fresh, initializer
from axformer_passes.operators import INTEGER_PRODUCTS, rescaled
from axformer_passes.recognise import Labelling


def keep_only_bias(labelling: Labelling, block: Block) -> None:
    """Replace the output projection of `block` in place. An integer product is replaced behind its scales.

    Raises: PlanError where no tensor from before the block has its tokens.
    """
    linear = block.output if isinstance(block, AttentionBlock) else block.down
    graph = labelling.model.graph
    node = find(graph, linear.output).producer()
    assert node is not None
    out = rescaled(node) if node.op_type in INTEGER_PRODUCTS else node.outputs[0]
    like = _alike(labelling, block, linear)
    fill = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if fill is None:
        zeros = np.zeros(linear.columns, labelling.values[str(out.name)].dtype)
        fill = initializer(graph, f"{linear.output}_fill", zeros)

    def build(kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        made = ir.Value(name=fresh(graph, f"{linear.output}_filled"))
        graph.insert_before(node, ir.node(kind, list(inputs), attributes, outputs=[made]))
        return made

    def whole(*numbers: int) -> ir.Value:
        return initializer(graph, f"{linear.output}_of", np.array(numbers, dtype=np.int64))

    wanted, tokens = np.shape(labelling.values[str(out.name)]), np.shape(labelling.values[str(like.name)])
    shape = build("Shape", like)
    if tokens[-1] != wanted[-1]:
        shape = build("Concat", build("Slice", shape, whole(0), whole(-1)), whole(wanted[-1]), axis=0)
    filled = build("Expand", fill, shape)
    if len(tokens) != len(wanted):
        filled = build("Reshape", filled, whole(-1, wanted[-1]))
    filled.shape, filled.type = out.shape, out.type
    out.replace_all_uses_with(filled)


def _alike(labelling: Labelling, block: Block, linear: Linear) -> ir.Value:
    """A tensor from before the block with the output projection's tokens: the queries' side, for keys may be of other tokens."""
    wanted = np.shape(labelling.values[linear.output])
    inputs = [block.query.input] if isinstance(block, AttentionBlock) else [up.input for up in block.up]
    names = [name for name in (*inputs, block.residual) if name is not None and name in labelling.values]
    shapes = {name: np.shape(labelling.values[name]) for name in names}
    flat = (int(np.prod(wanted[:-1], dtype=np.int64)),)
    for tokens in (wanted, wanted[:-1], flat):
        for name, shape in shapes.items():
            lead = (int(np.prod(shape[:-1], dtype=np.int64)),) if tokens is flat and len(wanted) == 2 else shape[:-1]
            if tokens in (shape, lead):
                return find(labelling.model.graph, name)
    raise PlanError(
        f"{linear.output}: all its heads (neurons) are listed, and no tensor before it has its tokens {wanted[:-1]}; "
        "keep one, or remove the block"
    )
