"""Gates and stages: score any plan without editing a graph.

The source is cut where blocks read the residual stream, into stages:

    prelude (embeddings, masks) | block | block | ... | read-out (pooler, classifier)

A stage starts at the residual operand of its block's addition, which is one rule for post-norm and pre-norm alike; parallel
blocks, which read one stream and are added to it together, share a stage. Each stage comes in several forms, which compute the
same tensors:

    plain    as in the source
    gated    x @ weight -> (x * gate) @ weight before the output projection, gate float[width] a run-time input: 0 takes a head or
             neuron out; branch * gate for the whole block where several blocks share a stage; TopK behind `If k < tokens` at both
             sides of the softmax, k int64[1] a run-time input
    bypass   sum = residual: the block is gone, at no cost
    weighed  weight and bias of the output projections are run-time inputs, called as the initializers (`weigh`)
    tuned    gated and weighed

so one set of sessions scores every plan, and what lies before the first changed block is reused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from axformer_passes.anatomy import AttentionBlock, Block
from axformer_passes.blocks import GatedBlock, gated_block, projection_of
from axformer_passes.graph import anchor, clone_of, find
from axformer_passes.io import Detached, detached
from axformer_passes.recognise import Examined, added_to
from axformer_passes.stages.gates import bypass_all, gate_all
from axformer_passes.stages.weight_inputs import weigh_all

Form = Literal["plain", "gated", "bypass", "weighed", "tuned"]
FORMS: tuple[Form, ...] = ("plain", "gated", "bypass", "weighed", "tuned")
NO_K = 2**31 - 1
"""The k that leaves attention as it is."""
_EDITS: Mapping[Form, tuple[Callable[[ir.Graph, Examined], None], ...]] = {
    "gated": (gate_all,),
    "bypass": (bypass_all,),
    "weighed": (weigh_all,),
    "tuned": (gate_all, weigh_all),
}


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
        self._levels = _numbering(examined)
        self._plain = detached(examined.labelling.model)
        self._wholes: dict[Form, _Whole] = {"plain": _Whole(self._plain)}
        self.graph_inputs = tuple(i.name for i in self._plain.proto.graph.input)
        self.graph_outputs = tuple(o.name for o in self._plain.proto.graph.output)
        self.stages = self._cut()

    def detached(self, stage: Stage, form: Form) -> Detached:
        """One stage in one form, its large weights shared with the source. Inputs and outputs are called as there."""
        whole = self._whole(form)
        proto = _extract(whole, stage, self.examined, form)
        weights = whole.detached.weights
        large = {t.name: weights[t.name] for t in proto.graph.initializer if t.name in weights}
        return Detached(proto, whole.detached.folder, large)

    def made_in(self, stage: Stage) -> frozenset[str]:
        """The tensors that the nodes of a stage make."""
        return frozenset(name for name, level in self._levels.made_in.items() if level == stage.index)

    def serialized(self, stage: Stage, form: Form) -> bytes:
        """As `detached`, in ONNX bytes with all weights inside."""
        return self.detached(stage, form).serialized()

    def _whole(self, form: Form) -> _Whole:
        if form not in self._wholes:
            clone = clone_of(self.examined.labelling.model)
            for edit in _EDITS[form]:
                edit(clone.graph, self.examined)
            self._wholes[form] = _Whole(detached(clone))
        return self._wholes[form]

    def _cut(self) -> tuple[Stage, ...]:
        levels = self._levels
        consts = {t.name for t in self._plain.proto.graph.initializer}
        count = max(levels.of_node.values()) + 1
        inputs: list[dict[str, None]] = [{} for _ in range(count)]
        outputs: list[dict[str, None]] = [{} for _ in range(count)]
        for node in self._plain.proto.graph.node:
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
            for block in layer.blocks:
                for level in self._stages_of(block):
                    blocks[level].append(gated_block(self.examined, layer.index, block))
        return blocks

    def _stages_of(self, block: Block) -> list[int]:
        """Where a block's gates stand: one stage, two where its sum lies behind another's (parallel branches)."""
        names = [projection_of(block)[1], block.sum, block.softmax if isinstance(block, AttentionBlock) else None]
        return sorted({self._levels.of_node[name] for name in names if name is not None})


# -- numbering ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Numbering:
    """of_node: stage of each node by anchor (-1: constants alone); made_in: stage that makes each tensor."""

    of_node: dict[str, int]
    made_in: dict[str, int]


def _numbering(examined: Examined) -> _Numbering:
    """A node's stage is the last boundary that it depends on; a boundary that no node stands behind is none."""
    graph = examined.labelling.model.graph
    boundaries = {str(v.name): 0 for v in graph.inputs}  # a block on a graph input stands in the prelude
    for name in _streams(examined):
        boundaries.setdefault(name, len(boundaries))
    seen = {str(v.name): 0 for v in graph.inputs}
    made_in, of_node = dict(seen), {}
    for node in graph:
        level = max((seen.get(str(v.name), -1) for v in _inputs(node)), default=-1)
        of_node[anchor(node)] = level
        for value in node.outputs:
            name = str(value.name)
            made_in[name] = level
            seen[name] = max(level, boundaries.get(name, -1))
    number = {level: i for i, level in enumerate(sorted({0, *of_node.values()} - {-1}))} | {-1: -1}
    return _Numbering(*({name: number[level] for name, level in each.items()} for each in (of_node, made_in)))


