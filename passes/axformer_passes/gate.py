"""Gates and stages: score any plan without editing a graph.

The source is cut where blocks read the residual stream, into stages:

    prelude (embeddings, masks) | block | block | ... | read-out (pooler, classifier)

A stage starts at the residual operand of its block's addition, which is one rule for post-norm and pre-norm alike. Each stage
comes in three forms, which compute the same tensors:

    plain    as in the source
    gated    x @ weight -> (x * gate) @ weight before the output projection, gate float[width] a run-time input: 0 takes a head or
             neuron out; branch * gate for the whole block where several blocks share a stage; TopK behind `If k < tokens` at both
             sides of the softmax, k int64[1] a run-time input
    bypass   sum = residual: the block is gone, at no cost

so one set of sessions scores every plan, and what lies before the first changed block is reused.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from axformer_passes.anatomy import AttentionBlock, FeedForwardBlock
from axformer_passes.errors import RecogniseError
from axformer_passes.harden import keep_largest, softmax_node
from axformer_passes.labels import anchor
from axformer_passes.prepare import fresh, initializer, origin
from axformer_passes.prune import Block, find
from axformer_passes.recognise import Examined

Form = Literal["plain", "gated", "bypass"]
FORMS: tuple[Form, ...] = ("plain", "gated", "bypass")
NO_K = 2**31 - 1
"""The k that leaves attention as it is."""


@dataclasses.dataclass(frozen=True)
class GatedBlock:
    """One block of a stage and the names of its run-time inputs.

    layer, kind   kind is "attention" or "feed_forward"
    gate          float[width] over the inputs of the output projection
    on            float[1] that multiplies the branch (1: there); None where the block cannot be taken out
    positions     per head (neuron): its positions in `gate`
    k             {"truncated": name, "renormalised": name}; empty for feed-forward
    dtype         element type of the gates
    """

    layer: int
    kind: Literal["attention", "feed_forward"]
    gate: str
    on: str | None
    positions: tuple[tuple[int, ...], ...]
    k: dict[str, str]
    dtype: str

    @property
    def width(self) -> int:
        """Length of `gate`."""
        return sum(map(len, self.positions))


@dataclasses.dataclass(frozen=True)
class Stage:
    """A piece of the graph: what it reads, what later pieces read of it, and which blocks stand in it."""

    index: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    blocks: tuple[GatedBlock, ...]

    @property
    def can_bypass(self) -> bool:
        """Is the bypass form this stage with its only block taken out?"""
        return len(self.blocks) == 1 and self.blocks[0].on is not None


class Staged:
    """The stages of one examined model; `model(stage, form)` builds the graphs, when they are first asked for."""

    def __init__(self, examined: Examined) -> None:
        self.examined = examined
        self._levels = _levels(examined)
        self._protos: dict[Form, onnx.ModelProto] = {}
        self._plain = ir.to_proto(examined.labelling.model)
        self.graph_inputs = tuple(i.name for i in self._plain.graph.input)
        self.graph_outputs = tuple(o.name for o in self._plain.graph.output)
        self.stages = self._cut()

    def serialized(self, stage: Stage, form: Form) -> bytes:
        """The ONNX bytes of one stage in one form. Inputs and outputs are called as in the source graph."""
        whole = self._whole(form)
        return bytes(_extract(whole, stage, self.examined, form).SerializeToString())

    def _whole(self, form: Form) -> onnx.ModelProto:
        if form == "plain":
            return self._plain
        if form not in self._protos:
            clone = self.examined.labelling.model.clone()
            edit = _gate_all if form == "gated" else _bypass_all
            edit(clone.graph, self.examined)
            self._protos[form] = ir.to_proto(clone)
        return self._protos[form]

    def _cut(self) -> tuple[Stage, ...]:
        levels = self._levels
        consts = {t.name for t in self._plain.graph.initializer}
        count = max(levels.of_node.values()) + 1
        inputs: list[dict[str, None]] = [{} for _ in range(count)]
        outputs: list[dict[str, None]] = [{} for _ in range(count)]
        for node in self._plain.graph.node:
            level = levels.of_node[node.output[0]]
            for name in _reads(node):
                made = levels.made_in.get(name)
                if name in consts or level < 0 or made is None or made < 0 or made == level:
                    continue
                inputs[level][name] = None
                if name not in self.graph_inputs:
                    outputs[made][name] = None
        for name in self.graph_outputs:
            outputs[max(0, levels.made_in[name])][name] = None
        blocks = self._blocks_by_level(count)
        return tuple(Stage(i, tuple(inputs[i]), tuple(outputs[i]), tuple(blocks[i])) for i in range(count))

    def _blocks_by_level(self, count: int) -> list[list[GatedBlock]]:
        blocks: list[list[GatedBlock]] = [[] for _ in range(count)]
        for layer in self.examined.anatomy.layers:
            found: list[Block] = ([layer.attention] if layer.attention else []) + list(layer.feed_forwards)
            for block in found:
                for level in self._stages_of(block):
                    blocks[level].append(_gated(self.examined, layer.index, block))
        return blocks

    def _stages_of(self, block: Block) -> list[int]:
        """Where a block's gates stand: one stage, two where its sum lies behind another's (parallel branches)."""
        names = [_projection(block)[1], block.sum, block.softmax if isinstance(block, AttentionBlock) else None]
        return sorted({self._levels.of_node[name] for name in names if name is not None})


# -- levels ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Levels:
    """of_node: stage of each node by anchor (-1: constants alone); made_in: stage that makes each tensor."""

    of_node: dict[str, int]
    made_in: dict[str, int]


def _levels(examined: Examined) -> _Levels:
    """A node's stage is the last boundary that it depends on."""
    graph = examined.labelling.model.graph
    boundaries = {str(v.name): 0 for v in graph.inputs}  # a block on a graph input stands in the prelude
    for layer in examined.anatomy.layers:
        blocks = ([layer.attention] if layer.attention else []) + list(layer.feed_forwards)
        for block in blocks:
            if block.residual is not None and block.residual not in boundaries:
                boundaries[block.residual] = max(boundaries.values()) + 1
    seen = {str(v.name): 0 for v in graph.inputs}
    made_in, of_node = dict(seen), {}
    for node in graph:
        level = max((seen.get(str(v.name), -1) for v in _inputs(node)), default=-1)
        of_node[anchor(node)] = level
        for value in node.outputs:
            name = str(value.name)
            made_in[name] = level
            seen[name] = max(level, boundaries.get(name, -1))
    return _Levels(of_node, made_in)


