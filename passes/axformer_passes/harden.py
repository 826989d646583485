"""Hard attention: per query row the K largest survive (METHOD.md 1.1), in standard operators.

Shapes: B batch, H heads, S query tokens, T key tokens; k = min(K, T), computed in the graph.

    truncated     p = Softmax(s)                        -> scatter(0, TopK(p, k))              no renormalisation
    renormalised  p = Softmax(s)                        -> Softmax(scatter(-inf, TopK(s, k)))  the survivors sum to 1
    fused         Attention(q, k, v, mask)              -> its primitive operators first, then as above

`scatter(c, values, indices)` writes the survivors into a tensor full of c, so exactly k survive; TopK with sorted=1 gives ties
to the lower index. Masked scores are the lowest of their row, so padding survives only where there are fewer than k real tokens,
and then with probability 0.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.anatomy import Anatomy
from axformer_passes.decompose import decompose_attention
from axformer_passes.errors import PlanError
from axformer_passes.plan import Hard, Mode, Plan
from axformer_passes.prepare import fresh, initializer
from axformer_passes.prune import find

_OPSET = 11


class Harden(ir.passes.InPlacePass):
    """Give the layers of `plan.hard_attention` their TopK. Softmax tensors are found by their names in the source."""

    def __init__(self, anatomy: Anatomy, plan: Plan, dtypes: dict[int, np.dtype[np.generic]]) -> None:
        self.anatomy = anatomy
        self.plan = plan
        self.dtypes = dtypes

    def requires(self, model: ir.Model) -> None:
        """The plan fits the anatomy."""
        self.plan.validate(self.anatomy)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Edit `model` in place."""
        done = 0
        for index, hard in sorted(self.plan.hard_attention.items()):
            block = self.anatomy.layers[index].attention
            if block is None or index in self.plan.attention_blocks or _all_heads_gone(self.plan, self.anatomy, index):
                continue
            harden(model.graph, block.softmax, hard, self.dtypes[index])
            done += 1
        return ir.passes.PassResult(model, modified=done > 0)


def require_hardenable(model: ir.Model, plan: Plan) -> None:
    """Raise PlanError where the plan hardens and the operator set has no TopK that says how ties end."""
    opset = model.opset_imports.get("", 0)
    if plan.hard_attention and opset < _OPSET:
        raise PlanError(
            f'"hard_attention" needs operator set {_OPSET} (TopK with `sorted`), the model has {opset}; export again'
        )


def _all_heads_gone(plan: Plan, anatomy: Anatomy, index: int) -> bool:
    block = anatomy.layers[index].attention
    return block is not None and len(plan.heads.get(index, ())) == block.heads


def harden(graph: ir.Graph, softmax: str, hard: Hard, dtype: np.dtype[np.generic]) -> None:
    """Insert constant-K hard attention at the softmax whose output is called `softmax`."""
    node = softmax_node(graph, softmax)
    k = initializer(graph, f"{softmax}_k", np.array([hard.k], dtype=np.int64))
    survivors(graph, node, k, hard.mode, dtype)


def softmax_node(graph: ir.Graph, name: str) -> ir.Node:
    """The Softmax node whose output is `name`; a fused Attention node is decomposed first."""
    node = find(graph, name).producer()
    assert node is not None
    return decompose_attention(graph, node) if node.op_type == "Attention" else node


def survivors(graph: ir.Graph, softmax: ir.Node, k: ir.Value, mode: Mode, dtype: np.dtype[np.generic]) -> ir.Value:
    """Put TopK at the output (truncated) or input (renormalised) of `softmax`; returns the masked tensor."""
    if mode == "truncated":
        source = softmax.outputs[0]
        users = list(source.uses())
        nodes, masked = keep_largest(graph, source, k, np.zeros(1, dtype))
        graph.insert_after(softmax, nodes)
        for user, index in users:
            user.replace_input_with(index, masked)
    else:
        scores = softmax.inputs[0]
        assert scores is not None
        nodes, masked = keep_largest(graph, scores, k, np.full(1, -np.inf, dtype))
        graph.insert_before(softmax, nodes)
        softmax.replace_input_with(0, masked)
    return masked


def keep_largest(
    graph: ir.Graph, x: ir.Value, k: ir.Value, fill: np.ndarray[tuple[int], np.dtype[np.generic]]
) -> tuple[list[ir.Node], ir.Value]:
    """Nodes (not yet in the graph) that keep the k largest of x's last axis and write `fill` elsewhere."""
    last = initializer(graph, f"{x.name}_last", np.array([-1], dtype=np.int64))
    int64 = ir.TensorType(ir.DataType.INT64)

    def value(suffix: str, type_: ir.TypeProtocol | None) -> ir.Value:
        return ir.Value(name=fresh(graph, f"{x.name}_{suffix}"), type=type_)

    shape, tokens, clamped = value("shape", int64), value("tokens", int64), value("k_clamped", int64)
    fewer = value("k_fewer", ir.TensorType(ir.DataType.BOOL))
    largest, indices = value("largest", x.type), value("indices", int64)
    empty, masked = value("empty", x.type), value("hard", x.type)
    nodes = [
        ir.node("Shape", [x], outputs=[shape]),
        ir.node("Gather", [shape, last], {"axis": 0}, outputs=[tokens]),
        ir.node(
            "Less", [k, tokens], outputs=[fewer]
        ),  # min(k, tokens): Min takes integers only from operator set 12 on
        ir.node("Where", [fewer, k, tokens], outputs=[clamped]),
        ir.node("TopK", [x, clamped], {"axis": -1, "largest": 1, "sorted": 1}, outputs=[largest, indices]),
        ir.node("ConstantOfShape", [shape], {"value": ir.tensor(fill)}, outputs=[empty]),
        ir.node("ScatterElements", [empty, indices, largest], {"axis": -1}, outputs=[masked]),
    ]
    return nodes, masked
