"""Gates: run-time inputs of a graph that take heads, neurons and blocks out, or make attention hard, without a cut.

    x @ weight              -> (x * gate) @ weight          gate float[width]: 0 takes a head or neuron out
    quantised(x) @ weight   -> quantised(x * gate) @ weight x is the float tensor: a channel of zeros is exact there
    residual + branch       -> residual + branch * on       on float[1]
    softmax                 -> TopK at both of its sides, behind `If k < tokens`

x alone on this path is gated: what else reads it still reads x.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir

from axformer_passes.anatomy import AttentionBlock, Block
from axformer_passes.blocks import GatedBlock, gated_block, gated_place, projection_of, row_labels
from axformer_passes.cut import keep_largest, softmax_node
from axformer_passes.graph import find, fresh, initializer
from axformer_passes.operators import OPERANDS, data_side
from axformer_passes.recognise import Examined


def gate_all(graph: ir.Graph, examined: Examined) -> None:
    """Give every block of `graph`, a clone of the examined one, its gates."""
    for layer in examined.anatomy.layers:
        for block in layer.blocks:
            names = gated_block(examined, layer.index, block)
            _gate_rows(graph, examined, block, names)
            if names.on is not None:
                _gate_branch(graph, examined, block, names)
            if isinstance(block, AttentionBlock):
                _gate_k(graph, examined, block, names)


def _new_input(graph: ir.Graph, name: str, dtype: np.dtype[np.generic], length: int) -> ir.Value:
    kind = ir.DataType.from_numpy(dtype)
    value = ir.Value(name=name, shape=ir.Shape([length]), type=ir.TensorType(kind))
    graph.inputs.append(value)
    return value


def _gate_rows(graph: ir.Graph, examined: Examined, block: Block, names: GatedBlock) -> None:
    output = find(graph, projection_of(block)[1])
    product = output.producer()
    assert product is not None
    node, slot = gated_place(output)
    x = node.inputs[slot]
    assert x is not None
    gate = _new_input(graph, names.gate, np.dtype(names.dtype), names.width)
    shape = row_labels(examined, str(output.name)).shape
    if shape[-1] != names.width:
        gate = _step(graph, node, "Reshape", [gate, _constant(graph, gate, list(shape))], gate, "spread")
    if np.asarray(examined.labelling.values[str(x.name)]).dtype.kind in "iu":
        node.replace_input_with(slot, _gated_integers(graph, node, product, x, gate))
    else:
        node.replace_input_with(slot, _step(graph, node, "Mul", [x, gate], x, "gated"))


def _gated_integers(graph: ir.Graph, node: ir.Node, product: ir.Node, x: ir.Value, gate: ir.Value) -> ir.Value:
    """Integers whose gated channels are the zero point that the product reads: of a product that knows its scale
    QuantizeLinear(DequantizeLinear(x) * gate), else Where(gate, x, zero point), whose gates are
    switches: what is not 0 is 1."""
    if product.op_type not in OPERANDS:
        zero = product.inputs[2 + data_side(product)] if len(product.inputs) > 2 + data_side(product) else None
        if zero is None:
            assert x.dtype is not None
            zero = initializer(graph, f"{gate.name}_zero", np.zeros((), x.dtype.numpy()))
        on = ir.Value(name=fresh(graph, f"{gate.name}_on"), type=ir.TensorType(ir.DataType.BOOL))
        graph.insert_before(node, ir.node("Cast", [gate], {"to": int(ir.DataType.BOOL)}, outputs=[on]))
        return _step(graph, node, "Where", [on, x, zero], x, "integers")
    slot = OPERANDS[product.op_type][data_side(product)]
    scale = list(product.inputs[slot + 1 : slot + 3])
    floats = _step(graph, node, "DequantizeLinear", [x, *scale], gate, "floats")
    times = _step(graph, node, "Mul", [floats, gate], gate, "gated")
    return _step(graph, node, "QuantizeLinear", [times, *scale], x, "integers")


def _constant(graph: ir.Graph, like: ir.Value, values: list[int]) -> ir.Value:
    return initializer(graph, f"{like.name}_target", np.array(values, dtype=np.int64))


def _step(
    graph: ir.Graph, before: ir.Node, operator: str, inputs: list[ir.Value | None], like: ir.Value, suffix: str
) -> ir.Value:
    """A new node in front of `before`; its output is named after the first input and typed like `like`."""
    assert inputs[0] is not None
    out = ir.Value(name=fresh(graph, f"{inputs[0].name}_{suffix}"), type=like.type)
    graph.insert_before(before, ir.node(operator, inputs, outputs=[out]))
    return out


def _gate_branch(graph: ir.Graph, examined: Examined, block: Block, names: GatedBlock) -> None:
    node = find(graph, block.sum).producer()
    assert node is not None and names.on is not None
    slot = next(i for i, v in enumerate(node.inputs) if v is not None and v.name == block.branch)
    branch = node.inputs[slot]
    assert branch is not None
    on = _new_input(graph, names.on, np.dtype(names.dtype), 1)
    kind = ir.DataType.from_numpy(np.asarray(examined.labelling.values[str(branch.name)]).dtype)
    if kind != on.dtype:
        cast = ir.Value(name=fresh(graph, f"{names.on}_cast"), type=ir.TensorType(kind))
        graph.insert_before(node, ir.node("Cast", [on], {"to": int(kind)}, outputs=[cast]))
        on = cast
    node.replace_input_with(slot, _step(graph, node, "Mul", [branch, on], branch, "on"))


def _gate_k(graph: ir.Graph, examined: Examined, block: AttentionBlock, names: GatedBlock) -> None:
    dtype = np.asarray(examined.labelling.values[block.softmax]).dtype
    softmax = softmax_node(graph, block.softmax)
    scores = softmax.inputs[0]
    assert scores is not None
    k = _new_input(graph, names.k["renormalised"], np.dtype(np.int64), 1)
    nodes, masked = _if_smaller(graph, scores, k, np.full(1, -np.inf, dtype))
    graph.insert_before(softmax, nodes)
    softmax.replace_input_with(0, masked)
    probabilities = softmax.outputs[0]
    users = list(probabilities.uses())
    k = _new_input(graph, names.k["truncated"], np.dtype(np.int64), 1)
    nodes, masked = _if_smaller(graph, probabilities, k, np.zeros(1, dtype))
    graph.insert_after(softmax, nodes)
    for user, index in users:
        user.replace_input_with(index, masked)


def _if_smaller(
    graph: ir.Graph, x: ir.Value, k: ir.Value, fill: np.ndarray[tuple[int], np.dtype[np.generic]]
) -> tuple[list[ir.Node], ir.Value]:
    """If k < tokens: keep the k largest of x, else x itself."""
    last = initializer(graph, f"{x.name}_axis", np.array([-1], dtype=np.int64))

    def value(suffix: str) -> ir.Value:
        return ir.Value(name=fresh(graph, f"{x.name}_{suffix}"))

    shape, tokens, fewer, scalar, out = (value(s) for s in ("dims", "length", "fewer", "any", "kept"))
    inner, masked = keep_largest(graph, x, k, fill)
    same = ir.Value(name=fresh(graph, f"{x.name}_same"), type=x.type)
    hard = ir.Graph([], [masked], nodes=inner, name="hard")
    soft = ir.Graph([], [same], nodes=[ir.node("Identity", [x], outputs=[same])], name="soft")
    branches = {"then_branch": ir.AttrGraph("then_branch", hard), "else_branch": ir.AttrGraph("else_branch", soft)}
    nodes = [
        ir.node("Shape", [x], outputs=[shape]),
        ir.node("Gather", [shape, last], {"axis": 0}, outputs=[tokens]),
        ir.node("Less", [k, tokens], outputs=[fewer]),
        ir.node("Squeeze", [fewer], outputs=[scalar]),
        ir.Node("", "If", [scalar], list(branches.values()), outputs=[out]),
    ]
    return nodes, out


def bypass_all(graph: ir.Graph, examined: Examined) -> None:
    """sum = Identity(residual) for every block that can be taken out; names stay, so stages extract alike.

    Parallel blocks that are added to one another have one sum and share a stage, whose blocks are switched by gates.
    """
    sums = Counter(block.sum for layer in examined.anatomy.layers for block in layer.blocks)
    for layer in examined.anatomy.layers:
        for block in layer.blocks:
            if block.sum is None or sums[block.sum] > 1:
                continue
            total = find(graph, block.sum)
            node = total.producer()
            assert node is not None
            node_inputs = [v for v in node.inputs if v is not None and v.name != block.branch]
            name, total.name = total.name, fresh(graph, f"{total.name}_unused")
            out = ir.Value(name=name, shape=total.shape, type=total.type)
            graph.insert_after(node, ir.node("Identity", [node_inputs[0]], outputs=[out]))
            total.replace_all_uses_with(out, replace_graph_outputs=True)