def _inputs(node: ir.Node) -> list[ir.Value]:
    """What a node reads, its subgraphs included."""
    found = [v for v in node.inputs if v is not None]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            inner = attribute.as_graph()
            found += [v for n in inner.all_nodes() for v in n.inputs if v is not None]
    return found


def _reads(node: onnx.NodeProto) -> list[str]:
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names += [name for inner in attribute.g.node for name in _reads(inner)]
    return names


# -- gates ----------------------------------------------------------------------------------------------------------


def _projection(block: Block) -> tuple[str, str]:
    """(kind, output of the output projection)."""
    if isinstance(block, AttentionBlock):
        return "attention", block.output.output
    return "feed_forward", block.down.output


def _gated(examined: Examined, layer: int, block: Block) -> GatedBlock:
    kind, output = _projection(block)
    number = 0
    if isinstance(block, FeedForwardBlock):
        number = examined.anatomy.layers[layer].feed_forwards.index(block)
    base = f"axformer:{layer}:{kind}" + (f":{number}" if number else "")
    labelling = examined.labelling
    product = next(p for p in labelling.products if anchor(p.node) == output)
    assert product.rows is not None
    rows = labelling.roots[product.rows.first + np.arange(product.rows.size)]
    classes = examined.head_classes[layer] if kind == "attention" else examined.neuron_classes[layer][number]
    place = {c: i for i, c in enumerate(classes)}
    positions: list[list[int]] = [[] for _ in classes]
    for position, c in enumerate(rows.tolist()):
        positions[place[c]].append(position)
    return GatedBlock(
        layer=layer,
        kind=kind,  # type: ignore[arg-type]
        gate=f"{base}:gate",
        on=f"{base}:on" if block.sum is not None else None,
        positions=tuple(map(tuple, positions)),
        k={mode: f"{base}:k_{mode}" for mode in ("truncated", "renormalised")} if kind == "attention" else {},
        dtype=str(np.asarray(labelling.values[output]).dtype),
    )


def _gate_all(graph: ir.Graph, examined: Examined) -> None:
    for layer in examined.anatomy.layers:
        blocks: list[Block] = ([layer.attention] if layer.attention else []) + list(layer.feed_forwards)
        for block in blocks:
            names = _gated(examined, layer.index, block)
            _gate_rows(graph, block, names)
            if names.on is not None:
                _gate_branch(graph, block, names)
            if isinstance(block, AttentionBlock):
                _gate_k(graph, block, names)


