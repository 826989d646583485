"""Where a graph picks single tokens for its outputs, and why it does not where it does not.

    Gather(x, 0 | [-1], axis)                  the first, the last token
    Slice(x, [0], [1], axis)
    GatherND(x, [[0, t0], [1, t1], ..])        a token for each row of the batch; 0, 1, .. made of shapes alone
    Gather(x as [B*S,D], t + [0, S, 2S, ..])   the same, batch and tokens in one axis

What lies before an attention (a Softmax or a product of activations, of three axes or more) is no read-out: there queries, keys and
values are picked out of one projection.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import anchor, constant, made_of_shapes, origin, read_by
from axformer_passes.operators import REDUCTIONS, Probes, Stop, TokenRows

_IN_RANGE = ("ArgMax", "ArgMin", "Mod")
"""What makes positions that are never negative: beside the start of a row, -1 would be of the row before."""
_FAR = 2**31 - 1
BATCH_DIMS_FROM = 12
"""The operator set from which on GatherND knows batch_dims."""


@dataclasses.dataclass(frozen=True)
class Pick:
    """A node that reads some tokens of its first input alone; `rows` of it."""

    node: ir.Node
    rows: TokenRows


def picks(probes: Probes) -> tuple[list[Pick], str]:
    """(every pick of tokens behind the last attention, in graph order; where there is none: why)."""
    graph = probes.model.graph
    behind = _before_attention(probes)
    found, why = [], ""
    for node in graph:
        if node not in behind and node.inputs and node.inputs[0] is not None and origin(node.inputs[0]) is None:
            try:
                rows = picked(probes, node)
            except Stop as stop:
                why = why or f"{node.op_type} {anchor(node)!r}: {stop}"
                continue
            if rows is not None and min(rows.count) > rows.kept:
                found.append(Pick(node, rows))
    return found, "" if found else why or _unpicked(probes, behind)


def _before_attention(probes: Probes) -> set[ir.Node]:
    """The nodes that an attention depends on: its softmax, and its products of activations."""
    queue = [n for n in probes.model.graph if n.op_type == "Softmax" or _is_of_activations(n)]
    return set(upstream([n for n in queue if probes.rank(n.outputs[0]) > 2]))


def _is_of_activations(node: ir.Node) -> bool:
    return node.op_type in ("MatMul", "Einsum") and len(node.inputs) == 2 and not any(map(origin, node.inputs))


def upstream(nodes: list[ir.Node]) -> Iterator[ir.Node]:
    """These nodes, and every node that they depend on."""
    queue, seen = list(nodes), set(nodes)
    while queue:
        node = queue.pop()
        yield node
        makers = [v.producer() for v in read_by(node)]
        new = {maker for maker in makers if maker is not None} - seen
        seen |= new
        queue.extend(new)


def picked(probes: Probes, node: ir.Node) -> TokenRows | None:
    """The tokens that a node picks out of its first input; None where it picks none. Raises: Stop."""
    if node.op_type == "Gather":
        return _of_gather(probes, node)
    if node.op_type == "GatherND":
        return _of_gather_nd(probes, node)
    return _of_slice(probes, node) if node.op_type == "Slice" and len(node.inputs) > 2 else None


def _of_gather(probes: Probes, node: ir.Node) -> TokenRows | None:
    shapes = probes.shape(node.inputs[0])
    rank = len(shapes[0])
    axis = node.attributes.get_int("axis", 0) % max(1, rank)
    index = constant(node.inputs[1])
    if index is None:
        return _of_flat_gather(probes, node) if axis == 0 and rank > 1 else None
    if index.size != 1 or rank < 3 or axis == rank - 1:
        return None
    return TokenRows(axis, None, (int(index.reshape(-1)[0]),), tuple(s[axis] for s in shapes))


def _of_slice(probes: Probes, node: ir.Node) -> TokenRows | None:
    """One token by constant bounds; beyond the first and the last only where the number of tokens is fixed."""
    shapes, out = probes.shape(node.inputs[0]), probes.shape(node.outputs[0])
    rank = len(shapes[0])
    lost = [a for a in range(rank) if any(s[a] != o[a] for s, o in zip(shapes, out, strict=True))]
    given = [constant(v) for v in node.inputs[1:4]]
    if len(lost) != 1 or lost[0] == rank - 1 or rank < 3 or any(s[lost[0]] != 1 for s in out):
        return None
    if any(g is None for g in given) or len(given) < 3:
        return None
    starts, ends, axes = (np.asarray(g).reshape(-1).tolist() for g in given)
    entry = [a % rank for a in axes].index(lost[0])
    start, end, count = starts[entry], ends[entry], tuple(s[lost[0]] for s in shapes)
    if (start, end) != (0, 1) and not (start == -1 and end >= _FAR) and len(set(count)) != 1:
        return None
    return TokenRows(lost[0], None, (int(start),), count)


def _of_gather_nd(probes: Probes, node: ir.Node) -> TokenRows | None:
    """x[B,S,..] by indices[B,2]: the numbers of the rows beside a token for each."""
    shapes, joined = probes.shape(node.inputs[0]), _producer(node.inputs[1], "Concat")
    if node.attributes.get_int("batch_dims", 0) or joined is None or len(joined.inputs) != 2 or len(shapes[0]) < 3:
        return None
    rows, tokens = joined.inputs
    if probes.shape(node.inputs[1]) != tuple((s[0], 2) for s in shapes):
        return None
    if any(probes.shape(v) != tuple((s[0], 1) for s in shapes) for v in (rows, tokens)) or not _counts(probes, rows, 1):
        return None
    return _by_row(probes, 1, tokens, tuple(s[1] for s in shapes))


def _of_flat_gather(probes: Probes, node: ir.Node) -> TokenRows | None:
    """x[B*S,D] by t[B] + [0, S, 2S, ..]."""
    flat, total = probes.shape(node.inputs[0]), _producer(node.inputs[1], "Add")
    if total is None:
        return None
    for tokens, starts in (total.inputs, total.inputs[::-1]):
        batch = list(probes.shape(starts))
        if probes.shape(tokens) != tuple(batch) or any(len(s) != 1 or s[0] < 2 for s in batch):
            continue
        count = tuple(f[0] // b[0] for f, b in zip(flat, batch, strict=True))
        even = all(n * b[0] == f[0] for n, b, f in zip(count, batch, flat, strict=True))
        if even and all(_counts(probes, starts, n, i) for i, n in enumerate(count)):
            if not any(_producer(tokens, kind) for kind in _IN_RANGE):
                raise Stop("its positions may reach into another row of the batch")
            return _by_row(probes, 0, tokens, count)
    return None


def _by_row(probes: Probes, axis: int, tokens: ir.Value | None, count: tuple[int, ...]) -> TokenRows:
    if probes.model.opset_imports.get("", 1) < BATCH_DIMS_FROM or tokens is None:
        raise Stop(f"picking a token for each row needs operator set {BATCH_DIMS_FROM}")
    return TokenRows(axis, 0, str(tokens.name), count)


def _producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node behind a tensor, and behind its Cast, if it is of this type."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Cast", "Identity") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node if node is not None and node.op_type == kind else None


def _counts(probes: Probes, value: ir.Value | None, step: int, probe: int | None = None) -> bool:
    """Is this 0, step, 2 step, .. in the probe (None: in all), and made of shapes alone, so that it always is?"""
    arrays = probes.whole(value)
    arrays = arrays if probe is None else arrays[probe : probe + 1]
    counted = all(np.array_equal(a.reshape(-1), step * np.arange(a.size)) for a in arrays)
    return counted and made_of_shapes(value)


def _unpicked(probes: Probes, behind: set[ir.Node]) -> str:
    """What reads all tokens."""
    graph = probes.model.graph
    for node in graph:
        if node in behind or node.op_type not in REDUCTIONS:
            continue
        ranks = probes.rank(node.inputs[0]), probes.rank(node.outputs[0])
        if ranks[0] > 2 and _over_tokens(probes, node):
            return f"{node.op_type} {anchor(node)!r} reads all tokens, expected an output that reads single ones"
    names = ", ".join(repr(v.name) for v in graph.outputs)
    return f"nothing picks single tokens for {names}: every token is read"


def _over_tokens(probes: Probes, node: ir.Node) -> bool:
    """Goes an axis other than the last in this reduction?"""
    shapes, out = probes.shape(node.inputs[0]), probes.shape(node.outputs[0])
    if len(out[0]) == len(shapes[0]):
        return any(s[a] != o[a] for s, o in zip(shapes, out, strict=True) for a in range(len(out[0]) - 1))
    return out[0] != shapes[0][: len(out[0])]
