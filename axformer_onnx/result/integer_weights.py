"""A graph with integers against the same graph without: each weight within half a step, and the same answers given these weights.

The graph without integers is what `verify` has held to the source. This shares no code with `axformer_passes.integers`: weights and
scales are read off the written graph and put in the place of the floats; then both must answer alike, activations not rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from axformer_onnx.errors import VerifyError
from axformer_passes.graph import constant, origin
from axformer_passes.io import detached

Array = npt.NDArray[Any]
_SLACK = 1e-3
"""Of a step: scales are float32."""
_BLOCK, _LARGEST = 32, 7
"""Numbers of 4 bits: so many share a scale, and run to this."""
_ROUNDS = frozenset({"DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear"})
_READS = {"MatMul": 1, "Gemm": 1, "Gather": 0}
"""Which input of an operator is the weight that integers may stand for."""


def put_integers(floats: ir.Model, result: ir.Model) -> int:
    """Write what the integers of `result` stand for into `floats`, in place; returns how many tensors they are.

    Raises: VerifyError where one is further from the float than half a step, or stands for nothing.
    """
    made = {str(v.name): node for node in floats.graph for v in node.outputs if node.op_type in _READS}
    done = {**_stored(made, result), **_packed(made, result), **_static(made, floats, result)}
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
        if node.op_type == "MatMulInteger":
            scale = scale * _moved(floats, node, integers)
        done[found.value] = _meant(str(node.outputs[0].name), place, found.axes, constant(found.value), integers, scale)
    for value, array in done.items():
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=value.name)
    return len(done)


def _moved(floats: ir.Model, product: ir.Node, integers: Array) -> Array:
    """float64[R, 1]: what the channels of the product's input are multiplied with before they are rounded; ones where by nothing.

    That is a Mul by a constant which the graph without integers does not have.
    """
    value = product.inputs[0]
    while value is not None and (behind := value.producer()) is not None and behind.op_type in _ROUNDS:
        value = behind.inputs[0]
    node = value.producer() if value is not None else None
    factor = constant(node.inputs[1]) if node is not None and node.op_type == "Mul" else None
    own = {str(v.name) for one in floats.graph for v in one.outputs}
    if factor is None or value is None or str(value.name) in own or factor.shape != integers.shape[:1]:
        return np.ones((1, 1))
    return factor.astype(np.float64)[:, None]


def _static(made: Mapping[str, ir.Node], floats: ir.Model, result: ir.Model) -> dict[ir.Value, Array]:
    """Weights that are restored by DequantizeLinear before a product reads them, each column by its own scale."""
    done = dict[ir.Value, Array]()
    for node in result.graph:
        restored = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        if restored is None or restored.op_type != "DequantizeLinear":
            continue
        integers, scale, *zero = map(constant, restored.inputs)
        place = _place(made, node)
        if integers is None or scale is None or place is None or integers.ndim != 2:
            raise VerifyError(
                f"{node.outputs[0].name!r} is made of integers that stand for no weight of the graph without"
            )
        axis = restored.attributes.get_int("axis", 1) % 2
        if integers.dtype != np.int8 or scale.shape != integers.shape[axis : axis + 1]:
            raise VerifyError(f"{restored.inputs[1].name!r} is no scale for each column of {restored.inputs[0].name!r}")  # type: ignore[union-attr]
        step = (scale[None] if axis else scale[:, None]).astype(np.float64) * np.ones(integers.shape)
        number = integers.astype(np.float64) - (0 if not zero or zero[0] is None else zero[0].astype(np.float64))
        found = origin(place.inputs[1])
        assert found is not None
        step = step * _moved(floats, node, integers)
        done[found.value] = _meant(str(node.outputs[0].name), place, found.axes, constant(found.value), number, step)
    return done


def _place(made: Mapping[str, ir.Node], node: ir.Node) -> ir.Node | None:
    """The product of the graph without integers that `node` stands for, by its name or that of the bias behind it."""
    after = _reader(node) if node.outputs[0].uses() else None
    ends = (node, after) if after is not None and after.op_type == "Add" else (node,)
    return next((made[name] for end in ends if (name := str(end.outputs[0].name)) in made), None)


def _stored(made: Mapping[str, ir.Node], result: ir.Model) -> dict[ir.Value, Array]:
    """Weights that are restored from integers before a product in float32 reads them: Cast, Mul with a scale."""
    done = dict[ir.Value, Array]()
    for node in result.graph:
        integers, restored = (constant(node.inputs[0]), _reader(node)) if node.op_type == "Cast" else (None, None)
        if integers is None or integers.dtype != np.int8 or restored is None or restored.op_type != "Mul":
            continue
        reader = _reader(restored)
        while reader is not None and reader.op_type in ("Transpose", "Identity"):
            reader = _reader(reader)
        place, scale = (
            made.get(str(reader.outputs[0].name)) if reader is not None else None,
            constant(restored.inputs[1]),
        )
        found = origin(place.inputs[1]) if place is not None and place.op_type != "Gather" else None
        own = constant(found.value) if found is not None else None
        if found is None or own is None or scale is None:
            raise VerifyError(
                f"{restored.outputs[0].name!r} is made of integers that stand for no weight of the graph without"
            )
        meant, step = integers.astype(np.float64) * scale, np.broadcast_to(scale, integers.shape)
        done[found.value] = _within(str(found.value.name), own, meant, step)
    return done


def _packed(made: Mapping[str, ir.Node], result: ir.Model) -> dict[ir.Value, Array]:
    """Tables of numbers that share bytes: ONNX Runtime itself says what every row of them is."""
    from axformer_onnx.runtime import run_once

    done = dict[ir.Value, Array]()
    for name, place in made.items():
        table = origin(place.inputs[0]) if place.op_type == "Gather" else None
        own = constant(table.value) if table is not None else None
        if table is None or own is None or table.value in done or own.ndim != 2:
            continue
        ids = place.inputs[1]
        assert ids is not None
        inside = _between(result.graph, str(ids.name), name)
        if not any((array := constant(v)) is not None and array.dtype == np.uint8 for n in inside for v in n.inputs):
            continue
        dtype = ids.dtype or ir.DataType.INT64
        rows = np.arange(len(own), dtype=dtype.numpy())
        meant = run_once(detached(_alone(inside, str(ids.name), dtype, name, result)), {str(ids.name): rows})[name]
        largest = np.abs(own.reshape(len(own), -1, _BLOCK)).max(axis=2)
        step = np.repeat(largest / _LARGEST, _BLOCK, axis=1)
        done[table.value] = _within(str(table.value.name), own, meant.astype(np.float64), step)
    return done


def _within(name: str, own: Array, meant: Array, step: Array) -> Array:
    """float32 `meant`. Raises: VerifyError beyond half a step."""
    if meant.shape != own.shape or not (np.abs(own - meant) <= (0.5 + _SLACK) * step + 1e-12).all():
        raise VerifyError(f"{name!r}: its integers are further than half a step from the weights that they stand for")
    return meant.astype(np.float32)


def _between(graph: ir.Graph, first: str, last: str) -> list[ir.Node]:
    """The nodes that `last` is made of, back to `first` and to constants, in the order in which they run."""
    wanted, found = {last}, list[ir.Node]()
    for node in reversed(list(graph)):
        if any(str(v.name) in wanted for v in node.outputs):
            found.insert(0, node)
            wanted |= {str(v.name) for v in node.inputs if v is not None and v.name != first}
    return found


def _alone(nodes: Sequence[ir.Node], ids: str, dtype: ir.DataType, last: str, result: ir.Model) -> ir.Model:
    """A model of these nodes: from ids[N] to `last`."""
    held = {str(v.name): v.const_value for n in nodes for v in n.inputs if v is not None and v.const_value is not None}
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in nodes],
        "table",
        [onnx.helper.make_tensor_value_info(ids, int(dtype), ["N"])],
        [onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(tensor.numpy(), name) for name, tensor in held.items()],
    )
    sets = [onnx.helper.make_opsetid(domain, version) for domain, version in result.opset_imports.items()]
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=sets, ir_version=result.ir_version))


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
    return _within(name, own, meant.transpose(back), step.transpose(back))


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
