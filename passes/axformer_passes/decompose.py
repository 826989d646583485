"""Take a fused `Attention` node (ai.onnx 23) apart into the primitive operators that its specification names.

    Attention(q[B,H,S,E], k[B,G,T,E], v[B,G,T,V], mask)
      -> Softmax(sqrt(scale) q @ (sqrt(scale) k)^T + mask, axis=-1) @ v        (3-D inputs are split into heads first)

`softmax_precision` and past, present or score outputs are refused at the node.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.errors import RecogniseError
from axformer_passes.prepare import fresh, initializer


class _Builder:
    """Appends nodes before one place; every method returns the new node's output."""

    def __init__(self, graph: ir.Graph, place: ir.Node) -> None:
        self.graph, self.place = graph, place
        self.base = str(place.outputs[0].name)

    def constant(self, values: object, dtype: object = np.int64) -> ir.Value:
        return initializer(self.graph, f"{self.base}_const", np.array(values, dtype=dtype))  # type: ignore[call-overload]

    def __call__(self, kind: str, *inputs: ir.Value, like: ir.Value | None = None, **attributes: object) -> ir.Value:
        out = ir.Value(name=fresh(self.graph, f"{self.base}_{kind.lower()}"), type=like.type if like else None)
        self.graph.insert_before(self.place, ir.node(kind, list(inputs), attributes, outputs=[out]))  # type: ignore[arg-type]
        return out


def decompose_attention(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Replace `node` by primitive operators in place; returns the new Softmax node.

    Raises: RecogniseError for forms that have no decomposition here; nothing is edited then.
    """
    _require_plain(node)
    dtype = node.inputs[0].dtype or ir.DataType.FLOAT  # type: ignore[union-attr]
    build = _Builder(graph, node)
    query, key, value = (_split(build, node, slot) for slot in range(3))
    heads_3d = "q_num_heads" in node.attributes
    key, value = _repeat(build, node, query, key), _repeat(build, node, query, value)
    query, key = _scaled(build, node, query, key, dtype)
    scores = build("MatMul", query, build("Transpose", key, like=key, perm=[0, 1, 3, 2]), like=query)
    scores = _masked(build, node, scores, dtype)
    probabilities = build("Softmax", scores, like=query, axis=-1)
    softmax = probabilities.producer()
    assert softmax is not None
    if len(node.inputs) > 3 and node.inputs[3] is not None:  # a query that may see no key gets 0, not 0/0
        nothing = build.constant(0, dtype.numpy())
        probabilities = build("Where", build("IsNaN", probabilities), nothing, probabilities, like=query)
    context = build("MatMul", probabilities, value, like=query)
    if heads_3d:
        joined = build("Transpose", context, like=query, perm=[0, 2, 1, 3])
        context = build("Reshape", joined, build.constant([0, 0, -1]), like=query)
    out = node.outputs[0]
    name = out.name
    context.shape, context.type = out.shape, out.type
    out.replace_all_uses_with(context, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    context.name = name
    return softmax


def _require_plain(node: ir.Node) -> None:
    where = f"{node.outputs[0].name}: Attention"
    if len(node.inputs) > 4 and any(v is not None for v in node.inputs[4:]):
        raise RecogniseError(f"{where} with past keys cannot be hardened")
    if len(node.outputs) > 1 and any(v.uses() for v in node.outputs[1:]):
        raise RecogniseError(f"{where} whose present or score outputs are used cannot be hardened")
    if node.attributes.get_float("softcap", 0.0) != 0.0 or "softmax_precision" in node.attributes:
        raise RecogniseError(f"{where} with softcap or softmax_precision cannot be hardened")


def _split(build: _Builder, node: ir.Node, slot: int) -> ir.Value:
    value = node.inputs[slot]
    assert value is not None
    if "q_num_heads" not in node.attributes:
        return value
    heads = node.attributes.get_int("q_num_heads" if slot == 0 else "kv_num_heads")
    split = build("Reshape", value, build.constant([0, 0, heads, -1]), like=value)
    return build("Transpose", split, like=value, perm=[0, 2, 1, 3])


def _repeat(build: _Builder, node: ir.Node, query: ir.Value, x: ir.Value) -> ir.Value:
    """Grouped queries: repeat each key/value head for its queries; how often is computed where no shape says it."""
    share = _share(node, query, x)
    if share == 1:
        return x
    shape = build("Shape", x)
    batch, groups, tokens, width = (build("Gather", shape, build.constant([i])) for i in range(4))
    if share is None:
        heads = build("Gather", build("Shape", query), build.constant([1]))
        times = build("Div", heads, groups)
    else:
        times = build.constant([share])
        heads = build("Mul", groups, times)
    wide = build("Unsqueeze", x, build.constant([2]), like=x)
    wide = build("Expand", wide, build("Concat", batch, groups, times, tokens, width, axis=0), like=x)
    return build("Reshape", wide, build("Concat", batch, heads, tokens, width, axis=0), like=x)


def _share(node: ir.Node, query: ir.Value, x: ir.Value) -> int | None:
    """Query heads for each key/value head; None where the shapes are not known."""
    if "q_num_heads" in node.attributes:
        return node.attributes.get_int("q_num_heads") // node.attributes.get_int("kv_num_heads")
    counts = [v.shape[1] if v.shape is not None and len(v.shape) == 4 else None for v in (query, x)]
    query_heads, groups = counts
    return query_heads // groups if isinstance(query_heads, int) and isinstance(groups, int) else None


def _scaled(
    build: _Builder, node: ir.Node, query: ir.Value, key: ir.Value, dtype: ir.DataType
) -> tuple[ir.Value, ir.Value]:
    if "scale" in node.attributes:
        root = build.constant(np.sqrt(node.attributes.get_float("scale")), dtype.numpy())
        return build("Mul", query, root, like=query), build("Mul", key, root, like=key)
    width = build("Gather", build("Shape", query), build.constant([-1]))
    root = build("Sqrt", build("Reciprocal", build("Sqrt", build("Cast", width, to=int(dtype)))))
    return build("Mul", query, root, like=query), build("Mul", key, root, like=key)


def _masked(build: _Builder, node: ir.Node, scores: ir.Value, dtype: ir.DataType) -> ir.Value:
    lowest, zero = build.constant(-np.inf, dtype.numpy()), build.constant(0, dtype.numpy())
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is not None and mask.dtype == ir.DataType.BOOL:
        mask = build("Where", mask, zero, lowest, like=scores)
    if mask is not None:
        scores = build("Add", scores, mask, like=scores)
    if node.attributes.get_int("is_causal", 0):
        shape = build("Shape", scores)
        square = build("Gather", shape, build.constant([2, 3]))
        ones = build("Expand", build.constant(1), square)
        causal = build("Cast", build("Trilu", ones, upper=0), to=int(ir.DataType.BOOL))
        scores = build("Where", causal, scores, lowest, like=scores)
    return scores
