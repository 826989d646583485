"""Where the heads and neurons of a block stand among the inputs of its output projection."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import onnx_ir as ir

from axformer_passes.anatomy import AttentionBlock, Block
from axformer_passes.errors import RecogniseError
from axformer_passes.graph import find
from axformer_passes.operators import INTEGER_PRODUCTS, LINEAR, OPERANDS, IntArray, data_side, operands, spread_rows
from axformer_passes.recognise import Examined


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


def projection_of(block: Block) -> tuple[str, str]:
    """(kind, output of the output projection)."""
    if isinstance(block, AttentionBlock):
        return "attention", block.output.output
    return "feed_forward", block.down.output


def gated_block(examined: Examined, layer: int, block: Block) -> GatedBlock:
    """What a block's run-time inputs are called, and which of their positions belong to which head (neuron)."""
    kind, output = projection_of(block)
    base = f"axformer:{layer}:{kind}"
    labelling = examined.labelling
    rows = labelling.classes(row_labels(examined, output)).reshape(-1)
    classes = examined.head_classes[layer] if kind == "attention" else examined.neuron_classes[layer]
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
        dtype=str(_gated_dtype(examined, output)),
    )


def gated_place(output: ir.Value) -> tuple[ir.Node, int]:
    """(node, slot) of the float tensor that the contraction which makes `output` multiplies, before it is quantised."""
    node = output.producer()
    assert node is not None
    side = data_side(node)
    slot = OPERANDS.get(node.op_type, (0, 1))[side]
    while True:
        value = node.inputs[slot]
        behind = value.producer() if value is not None else None
        if value is None or behind is None:
            return node, slot
        dynamic = behind.op_type == "DynamicQuantizeLinear"
        if dynamic and any(user is not node and user.op_type in INTEGER_PRODUCTS for user in value.consumers()):
            raise RecogniseError(f"{value.name}: its integers are read by several products, expected one")
        if not dynamic and (behind.op_type not in LINEAR or len(value.uses()) != 1 or value.is_graph_output()):
            return node, slot
        node, slot = behind, 0


def _gated_dtype(examined: Examined, output: str) -> np.dtype[np.generic]:
    """The element type of the gate: that of the float tensor which it multiplies."""
    node, slot = gated_place(find(examined.labelling.model.graph, output))
    value = node.inputs[slot]
    assert value is not None
    dtype = np.asarray(examined.labelling.values[str(value.name)]).dtype
    if dtype.kind not in "iu":
        return dtype
    return np.dtype(np.float32)


def row_labels(examined: Examined, output: str) -> IntArray:
    """The row labels of the contraction that makes `output`, shaped to broadcast over what it multiplies."""
    product = examined.labelling.product_at[output]
    data = operands(product.node)[data_side(product.node)]
    return spread_rows(product, examined.labelling.of[str(data.name)].ndim)
