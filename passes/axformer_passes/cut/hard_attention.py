"""Hard attention: per query row the K largest survive (docs/method.md 1.1), in standard operators.

Shapes: B batch, H heads, S query tokens, T key tokens; k survivors.

    truncated     p = Softmax(s)    -> scatter(0, TopK(p))               no renormalisation
    renormalised  p = Softmax(s)    -> Softmax(scatter(-inf, TopK(s)))   the survivors sum to 1
    k = T         scatter writes the largest over itself, in p (s): no bit changes

`scatter(c, values, indices)` writes the survivors into a tensor full of c, so exactly k survive; TopK with sorted=1 gives ties
to the lower index. Masked scores are the lowest of their row, so padding survives only where there are fewer than k real tokens,
and then with probability 0. docs/hard-attention.md has the forms that were tried, and the figures.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from axformer_passes.anatomy import Anatomy
from axformer_passes.errors import PlanError
from axformer_passes.graph import find, fresh, initializer
from axformer_passes.plan import Hard, Mode, Plan

_OPSET = 11
_SHAPE_START = 15
"""The operator set from which on Shape can read one axis alone."""
_SORTED = {"axis": -1, "largest": 1, "sorted": 1}
_INT64, _BOOL = ir.TensorType(ir.DataType.INT64), ir.TensorType(ir.DataType.BOOL)
Fill = np.ndarray[tuple[int], np.dtype[np.generic]]


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
    """The Softmax node whose output is `name`."""
    node = find(graph, name).producer()
    assert node is not None
    return node


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


def keep_largest(graph: ir.Graph, x: ir.Value, k: ir.Value, fill: Fill) -> tuple[list[ir.Node], ir.Value]:
    """Nodes (not yet in the graph) that keep the k largest of x's last axis and write `fill`, no larger than any, elsewhere.

    before  x[..,T]
    after   x[..,T] -> TopK(k) -> ScatterElements(Min(x, fill))         k < T
                    -> TopK(1) -> ScatterElements(Min(x, inf)), is x    k >= T: TopK of all would sort them
    TopK takes no bfloat16: x goes through float32 there, which is exact.
    """
    if fill.dtype == ir.DataType.BFLOAT16.numpy():
        return _through_float32(graph, x, k, fill.astype(np.float32))
    draft = _Draft(graph, str(x.name))
    fewer = _fewer(draft, x, k)
    count = draft("Where", [fewer, k, draft.constant("k_one", np.ones(1, np.int64))], "k_clamped", _INT64)
    # without an order TopK is quicker, but which of equal values it picks is not said
    largest, indices = draft.value("largest", x.type), draft.value("indices", _INT64)
    draft.nodes.append(ir.node("TopK", [x, count], _SORTED, outputs=[largest, indices]))
    bounds = [draft.constant(name, array) for name, array in (("fill", fill), ("inf", np.full_like(fill, np.inf)))]
    least = draft("Where", [fewer, *bounds], "least", x.type)
    empty = draft("Min", [x, least], "empty", x.type)  # `readout` narrows it with x; a ConstantOfShape would stay whole
    return draft.nodes, draft("ScatterElements", [empty, indices, largest], "hard", x.type, axis=-1)


@dataclasses.dataclass
class _Draft:
    """Nodes that are not in the graph yet. A call adds one and returns its first output; names begin with `base`."""

    graph: ir.Graph
    base: str
    nodes: list[ir.Node] = dataclasses.field(default_factory=list)

    def __call__(
        self, operator: str, inputs: list[ir.Value], suffix: str, kind: ir.TypeProtocol | None, **attributes: Any
    ) -> ir.Value:
        out = self.value(suffix, kind)
        self.nodes.append(ir.node(operator, inputs, attributes, outputs=[out]))
        return out

    def value(self, suffix: str, kind: ir.TypeProtocol | None) -> ir.Value:
        return ir.Value(name=fresh(self.graph, f"{self.base}_{suffix}"), type=kind)

    def constant(self, suffix: str, array: np.ndarray[Any, Any]) -> ir.Value:
        return initializer(self.graph, f"{self.base}_{suffix}", array)


def _fewer(draft: _Draft, x: ir.Value, k: ir.Value) -> ir.Value:
    """k < T of x[..,T], as bool[1]."""
    if draft.graph.opset_imports.get("", 0) < _SHAPE_START:
        shape = draft("Shape", [x], "shape", _INT64)
        last = draft.constant("last", np.full(1, -1, np.int64))
        tokens = draft("Gather", [shape, last], "tokens", _INT64, axis=0)
    else:
        tokens = draft("Shape", [x], "tokens", _INT64, start=-1)
    return draft("Less", [k, tokens], "k_fewer", _BOOL)


def _through_float32(graph: ir.Graph, x: ir.Value, k: ir.Value, fill: Fill) -> tuple[list[ir.Node], ir.Value]:
    kind = ir.DataType.BFLOAT16
    wide = ir.Value(name=fresh(graph, f"{x.name}_float32"), type=ir.TensorType(ir.DataType.FLOAT))
    nodes, masked = keep_largest(graph, wide, k, fill)
    narrow = ir.Value(name=fresh(graph, f"{x.name}_bfloat16"), type=ir.TensorType(kind))
    first = ir.node("Cast", [x], {"to": int(ir.DataType.FLOAT)}, outputs=[wide])
    return [first, *nodes, ir.node("Cast", [masked], {"to": int(kind)}, outputs=[narrow])], narrow
