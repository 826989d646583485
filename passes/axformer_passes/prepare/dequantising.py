"""A quantised model in float32: the numbers that its integers stand for, and activations that are not rounded.

    twin of products (`unrounded_twin`)          MatMul(x, integers) -> Cast -> Mul(scale)     ->   MatMul(x, weight)
    DequantizeLinear(constants)                                                                ->   an initializer
    rows of integers, gathered and then scaled   Mul(Cast(Gather(table, ids)), Gather(scale, ids)) -> Gather(float table, ids)
    QuantizeLinear whose range begins at 0       a quantiser takes a ReLU away before one      ->   Relu

What is fused stays in primitive steps. Beside the graph it needs nothing: equal models give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnx.reference import ReferenceEvaluator

from axformer_passes.graph import Array, Cleanup, constant, fresh, initializer
from axformer_passes.io import detached
from axformer_passes.prepare.unrounded_twin import unrounded
from axformer_passes.prepare.walkable import prepared
from axformer_passes.probe import describe, recipe_of

_INTEGERS = frozenset(
    {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT16, ir.DataType.UINT16}
)
_QUANTISING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger"})
_SIGNED = frozenset({"Add", "BatchNormalization", "Conv", "Gemm", "MatMul"})
"""What a quantiser may have taken a ReLU away behind: their outputs have either sign."""
_BY_ROW = frozenset({"Cast", "Concat", "DequantizeLinear", "Div", "Floor", "Mul", "Reshape", "Sub"})
"""What may stand between integers that are gathered and the row that they stand for."""
_OF_CONSTANTS = frozenset(
    {"Cast", "DequantizeLinear", "Identity", "Mul", "QuantizeLinear", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
_LEAST_OPSET = 21
"""Of the evaluation of single nodes: DequantizeLinear takes all kinds of integers and axes."""


def is_quantised(model: ir.Model) -> bool:
    """Does it compute with integers of few bits, or hold weights that are such?"""
    return any(node.op_type in _QUANTISING for node in model.graph.all_nodes()) or any(
        value.dtype in _INTEGERS and value.shape is not None and len(value.shape) > 1
        for value in model.graph.initializers.values()
    )


def dequantised(model: ir.Model) -> ir.Model:
    """A new model in float32; the model itself where nothing is quantised, or an operator has no form in floats.

    Raises: ModelError for a graph that contradicts itself.
    """
    if not is_quantised(model):
        return model
    work = with_clipping(model)
    Cleanup()(work)
    proto = detached(work).whole()
    floats: ir.Model = ir.from_proto(unrounded(proto))
    graph = floats.graph
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(floats)
    common.IdentityEliminationPass()(floats)
    _fold_constants(graph)
    _fold_pairs(graph)
    _fold_factors(graph)
    _fold_rows(graph)
    Cleanup()(floats)
    if is_quantised(floats):
        return model
    graph.meta.clear()  # names that were given would be counted on by all clones
    describe(floats, recipe_of(model))
    return floats


def with_clipping(model: ir.Model) -> ir.Model:
    """A walkable clone in which a Relu stands wherever only the range of a QuantizeLinear keeps a sum or product from below 0.

    Raises: ModelError as `prepared`.
    """
    work = prepared(_with_float_embeddings(model))
    for node in [node for node in work.graph if node.op_type == "QuantizeLinear" and _begins_at_zero(node)]:
        value = node.inputs[0]
        maker = value.producer() if value is not None else None
        if value is None or maker is None or maker.op_type not in _SIGNED:
            continue
        name = fresh(work.graph, f"{value.name}_clipped")
        relu = ir.node("Relu", [value], outputs=[ir.Value(name=name, shape=value.shape, type=value.type)], name=name)
        work.graph.insert_before(node, relu)
        node.replace_input_with(0, relu.outputs[0])
    return work


def _with_float_embeddings(model: ir.Model) -> ir.Model:
    """QEmbedLayerNormalization(ids, segments, 5 weights, mask, 5 scales, 5 zero points) as EmbedLayerNormalization of floats."""
    if not any(node.op_type == "QEmbedLayerNormalization" for node in model.graph):
        return model
    work = model.clone()
    for node in [node for node in work.graph if node.op_type == "QEmbedLayerNormalization"]:
        inputs = [*node.inputs, *[None] * (18 - len(node.inputs))]
        arrays = [
            _restored(*(constant(v) for v in (inputs[slot], inputs[slot + 6], inputs[slot + 11])))
            for slot in range(2, 7)
        ]
        if any(value is not None and array is None for value, array in zip(inputs[2:7], arrays, strict=True)):
            continue
        floats = [
            None if array is None else initializer(work.graph, f"{value.name}_float", array)  # type: ignore[union-attr]
            for value, array in zip(inputs[2:7], arrays, strict=True)
        ]
        plain = ir.Node(
            node.domain,
            "EmbedLayerNormalization",
            [*inputs[:2], *floats, inputs[7]],
            node.attributes.values(),
            outputs=[
                ir.Value(name=fresh(work.graph, f"{v.name}_float"), shape=v.shape, type=v.type) for v in node.outputs
            ],
            name=node.name,
        )
        work.graph.insert_before(node, plain)
        for old, new in zip(node.outputs, plain.outputs, strict=True):
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        work.graph.remove(node, safe=True)
        for old, new in zip(node.outputs, plain.outputs, strict=True):
            old.name, new.name = None, old.name
    return work


def _restored(integers: Array | None, scale: Array | None, zero: Array | None) -> Array | None:
    """float32: what the integers stand for; None where something is no constant."""
    if integers is None or scale is None or zero is None:
        return None
    return np.asarray((integers.astype(np.int32) - zero.astype(np.int32)) * scale, np.float32)


def _begins_at_zero(node: ir.Node) -> bool:
    """Is its zero point the smallest integer there is?"""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(zero)
    if array is None or array.dtype.kind not in "iu":
        return zero is None  # uint8, 0
    return bool((array == np.iinfo(array.dtype).min).all())


# -- constants --------------------------------------------------------------------------------------------------------


def _fold_constants(graph: ir.Graph) -> None:
    """Floats that are computed of constants by scales, one initializer each."""
    known = dict[ir.Value, Array]()
    for node in list(graph):
        if node.op_type not in _OF_CONSTANTS or any(v is not None and _known(v, known) is None for v in node.inputs):
            continue
        inputs = {str(v.name): _known(v, known) for v in node.inputs if v is not None}
        try:
            array = _evaluated([node], inputs, [node.outputs[0]])[0]  # type: ignore[arg-type]
        except Exception:  # the evaluator's own kinds: integers that it does not know stay, and the model with them
            continue
        known[node.outputs[0]] = array
        if node.op_type in ("DequantizeLinear", "Mul") and array.dtype == np.float32:
            _replace(graph, node.outputs[0], initializer(graph, f"{node.outputs[0].name}_float", array))


def _fold_pairs(graph: ir.Graph) -> None:
    """Numbers that are computed of constants alone, to integers and back: what `unrounded` leaves as it is."""
    for node in list(graph):
        quantise = (
            node.inputs[0].producer() if node.op_type == "DequantizeLinear" and node.inputs[0] is not None else None
        )
        if quantise is not None and quantise.op_type == "QuantizeLinear" and quantise.inputs[0] is not None:
            _replace(graph, node.outputs[0], quantise.inputs[0])


def _known(value: ir.Value, known: dict[ir.Value, Array]) -> Array | None:
    return known[value] if value in known else constant(value) if value.producer() is None else None


def _evaluated(nodes: Iterable[ir.Node], inputs: dict[str, Array], outputs: list[ir.Value]) -> list[Array]:
    """What nodes compute of arrays, in NumPy."""
    protos = [ir.to_proto(node) for node in nodes]
    for proto in protos:
        proto.domain = ""
    empty = [onnx.helper.make_tensor_value_info(name, 0, None) for name in inputs]
    last = [onnx.helper.make_tensor_value_info(str(value.name), 0, None) for value in outputs]
    made = onnx.helper.make_model(
        onnx.helper.make_graph(protos, "constants", empty, last),
        opset_imports=[onnx.helper.make_opsetid("", _LEAST_OPSET)],
    )
    return [np.asarray(array) for array in ReferenceEvaluator(made).run(None, inputs)]


# -- products ---------------------------------------------------------------------------------------------------------


def _fold_factors(graph: ir.Graph) -> None:
    """Scales behind a product move into its weight; factors of 1 go."""
    for node in list(graph):
        if node.op_type in ("MatMul", "Conv"):
            while _fold_factor(graph, node):
                pass


def _fold_factor(graph: ir.Graph, product: ir.Node) -> bool:
    """The one node behind it, if that is a cast to float32 or a constant factor."""
    out = product.outputs[0]
    uses = list(out.uses())
    if len(uses) != 1 or out.is_graph_output():
        return False
    after = uses[0].node
    if after.op_type == "Cast" and after.attributes.get_int("to", 0) == ir.DataType.FLOAT:
        _replace(graph, after.outputs[0], out)
        return True
    factor = constant(after.inputs[1 - uses[0].idx]) if after.op_type == "Mul" else None
    if factor is None or factor.dtype != np.float32:
        return False
    if factor.size == 1 and factor.item() == 1.0:
        _replace(graph, after.outputs[0], out)
        return True
    weight = product.inputs[1]
    array = constant(weight)
    if weight is None or array is None or weight.producer() is not None or len(weight.uses()) != 1 or array.ndim < 2:
        return False
    scaled = _scaled(array, factor, product.op_type)
    if scaled is None:
        return False
    product.replace_input_with(1, initializer(graph, f"{weight.name}_scaled", scaled))
    _replace(graph, after.outputs[0], out)
    return True


def _scaled(weight: Array, factor: Array, operator: str) -> Array | None:
    """The weight times a factor of its output channels; None where it is not such."""
    channels = weight.shape[0] if operator == "Conv" else weight.shape[-1]
    axis = -weight.ndim + 1 if operator == "Conv" else -1
    own = factor.ndim >= -axis and factor.shape[axis] == factor.size if factor.size != 1 else True
    if not own or factor.size not in (1, channels):
        return None
    behind = (1,) * (weight.ndim - 1) if operator == "Conv" and factor.size != 1 else ()
    return np.asarray(weight * factor.reshape(factor.size, *behind), np.float32)


# -- tables -----------------------------------------------------------------------------------------------------------


def _fold_rows(graph: ir.Graph) -> None:
    """Rows of integers that are gathered and scaled: gathered from the table that they stand for."""
    seen = set[ir.Value]()
    for node in list(graph):
        ids = node.inputs[1] if node.op_type == "Gather" else None
        table = constant(node.inputs[0]) if ids is not None else None
        if (
            ids is None
            or table is None
            or ids in seen
            or constant(ids) is not None
            or table.dtype not in (np.int8, np.uint8)
        ):
            continue
        if node.attributes.get_int("axis", 0) != 0:
            continue
        seen.add(ids)
        _fold_region(graph, ids)


def _fold_region(graph: ir.Graph, ids: ir.Value) -> None:
    """All that is computed of constants and of these ids, row by row."""
    region, rows = list[ir.Node](), dict[ir.Value, int]()
    sizes = set[ir.Value]()
    for node in graph:
        out = node.outputs[0]
        table = constant(node.inputs[0]) if node.op_type == "Gather" and node.inputs[1] is ids else None
        inputs = [v for v in node.inputs if v is not None]
        if table is not None and table.ndim > 1 and node.attributes.get_int("axis", 0) == 0:
            rows[out] = len(table)
        elif node.op_type == "Shape" and node.inputs[0] is ids:
            sizes.add(out)
        elif node.op_type in _BY_ROW and any(v in rows or v in sizes for v in inputs):
            if any(v not in rows and v not in sizes and constant(v) is None for v in inputs):
                continue
            found = [rows[v] for v in inputs if v in rows]
            (rows.update({out: found[0]}) if found else sizes.add(out))
        else:
            continue
        region.append(node)
    inside = set(region)
    for out, count in list(rows.items()):
        ended = any(use.node not in inside for use in out.uses()) and not out.is_graph_output()
        if ended and out.producer().op_type != "Gather":  # type: ignore[union-attr]
            _fold_end(graph, region, ids, out, count)


def _fold_end(graph: ir.Graph, region: list[ir.Node], ids: ir.Value, out: ir.Value, count: int) -> None:
    needed, waiting = set[ir.Node](), [out]
    while waiting:
        maker = waiting.pop().producer()
        if maker is not None and maker in region and maker not in needed:
            needed.add(maker)
            waiting += [v for v in maker.inputs if v is not None]
    nodes = [node for node in region if node in needed]
    read = {v for node in nodes for v in node.inputs if v is not None and v is not ids}
    given = {str(v.name): array for v in read if (array := constant(v)) is not None}

    def at(some: Array) -> Array:
        return _evaluated(nodes, {**given, str(ids.name): some}, [out])[0]

    few = np.array([[0, count - 1, count // 2], [count // 3, 0, 0]])
    try:
        table = at(np.arange(count)[None])
    except Exception:  # as in `_fold_constants`
        return
    by_row = table.ndim == 3 and table.shape[:2] == (1, count) and table.dtype == np.float32
    if not by_row or not np.array_equal(at(few), table[0][few]):
        return
    gathered = ir.Value(name=fresh(graph, f"{out.name}_row"), shape=out.shape, type=out.type)
    whole = initializer(graph, f"{out.name}_table", np.ascontiguousarray(table[0]))
    last = out.producer()
    assert last is not None
    graph.insert_after(last, ir.node("Gather", [whole, ids], {"axis": 0}, outputs=[gathered]))
    ir.convenience.replace_all_uses_with(out, gathered)


def _replace(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """Read `new` where `old` was read; the node that made `old` goes. A graph output keeps its name."""
    node = old.producer()
    assert node is not None
    if old.is_graph_output():
        name = old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        old.name, new.name = None, name
        return
    ir.convenience.replace_all_uses_with(old, new)
    graph.remove(node, safe=True)


__all__ = ["dequantised", "is_quantised", "with_clipping"]
