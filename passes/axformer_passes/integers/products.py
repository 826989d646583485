"""Products by a learned matrix in integers, in standard operators (DynamicQuantizeLinear 11, MatMulInteger 10).

    y = x @ weight (+ bias)   ->   q, scale, zero = DynamicQuantizeLinear(x)              once for all that read x
                                   y = Cast(MatMulInteger(q, integers, zero)) * (scale * scale of each column) (+ bias)

A Gemm becomes the same, with its bias behind it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.graph import constant, fresh, initializer, origin, whole_of
from axformer_passes.integers.rounding import Array, rounded_columns, scaled_down

Quantised = dict[tuple[ir.Value, tuple[int, ...]], list[ir.Value]]
"""(integers, scale, zero) of activations, by them and the powers of two that their channels are divided by."""


def quantise_products(model: ir.Model, wanted: Mapping[str, npt.NDArray[np.int64] | None], bits: int) -> None:
    """Edit `model` in place: products that are written plainly.

    wanted   by their outputs in the source: the powers of two, int64[R], by which the channels of what they read are divided
             (`smoothing`); None: by none
    """
    graph, quantised = model.graph, Quantised()
    for node in list(graph):
        if node.outputs and whole_of(node) in wanted and written_plainly(node):
            _quantise(graph, node, bits, quantised, wanted[whole_of(node)])


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


def _quantise(
    graph: ir.Graph, node: ir.Node, bits: int, quantised: Quantised, shifts: npt.NDArray[np.int64] | None
) -> None:
    value, matrix, name = node.inputs[0], _matrix(node), str(node.outputs[0].name)
    assert value is not None and matrix is not None
    new = list[ir.Node]()

    def put(
        operator: str, inputs: list[ir.Value | None], part: str, outputs: int = 1, **attributes: int
    ) -> list[ir.Value]:
        names = [fresh(graph, f"{part}{i or ''}") for i in range(outputs)]
        made = ir.node(operator, inputs, attributes, outputs=[ir.Value(name=one) for one in names], name=names[0])
        new.append(made)
        return list(made.outputs)

    key = value, () if shifts is None else tuple(shifts.tolist())
    if key not in quantised:
        given = value
        if shifts is not None:
            factor = initializer(graph, f"{value.name}_smooth_factor", scaled_down(shifts))
            (given,) = put("Mul", [value, factor], f"{value.name}_smooth")
        quantised[key] = put("DynamicQuantizeLinear", [given], f"{value.name}_integers", 3)
    integers, scale, zero = quantised[key]
    if shifts is not None:
        matrix = (matrix * np.exp2(shifts.astype(np.float64))[:, None]).astype(np.float32)
    weight, by_column = rounded_columns(matrix, bits)
    stored = initializer(graph, f"{name}_weight", weight)
    none = initializer(graph, f"{name}_weight_zero", np.zeros((), np.int8))
    (product,) = put("MatMulInteger", [integers, stored, zero, none], f"{name}_product")
    (found,) = put("Cast", [product], f"{name}_float", to=int(ir.DataType.FLOAT))
    (factor,) = put("Mul", [scale, initializer(graph, f"{name}_weight_scale", by_column)], f"{name}_factor")
    (result,) = put("Mul", [found, factor], f"{name}_scaled")
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    if bias is not None:
        beta, own = node.attributes.get_float("beta", 1.0), constant(bias)
        if own is not None and beta != 1:
            bias = initializer(graph, f"{name}_bias", own * np.float32(beta))
        elif beta != 1:
            (bias,) = put("Mul", [bias, initializer(graph, f"{name}_beta", np.array(beta, np.float32))], f"{name}_bias")
        (result,) = put("Add", [result, bias], f"{name}_biased")
    last = node.outputs[0]
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(last, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name, last.name = name, None
    result.shape, result.type = last.shape, last.type


__all__ = ["quantise_products", "written_plainly"]