def _streams(examined: Examined) -> list[str]:
    """For each block that can be taken out, the residual stream at its start, in order of layers.

    Where attention and feed-forward are parallel, and added to one another first, neither has the stream for its residual: the
    stream is what their sum is added to.

        attended + fed -> + stream
    """
    blocks = [block for layer in examined.anatomy.layers for block in layer.blocks if block.sum is not None]
    branches = {block.branch for block in blocks}
    found = []
    for block in blocks:
        stream, total = str(block.residual), find(examined.labelling.model.graph, str(block.sum))
        while stream in branches and (behind := added_to(total)) is not None:
            stream, total = str(behind[0].name), behind[1]
        found.append(stream)
    return found


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


# -- extraction -----------------------------------------------------------------------------------------------------


class _Whole:
    """The graph in one form, indexed once, so that a stage costs no more than its own nodes.

    made_by, weights, inputs    the numbers of nodes, by what they make; of initializers; of graph inputs
    """

    def __init__(self, whole: Detached) -> None:
        self.detached = whole
        graph = whole.proto.graph
        self.made_by = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
        self.weights = {tensor.name: i for i, tensor in enumerate(graph.initializer)}
        self.inputs = {value.name: i for i, value in enumerate(graph.input)}


def _extract(whole: _Whole, stage: Stage, examined: Examined, form: Form) -> onnx.ModelProto:
    """The nodes between a stage's inputs and outputs, with the initializers that they read."""
    source, given = whole.detached.proto, set(stage.inputs)
    wanted, read = _between(whole, stage)
    graph = onnx.GraphProto(name=f"stage_{stage.index}_{form}")
    graph.node.extend(source.graph.node[i] for i in sorted(wanted))
    graph.initializer.extend(
        source.graph.initializer[i] for i in sorted(whole.weights[n] for n in read & whole.weights.keys())
    )
    own = sorted((n for n in read - given if n in whole.inputs), key=whole.inputs.__getitem__)
    shapes = {node.input[i] for node in graph.node if (i := _SHAPE_AT.get(node.op_type, 9)) < len(node.input)}
    for name in (*(n for n in stage.inputs if n in read), *own):
        known = name in examined.labelling.values
        said = _info(name, examined, fixed=name in shapes) if known else source.graph.input[whole.inputs[name]]
        graph.input.append(said)
    graph.output.extend(_info(name, examined) for name in stage.outputs)
    model = onnx.ModelProto(ir_version=source.ir_version, graph=graph)
    model.opset_import.extend(source.opset_import)
    return model


def _between(whole: _Whole, stage: Stage) -> tuple[set[int], set[str]]:
    """(nodes that make a stage's outputs of its inputs, what they read that none of them makes)."""
    nodes, given = whole.detached.proto.graph.node, set(stage.inputs)
    wanted, queue, read = set[int](), list(stage.outputs), set[str]()
    while queue:
        name = queue.pop()
        if name in given or name in whole.inputs or name not in whole.made_by:
            read.add(name)
        elif whole.made_by[name] not in wanted:
            wanted.add(whole.made_by[name])
            queue.extend(_reads(nodes[whole.made_by[name]]))
    return wanted, read


_SHAPE_AT = {"Reshape": 1, "Expand": 1, "Tile": 1, "ConstantOfShape": 0}
"""Which input of an operator says how many axes its output has."""


def _info(name: str, examined: Examined, *, fixed: bool = False) -> onnx.ValueInfoProto:
    """`fixed`: its length is a number of axes, without which a runtime that plans ahead (OpenVINO) does not load a stage."""
    array = np.asarray(examined.labelling.values[name])
    kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    return onnx.helper.make_tensor_value_info(name, kind, array.shape if fixed else [None] * array.ndim)


__all__ = ["FORMS", "NO_K", "Form", "GatedBlock", "Stage", "Staged"]
