"""Narrow what has no labels of its own but goes with a tensor that was cut: constants, and what is computed of them.

    weight -> Transpose -> DequantizeLinear(scale)      the weight on its own axis; scale and zero point with it
    Mul(scale of the input, scales of the columns)      the constant behind an elementwise step that nobody else reads
    scales[.., n / block, ..]                           whole blocks alone

`axis` counts from the right, as broadcasting does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.errors import RecogniseError
from axformer_passes.graph import CHAIN_OPS, Origin, anchor, operator, origin
from axformer_passes.operators import SCALED, IntArray, record_of

Spans = Callable[[ir.Value, int], bool]
"""(value, axis) -> has it more than one position there?"""
_MADE = "axformer.made"
"""Key in the meta of a graph: tensors already narrowed, by the tensor, axis and positions."""


def take(value: ir.Value, keep: IntArray, axis: int) -> None:
    """Narrow an initializer to the positions `keep` of `axis`.

    Un-shared uses point at one tensor: cut alike they point at one again, so that `prepare.share` merges them.
    """
    graph, before = value.graph, value.const_value
    assert before is not None and isinstance(graph, ir.Graph)
    made: dict[tuple[int, int, bytes], tuple[ir.TensorProtocol, ir.TensorProtocol]] = graph.meta.setdefault(_MADE, {})
    key = id(before), axis, keep.tobytes()
    if key not in made:
        array = np.ascontiguousarray(np.take(before.numpy(), keep, axis=axis))
        made[key] = (
            before,
            ir.tensor(array, dtype=before.dtype, name=value.name),
        )  # `before` is held: its id stays its own
    value.const_value = made[key][1]
    value.shape = ir.Shape(made[key][1].numpy().shape)
    _forget_shapes_behind(value)


def _forget_shapes_behind(value: ir.Value) -> None:
    """What a file states of Transpose(weight) and its like is out of date."""
    for node in value.consumers():
        if node.op_type in CHAIN_OPS and not node.outputs[0].is_graph_output():
            node.outputs[0].shape = None
            _forget_shapes_behind(node.outputs[0])


def narrowable(value: ir.Value, axis: int, spans: Spans) -> bool:
    """Comes `value` from constants by elementwise steps that nobody else reads?"""
    if origin(value) is not None:
        return True
    node = value.producer()
    if node is None or not record_of(node).elementwise or len(value.uses()) != 1 or value.is_graph_output():
        return False
    return all(narrowable(v, axis, spans) for v in node.inputs if v is not None and spans(v, axis))


def narrow(value: ir.Value, axis: int, keep: IntArray, spans: Spans) -> None:
    """Narrow a `narrowable` value to the positions `keep` of `axis`, where its constants are."""
    node = value.producer()
    if node is None:
        take(value, keep, axis)
        return
    value.shape = None
    if record_of(node).elementwise:
        for one in node.inputs:
            if one is not None and spans(one, axis):
                narrow(one, axis, keep, spans)
        return
    source, found = node.inputs[0], origin(node.inputs[0])
    assert source is not None and found is not None
    rank = len(found.axes)
    if operator(node) in SCALED:
        for part, kept, own in scale_cuts(node, axis % rank, keep):
            take(part, kept, own)
    elif node.op_type == "Transpose":
        axis = node.attributes.get_ints("perm", list(range(rank))[::-1])[axis]
        axis -= rank
    narrow(source, axis, keep, spans)


def scale_cuts(node: ir.Node, axis: int, keep: IntArray) -> list[tuple[ir.Value, IntArray, int]]:
    """(initializer, positions that stay, its axis) for scale and zero point of a quantised constant that keeps `keep` on `axis`.

    Raises: RecogniseError where the constant is quantised in blocks and `keep` takes one apart.
    """
    found = origin(node.inputs[0])
    assert found is not None
    block = node.attributes.get_int("block_size", 0)
    own = node.attributes.get_int("axis", 1) % max(1, len(found.axes))
    whole = axis == own and block > 0
    size = _shape(found)[axis]
    cuts = []
    for part in filter(None, map(origin, node.inputs[1:3])):
        shape = _shape(part)
        if math.prod(shape) == 1 or (len(shape) == 1 and axis != own):
            continue
        kept = _whole_blocks(node, keep, block, size) if whole else keep
        cuts.append((part.value, kept, part.axes[0 if len(shape) == 1 else axis]))
    return cuts


def _shape(found: Origin) -> tuple[int, ...]:
    assert found.value.const_value is not None
    shape = [int(n) for n in found.value.const_value.shape]  # type: ignore[arg-type]
    return tuple(shape[a] for a in found.axes)


def _whole_blocks(node: ir.Node, keep: IntArray, block: int, size: int) -> IntArray:
    there: npt.NDArray[np.bool_] = np.zeros(-(-size // block) * block, dtype=bool)
    there[keep] = True
    there[size:] = there[size - 1]
    blocks = there.reshape(-1, block)
    if (blocks.any(axis=1) != blocks.all(axis=1)).any():
        raise RecogniseError(
            f"{anchor(node)}: its weight is quantised in blocks of {block} values that share a scale, and the cut would take "
            f"some of them apart; remove heads or neurons in runs of {block}, or quantise after pruning"
        )
    return np.flatnonzero(blocks.all(axis=1))
