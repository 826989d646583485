"""What a graph costs: multiply-accumulates and parameters, counted from shapes.

macs     multiply-accumulates of MatMul, Gemm, Conv, Einsum and their integer forms at one batch and length;
         fused operators count as their primitive steps (`fused`)
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir

from axformer_passes.anatomy import Anatomy, AttentionBlock, FeedForwardBlock
from axformer_passes.graph import find, origin
from axformer_passes.io import detached
from axformer_passes.operators import record_of
from axformer_passes.prepare import prepared
from axformer_passes.probe import Runner, probe_feeds, widening


def macs(model: ir.Model, runner: Runner, batch: int = 1, length: int = 128) -> int:
    """Multiply-accumulates of one run at [batch, length]. Lookups and elementwise work count 0."""
    return sum(macs_by_node(model, runner, batch, length).values())


def macs_by_node(model: ir.Model, runner: Runner, batch: int = 1, length: int = 128) -> dict[str, int]:
    """Multiply-accumulates of each counted node of the prepared graph, by the name of its first output."""
    return _macs_by_node(prepared(model), runner, batch, length)


def _macs_by_node(model: ir.Model, runner: Runner, batch: int, length: int) -> dict[str, int]:
    nodes = [node for node in model.graph if record_of(node).cost is not None]
    shapes = _shapes(model, nodes, runner, batch, length)

    def shape(value: ir.Value | None) -> tuple[int, ...]:
        found = origin(value)
        if found is not None and found.value.const_value is not None:
            dims = [int(n) for n in found.value.const_value.shape]  # type: ignore[arg-type]
            return tuple(dims[a] for a in found.axes)
        return shapes[str(value.name)] if value is not None else ()

    return {
        str(node.outputs[0].name): _node_macs(node, [shape(v) for v in node.inputs], shape(node.outputs[0]))
        for node in nodes
    }


def _shapes(
    model: ir.Model, nodes: list[ir.Node], runner: Runner, batch: int, length: int
) -> dict[str, tuple[int, ...]]:
    graph = detached(model)
    proto = graph.proto
    feeds = probe_feeds(model, batch=batch, tokens=length)
    known = {output.name for output in proto.graph.output}
    values = {v.name: v for node in nodes for v in (*node.inputs, node.outputs[0]) if v is not None and v.name}
    inputs = {v.name for v in model.graph.inputs}
    for name, value in values.items():
        if name not in known and name not in inputs and origin(value) is None:
            proto.graph.output.append(onnx.ValueInfoProto(name=name))
    found = {**feeds, **widening(runner)(graph, feeds)}
    return {name: tuple(np.shape(array)) for name, array in found.items()}


def _node_macs(node: ir.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
    counted = record_of(node).cost
    return counted(node, inputs, output) if counted is not None else 0


@dataclasses.dataclass(frozen=True)
class Share:
    """What one block holds and costs: parameters of its projections, multiply-accumulates, share of the whole graph's."""

    layer: int
    kind: str
    parameters: int
    macs: int
    share: float


def shares(model: ir.Model, anatomy: Anatomy, runner: Runner, batch: int = 1, length: int = 128) -> tuple[Share, ...]:
    """One Share for every recognised block, in graph order."""
    model = prepared(model)
    by_node = _macs_by_node(model, runner, batch, length)
    total = max(1, sum(by_node.values()))
    found: list[tuple[int, str, AttentionBlock | FeedForwardBlock]] = []
    for layer in anatomy.layers:
        if layer.attention is not None:
            found.append((layer.index, "attention", layer.attention))
        if layer.feed_forward is not None:
            found.append((layer.index, "feed_forward", layer.feed_forward))
    result = []
    for index, kind, block in found:
        count = (
            _attention_macs(model, block, by_node) if isinstance(block, AttentionBlock) else _feed_macs(block, by_node)
        )
        result.append(Share(index, kind, _parameters(block), count, count / total))
    return tuple(result)


def _linears(block: AttentionBlock | FeedForwardBlock) -> list[tuple[int, int, bool]]:
    parts = (
        [block.query, block.key, block.value, block.output]
        if isinstance(block, AttentionBlock)
        else [*block.up, block.down]
    )
    return [(p.rows, p.columns, p.bias is not None) for p in parts]


def _parameters(block: AttentionBlock | FeedForwardBlock) -> int:
    return sum(rows * columns + (columns if bias else 0) for rows, columns, bias in _linears(block))


def _feed_macs(block: FeedForwardBlock, by_node: dict[str, int]) -> int:
    return sum(by_node.get(p.output, 0) for p in (*block.up, block.down))


def _attention_macs(model: ir.Model, block: AttentionBlock, by_node: dict[str, int]) -> int:
    projections = {p.output for p in (block.query, block.key, block.value, block.output)}
    return sum(by_node.get(name, 0) for name in projections | _around(model, block))


def _around(model: ir.Model, block: AttentionBlock) -> set[str]:
    """The score and context products next to the softmax."""
    node = find(model.graph, block.softmax).producer()
    if node is None:
        return set()
    found = set[str]()
    behind = [node.inputs[0]]
    while behind:
        value = behind.pop()
        producer = value.producer() if value is not None else None
        if producer is None:
            continue
        if record_of(producer).cost is not None:
            found.add(str(producer.outputs[0].name))
        else:
            behind.extend(producer.inputs[:1])
    ahead = [node.outputs[0]]
    while ahead:
        for user in ahead.pop().consumers():
            if record_of(user).cost is not None:
                found.add(str(user.outputs[0].name))
            elif user.op_type not in ("Shape", "Size"):
                ahead.append(user.outputs[0])
    return found
