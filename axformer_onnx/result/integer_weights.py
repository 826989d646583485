"""A graph with integers against the same graph without: each weight within half a step, and the same answers given these weights.

The graph without integers is what `verify` has held to the source. This shares no code with `axformer_passes.integers`: weights and
scales are read off the written graph and put in the place of the floats; then both must answer alike, activations not rounded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_onnx.errors import VerifyError
from axformer_passes.graph import constant, origin

Array = npt.NDArray[Any]
_SLACK = 1e-3
"""Of a step: scales are float32."""
_READS = {"MatMul": 1, "Gemm": 1, "Gather": 0}
"""Which input of an operator is the weight that integers may stand for."""


def put_integers(floats: ir.Model, result: ir.Model) -> int:
    """Write what the integers of `result` stand for into `floats`, in place; returns how many tensors they are.

    Raises: VerifyError where one is further from the float than half a step, or stands for nothing.
    """
    made = {str(v.name): node for node in floats.graph for v in node.outputs if node.op_type in _READS}
    done = dict[ir.Value, Array]()
    for node in result.graph:
        integers = constant(node.inputs[1 if node.op_type == "MatMulInteger" else 0]) if node.inputs else None
        if node.op_type not in ("MatMulInteger", "Gather") or integers is None or integers.dtype != np.int8:
            continue
        scaled = _reader(_reader(node))  # Cast, Mul
        scale = _scale(scaled, integers)
        ends = (
            scaled,
            _reader(scaled) if scaled is not None and scaled.outputs[0].uses() else None,
        )  # a Gemm's bias is added behind
        place = next(
            (made[name] for end in ends if end is not None and (name := str(end.outputs[0].name)) in made), None
        )
        if place is None or scale is None:
            raise VerifyError(
                f"{node.outputs[0].name!r} is made of integers that stand for no weight of the graph without"
            )
        found = origin(place.inputs[_READS[place.op_type]])
        assert found is not None
        done[found.value] = _meant(str(node.outputs[0].name), place, found.axes, constant(found.value), integers, scale)
    for value, array in done.items():
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    return len(done)


def _meant(name: str, place: ir.Node, axes: tuple[int, ...], own: Array | None, integers: Array, scale: Array) -> Array:
    """float32: what the integers stand for, as the initializer lies. Raises: VerifyError beyond half a step."""
    assert own is not None
    meant, step = integers.astype(np.float64) * scale.astype(np.float64), np.broadcast_to(scale, integers.shape)
    if place.op_type == "Gemm":
        alpha = place.attributes.get_float("alpha", 1.0)
        meant, step = meant / alpha, step / abs(alpha)
        if place.attributes.get_int("transB", 0):
            meant, step = meant.T, step.T
    back = np.argsort(axes)
    meant, step = meant.transpose(back), step.transpose(back)
    if meant.shape != own.shape or not (np.abs(own - meant) <= (0.5 + _SLACK) * step + 1e-12).all():
        raise VerifyError(f"{name!r}: its integers are further than half a step from the weights that they stand for")
    return meant.astype(np.float32)


def _reader(node: ir.Node | None) -> ir.Node | None:
    """The first node that reads what a node makes."""
    return next((use.node for use in node.outputs[0].uses()), None) if node is not None else None


def _scale(scaled: ir.Node | None, integers: Array) -> Array | None:
    """float32, one for each column (row, of a table): a constant before the Mul, multiplied with a dynamic one or gathered."""
    for value in scaled.inputs if scaled is not None and scaled.op_type == "Mul" else ():
        node = value.producer() if value is not None else None
        for behind in node.inputs if node is not None and node.op_type in ("Mul", "Gather") else ():
            found = constant(behind)
            if found is not None and found.dtype == np.float32 and found.size in (integers.shape[0], integers.shape[1]):
                return found
    return None


__all__ = ["put_integers"]