def _new_input(graph: ir.Graph, name: str, dtype: np.dtype[np.generic], length: int) -> ir.Value:
    kind = ir.DataType.from_numpy(dtype)
    value = ir.Value(name=name, shape=ir.Shape([length]), type=ir.TensorType(kind))
    graph.inputs.append(value)
    return value


def _gate_rows(graph: ir.Graph, block: Block, names: GatedBlock) -> None:
    _, output = _projection(block)
    node = find(graph, output).producer()
    assert node is not None
    slot = 1 if origin(node.inputs[0]) is not None else 0
    flipped = slot == 1 or (node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1)
    if flipped:
        raise RecogniseError(f"{output}: the channels of the output projection's input are not its last axis")
    x = node.inputs[slot]
    assert x is not None
    gate = _new_input(graph, names.gate, np.dtype(names.dtype), names.width)
    out = ir.Value(name=fresh(graph, f"{x.name}_gated"), type=x.type)
    graph.insert_before(node, ir.node("Mul", [x, gate], outputs=[out]))
    node.replace_input_with(slot, out)


def _gate_branch(graph: ir.Graph, block: Block, names: GatedBlock) -> None:
    node = find(graph, block.sum).producer()
    assert node is not None and names.on is not None
    slot = next(i for i, v in enumerate(node.inputs) if v is not None and v.name == block.branch)
    branch = node.inputs[slot]
    assert branch is not None
    on = _new_input(graph, names.on, np.dtype(names.dtype), 1)
    out = ir.Value(name=fresh(graph, f"{branch.name}_on"), type=branch.type)
    graph.insert_before(node, ir.node("Mul", [branch, on], outputs=[out]))
    node.replace_input_with(slot, out)


def _gate_k(graph: ir.Graph, block: AttentionBlock, names: GatedBlock) -> None:
    softmax = softmax_node(graph, block.softmax)
    dtype = np.dtype(names.dtype)
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


def _bypass_all(graph: ir.Graph, examined: Examined) -> None:
    """sum = Identity(residual) for every block that can be taken out; names stay, so stages extract alike."""
    for layer in examined.anatomy.layers:
        blocks: list[Block] = ([layer.attention] if layer.attention else []) + list(layer.feed_forwards)
        for block in blocks:
            if block.sum is None:
                continue
            total = find(graph, block.sum)
            node = total.producer()
            assert node is not None
            node_inputs = [v for v in node.inputs if v is not None and v.name != block.branch]
            name, total.name = total.name, fresh(graph, f"{total.name}_unused")
            out = ir.Value(name=name, shape=total.shape, type=total.type)
            graph.insert_after(node, ir.node("Identity", [node_inputs[0]], outputs=[out]))
            total.replace_all_uses_with(out, replace_graph_outputs=True)


# -- extraction -----------------------------------------------------------------------------------------------------


def _extract(whole: onnx.ModelProto, stage: Stage, examined: Examined, form: Form) -> onnx.ModelProto:
    """The nodes between a stage's inputs and outputs, with the initializers that they read."""
    made_by = {name: i for i, node in enumerate(whole.graph.node) for name in node.output if name}
    stop = set(stage.inputs) | {i.name for i in whole.graph.input}
    wanted, queue, read = set[int](), [n for n in stage.outputs if n not in stop], set[str]()
    while queue:
        name = queue.pop()
        if name in stop or name not in made_by:
            read.add(name)
            continue
        if made_by[name] not in wanted:
            wanted.add(made_by[name])
            queue.extend(_reads(whole.graph.node[made_by[name]]))
    read |= stop & {n for i in wanted for n in _reads(whole.graph.node[i])} | (set(stage.outputs) & stop)
    graph = onnx.GraphProto(name=f"stage_{stage.index}_{form}")
    graph.node.extend(whole.graph.node[i] for i in sorted(wanted))
    graph.initializer.extend(t for t in whole.graph.initializer if t.name in read)
    new = {i.name: i for i in whole.graph.input}
    for name in (*stage.inputs, *(n for n in new if n not in stage.inputs)):
        if name in read:
            graph.input.append(_info(name, examined) if name in examined.labelling.values else new[name])
    graph.output.extend(_info(name, examined) for name in stage.outputs)
    model = onnx.ModelProto(ir_version=whole.ir_version, graph=graph)
    model.opset_import.extend(whole.opset_import)
    return model


def _info(name: str, examined: Examined) -> onnx.ValueInfoProto:
    array = np.asarray(examined.labelling.values[name])
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, [None] * array.ndim)
