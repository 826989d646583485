"""Weights that are stored in 8 bits and multiplied in float32: poolers, classifiers, blocks too small to gain by integers.

    weight[R, C]   ->   Cast(integers[R, C]) * scale of each column

Both operators read constants alone, so a runtime folds them when it loads the graph: it computes as before, from a smaller file.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.graph import constant, fresh, initializer, origin
from axformer_passes.integers.products import written_plainly
from axformer_passes.integers.rounding import Array, rounded_columns
from axformer_passes.precision import STORED_BITS

LEAST = 2**12
"""Numbers of a weight: a smaller one is not worth the operators."""


@dataclasses.dataclass(frozen=True)
class StoredWeight:
    """An initializer float32[R, C] or [C, R]; transposed: it lies as [C, R]."""

    value: ir.Value
    transposed: bool

    def rounded(self) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
        """(integers, scale), as the initializer lies; scale broadcasts against it."""
        array = constant(self.value)
        assert array is not None
        integers, scale = rounded_columns(array.T if self.transposed else array, STORED_BITS)
        return (integers.T, scale.reshape(-1, 1)) if self.transposed else (integers, scale)

    def nearest(self) -> Array:
        """float64, as the initializer lies: what the integers stand for."""
        integers, scale = self.rounded()
        return integers.astype(np.float64) * scale.astype(np.float64)


def stored_weights(graph: ir.Graph) -> list[StoredWeight]:
    """The weights of products in float32, whose input is not rounded, that are large enough; each once."""
    found = dict[ir.Value, StoredWeight]()
    for node in graph:
        if not written_plainly(node) or _is_rounded(node.inputs[0]):
            continue
        behind = origin(node.inputs[1])
        if behind is None or behind.value in found or behind.value.is_graph_output():
            continue
        tensor = behind.value.const_value
        if tensor is not None and tensor.size >= LEAST:
            flipped = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
            found[behind.value] = StoredWeight(behind.value, flipped != (behind.axes == (1, 0)))
    return list(found.values())


def _is_rounded(value: ir.Value | None) -> bool:
    """Is it what a simulation puts before a product of integers?"""
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "DequantizeLinear"


def store_weights(model: ir.Model) -> None:
    """Edit `model` in place."""
    graph, new = model.graph, list[ir.Node]()
    for weight in stored_weights(graph):
        integers, scale = weight.rounded()
        value, name = weight.value, str(weight.value.name)
        stored = initializer(graph, f"{name}_integers", integers)
        scales = initializer(graph, f"{name}_scale", scale)
        cast = ir.node(
            "Cast", [stored], {"to": int(ir.DataType.FLOAT)}, outputs=[ir.Value(name=fresh(graph, f"{name}_float"))]
        )
        back = ir.node("Mul", [cast.outputs[0], scales], outputs=[ir.Value(name=fresh(graph, f"{name}_restored"))])
        new += [cast, back]
        ir.convenience.replace_all_uses_with(value, back.outputs[0])
        back.outputs[0].shape, back.outputs[0].type = value.shape, value.type
    first = next(iter(graph), None)
    if first is not None and new:
        graph.insert_before(first, new)


__all__ = ["StoredWeight", "store_weights", "stored_weights"]
