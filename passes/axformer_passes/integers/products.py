"""Products by a learned matrix in integers, in standard operators.

dynamic (DynamicQuantizeLinear 11, MatMulInteger 10): the range of an activation is that of its tensor as it comes

    y = x @ weight (+ bias)   ->   q, scale, zero = DynamicQuantizeLinear(x)              once for all that read x
                                   y = Cast(MatMulInteger(q, integers, zero)) * (scale * scale of each column) (+ bias)

static (QuantizeLinear 10, DequantizeLinear 13): its step is known beforehand; runtimes make integers of what is written in floats

    y = x @ weight (+ bias)   ->   x' = DequantizeLinear(QuantizeLinear(x, scale, zero), scale, zero)   once for all that read x
                                   y = x' @ DequantizeLinear(integers, scale of each column, axis = 1) (+ bias)

A Gemm becomes the same, with its bias behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.errors import PlanError
from axformer_passes.graph import constant, fresh, initializer, origin, whole_of
from axformer_passes.integers.rounding import Array, rounded_columns, scaled_down
from axformer_passes.precision import Int8

_MOVED = 128
"""What is added to the integers of "static-uint8"."""


@dataclasses.dataclass(frozen=True)
class Rounding:
    """How what a product reads is rounded.

    shifts   int64[R]: the powers of two that its channels are divided by first (`smoothing`); None: by none
    scale    the step, where activations are static (`ranges`); None: none is known
    """

    shifts: npt.NDArray[np.int64] | None = None
    scale: float | None = None

    @property
    def key(self) -> tuple[tuple[int, ...], float | None]:
        """Equal for what is rounded alike."""
        return () if self.shifts is None else tuple(self.shifts.tolist()), self.scale


def quantise_products(model: ir.Model, wanted: Mapping[str, Rounding], int8: Int8) -> None:
    """Edit `model` in place: products that are written plainly. wanted: by their outputs in the source.

    Raises: PlanError where a step is missing.
    """
    graph, products = model.graph, _Products(model.graph, int8)
    for node in list(graph):
        if node.outputs and whole_of(node) in wanted and written_plainly(node):
            products.write(node, wanted[whole_of(node)])


def zero_point(int8: Int8) -> npt.NDArray[np.int8] | npt.NDArray[np.uint8]:
    """Of static activations."""
    return np.array(_MOVED, np.uint8) if int8.activations == "static-uint8" else np.array(0, np.int8)


def known_step(rounding: Rounding, product: str) -> npt.NDArray[np.float32]:
    """float32[]. Raises: PlanError where it is missing."""
    if rounding.scale is None:
        raise PlanError(
            f'"int8": activations are static, and "scales" has no step for what {product!r} reads; add it (layer, projection, '
            'step), or make activations "dynamic"'
        )
    return np.array(rounding.scale, np.float32)


def written_plainly(node: ir.Node) -> bool:
    """Is it x @ weight, a constant float32 matrix, perhaps behind Transposes, by MatMul or by a Gemm as layers are written?"""
    if (
        node.domain not in ("", "ai.onnx")
        or node.op_type not in ("MatMul", "Gemm")
        or origin(node.inputs[0]) is not None
    ):
        return False
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 1:
        return False
    return _matrix(node) is not None


def _matrix(node: ir.Node) -> Array | None:
    """float32[R, C]: y = x @ this; None where it is no such constant."""
    found, value = origin(node.inputs[1]), node.inputs[1]
    while value is not None and (behind := value.producer()) is not None:
        if behind.op_type not in ("Transpose", "Identity"):
            return None
        value = behind.inputs[0]
    array = constant(found.value) if found is not None else None
    if found is None or array is None or array.ndim != 2 or array.dtype != np.float32:
        return None
    array = array.transpose(found.axes)
    if node.op_type == "Gemm":
        array = (array.T if node.attributes.get_int("transB", 0) else array) * np.float32(
            node.attributes.get_float("alpha", 1.0)
        )
    return array


class _Products:
    """Writes the products of one graph; what several read alike is rounded once."""

    def __init__(self, graph: ir.Graph, int8: Int8) -> None:
        self._graph, self._int8, self._new = graph, int8, list[ir.Node]()
        self._rounded = dict[object, list[ir.Value]]()

    def write(self, node: ir.Node, rounding: Rounding) -> None:
        """Integers in the place of a product."""
        matrix, name, shifts = _matrix(node), str(node.outputs[0].name), rounding.shifts
        assert matrix is not None
        if shifts is not None:
            matrix = (matrix * np.exp2(shifts.astype(np.float64))[:, None]).astype(np.float32)
        make = self._static if self._int8.is_static else self._dynamic
        result = self._biased(node, make(node, rounding, *rounded_columns(matrix, self._int8.bits)))
        last = node.outputs[0]
        self._graph.insert_before(node, self._new)
        self._new.clear()
        ir.convenience.replace_all_uses_with(last, result, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        result.name, last.name = name, None
        result.shape, result.type = last.shape, last.type

    def _dynamic(self, node: ir.Node, rounding: Rounding, weight: Array, by_column: Array) -> ir.Value:
        name, key = str(node.outputs[0].name), (node.inputs[0], rounding.key)
        if key not in self._rounded:
            given = self._given(node, rounding)
            self._rounded[key] = self._put("DynamicQuantizeLinear", [given], f"{_read(node).name}_integers", 3)
        integers, scale, zero = self._rounded[key]
        stored = initializer(self._graph, f"{name}_weight", weight)
        none = initializer(self._graph, f"{name}_weight_zero", np.zeros((), np.int8))
        (product,) = self._put("MatMulInteger", [integers, stored, zero, none], f"{name}_product")
        (found,) = self._put("Cast", [product], f"{name}_float", to=int(ir.DataType.FLOAT))
        own_scale = initializer(self._graph, f"{name}_weight_scale", by_column)
        (factor,) = self._put("Mul", [scale, own_scale], f"{name}_factor")
        return self._put("Mul", [found, factor], f"{name}_scaled")[0]

    def _static(self, node: ir.Node, rounding: Rounding, weight: Array, by_column: Array) -> ir.Value:
        name, key = str(node.outputs[0].name), (node.inputs[0], rounding.key)
        if key not in self._rounded:
            part = _read(node).name
            scale = initializer(self._graph, f"{part}_scale", known_step(rounding, name))
            zero = initializer(self._graph, f"{part}_zero", zero_point(self._int8))
            integers = self._put("QuantizeLinear", [self._given(node, rounding), scale, zero], f"{part}_integers")
            self._rounded[key] = self._put("DequantizeLinear", [*integers, scale, zero], f"{part}_rounded")
        stored = initializer(self._graph, f"{name}_weight", weight)
        scales = initializer(self._graph, f"{name}_weight_scale", by_column)
        restored = self._put("DequantizeLinear", [stored, scales], f"{name}_weight_float", axis=1)
        return self._put("MatMul", [*self._rounded[key], *restored], f"{name}_scaled")[0]

    def _given(self, node: ir.Node, rounding: Rounding) -> ir.Value:
        """What the product reads, its channels divided by powers of two."""
        value = _read(node)
        if rounding.shifts is None:
            return value
        factor = initializer(self._graph, f"{value.name}_smooth_factor", scaled_down(rounding.shifts))
        return self._put("Mul", [value, factor], f"{value.name}_smooth")[0]

    def _biased(self, node: ir.Node, result: ir.Value) -> ir.Value:
        """With the bias of a Gemm."""
        bias, name = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None, node.outputs[0].name
        if bias is None:
            return result
        beta, own = node.attributes.get_float("beta", 1.0), constant(bias)
        if own is not None and beta != 1:
            bias = initializer(self._graph, f"{name}_bias", own * np.float32(beta))
        elif beta != 1:
            factor = initializer(self._graph, f"{name}_beta", np.array(beta, np.float32))
            (bias,) = self._put("Mul", [bias, factor], f"{name}_bias")
        return self._put("Add", [result, bias], f"{name}_biased")[0]

    def _put(
        self, operator: str, inputs: list[ir.Value], part: str, outputs: int = 1, **attributes: int
    ) -> list[ir.Value]:
        names = [fresh(self._graph, f"{part}{i or ''}") for i in range(outputs)]
        made = ir.node(operator, inputs, attributes, outputs=[ir.Value(name=one) for one in names], name=names[0])
        self._new.append(made)
        return list(made.outputs)


def _read(node: ir.Node) -> ir.Value:
    """The activation that a product reads."""
    value = node.inputs[0]
    assert value is not None
    return value


__all__ = ["Rounding", "known_step", "quantise_products", "written_plainly", "zero_point"]
