"""Variants of an export that no library writes: each takes a model and gives it back in another form of the same arithmetic.

    retyped          the element type of every tensor, cast, input and output
    in_bfloat16      weights and arithmetic in bfloat16, as torch exports a bfloat16 module; no CPU runtime has most of it
    weights_in_half  weights stored as float16 behind a Cast, arithmetic in float32
    constants, transposed, functions, metadata       the other ways to write one graph

Plain onnx, nothing of the package. A new node hands out the name that the initializer had, so no reader needs an edit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import ml_dtypes
import numpy as np
import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

DOMAIN = "zoo"
_TYPE_ATTRIBUTES = ("to", "dtype")


def retyped(model: ModelProto, source: int, target: int) -> ModelProto:
    """A copy with every tensor of element type `source` in `target`; finite values stay finite."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for graph in _graphs(model.graph):
        for tensor in graph.initializer:
            _retype(tensor, source, target)
        for value in (*graph.input, *graph.output, *graph.value_info):
            kind = value.type.tensor_type
            kind.elem_type = target if kind.elem_type == source else kind.elem_type
    for node in _nodes(model):
        _retype_attributes(node, source, target)
    return model


def in_bfloat16(model: ModelProto) -> ModelProto:
    """Weights, arithmetic, inputs and outputs in bfloat16."""
    return retyped(model, TensorProto.FLOAT, TensorProto.BFLOAT16)


def weights_in_half(model: ModelProto) -> ModelProto:
    """float32 initializers of one axis or more -> float16 initializer -> Cast to float32."""

    def behind_cast(tensor: TensorProto) -> tuple[TensorProto, NodeProto] | None:
        if tensor.data_type != TensorProto.FLOAT or not tensor.dims:
            return None
        half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{tensor.name}.half")
        return half, helper.make_node("Cast", [half.name], [tensor.name], f"{tensor.name}.cast", to=TensorProto.FLOAT)

    return _replaced(model, behind_cast)


def constants(model: ModelProto) -> ModelProto:
    """Every initializer -> Constant node."""

    def as_node(tensor: TensorProto) -> tuple[None, NodeProto]:
        return None, helper.make_node("Constant", [], [tensor.name], f"{tensor.name}.constant", value=tensor)

    return _replaced(model, as_node)


def transposed(model: ModelProto) -> ModelProto:
    """Weights w[rows, columns] of MatMul -> initializer w[columns, rows] -> Transpose, as torch keeps them."""
    names = {node.input[1] for node in model.graph.node if node.op_type == "MatMul"}

    def behind_transpose(tensor: TensorProto) -> tuple[TensorProto, NodeProto] | None:
        if tensor.name not in names or len(tensor.dims) != 2:
            return None
        turned = numpy_helper.from_array(numpy_helper.to_array(tensor).T.copy(), f"{tensor.name}.turned")
        return turned, helper.make_node(
            "Transpose", [turned.name], [tensor.name], f"{tensor.name}.transpose", perm=[1, 0]
        )

    return _replaced(model, behind_transpose)


def metadata(model: ModelProto) -> ModelProto:
    """`metadata_props` and a doc string on every node, as exporters leave them to say where a node is from."""
    model.ir_version = max(model.ir_version, 10)
    for index, node in enumerate(model.graph.node):
        node.doc_string = f"node {index}"
        node.metadata_props.add(key="zoo.index", value=str(index))
        node.metadata_props.add(key="namespace", value=node.name.rpartition("/")[0] or "root")
    return model


def functions(model: ModelProto) -> ModelProto:
    """MatMul + Add -> Linear, LayerNormalization -> Norm, Softmax -> Probabilities: functions of the model itself."""
    opset = next(o.version for o in model.opset_import if o.domain == "")
    imports = [helper.make_opsetid("", opset)]
    bodies: dict[str, FunctionProto] = {
        "Linear": helper.make_function(
            DOMAIN, "Linear", ["x", "weight", "bias"], ["y"],
            [helper.make_node("MatMul", ["x", "weight"], ["xw"]), helper.make_node("Add", ["xw", "bias"], ["y"])], imports,
        ),
        "Norm": _wrapping("Norm", "LayerNormalization", ["x", "scale", "bias"], ["axis", "epsilon"], imports),
        "Probabilities": _wrapping("Probabilities", "Softmax", ["scores"], ["axis"], imports),
    }  # fmt: skip
    _call_linears(model.graph)
    calls = {"LayerNormalization": "Norm", "Softmax": "Probabilities"}
    for node in model.graph.node:
        body = bodies.get(calls.get(node.op_type, ""))
        if body is not None and {a.name for a in node.attribute} >= set(body.attribute):
            node.op_type, node.domain = body.name, DOMAIN
            kept = [a for a in node.attribute if a.name in body.attribute]
            del node.attribute[:]
            node.attribute.extend(kept)
    model.functions.extend(bodies.values())
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return model


def _wrapping(
    name: str, operator: str, inputs: list[str], attributes: list[str], imports: Iterable[onnx.OperatorSetIdProto]
) -> FunctionProto:
    node = helper.make_node(operator, inputs, ["y"])
    kinds = {"axis": AttributeProto.INT, "epsilon": AttributeProto.FLOAT}
    for attribute in attributes:
        node.attribute.add(name=attribute, ref_attr_name=attribute, type=kinds[attribute])
    return helper.make_function(DOMAIN, name, inputs, ["y"], [node], list(imports), attributes)


def _call_linears(graph: GraphProto) -> None:
    """MatMul by an initializer whose one reader is the Add of an initializer -> Linear, in the place of the Add."""
    weights = {t.name for t in graph.initializer}
    readers = [name for node in graph.node for name in node.input] + [o.name for o in graph.output]
    products = {n.output[0]: n for n in graph.node if n.op_type == "MatMul" and n.input[1] in weights}
    gone = []
    for node in graph.node:
        if node.op_type != "Add" or not products.keys() & set(node.input) or not weights & set(node.input):
            continue
        product = next(products[name] for name in node.input if name in products)
        bias = next(name for name in node.input if name in weights)
        if readers.count(product.output[0]) == 1:
            gone.append(product)
            node.op_type, node.domain = "Linear", DOMAIN
            node.input[:] = [product.input[0], product.input[1], bias]
    for product in gone:
        graph.node.remove(product)


def _replaced(
    model: ModelProto, rule: Callable[[TensorProto], tuple[TensorProto | None, NodeProto] | None]
) -> ModelProto:
    """Initializers for which `rule` gives (initializer or None, node): these in their place, the nodes first of all."""
    kept: list[TensorProto] = []
    first: list[NodeProto] = []
    for tensor in model.graph.initializer:
        found = rule(tensor)
        if found is None:
            kept.append(tensor)
            continue
        kept.extend([found[0]] if found[0] is not None else [])
        first.append(found[1])
    nodes = [*first, *model.graph.node]
    for field, values in ((model.graph.initializer, kept), (model.graph.node, nodes)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    return model


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graphs(inner)


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    for graph in _graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _retype_attributes(node: NodeProto, source: int, target: int) -> None:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _retype(attribute.t, source, target)
        elif attribute.name in _TYPE_ATTRIBUTES and attribute.i == source:
            attribute.i = target
    if node.op_type == "Constant" and node.attribute[0].name in ("value_float", "value_floats"):
        plain = node.attribute[0]
        values = np.asarray(plain.f if plain.name == "value_float" else list(plain.floats), np.float32)
        if source == TensorProto.FLOAT:
            node.attribute[0].CopyFrom(helper.make_attribute("value", numpy_helper.from_array(values)))
            _retype(node.attribute[0].t, source, target)


def _retype(tensor: TensorProto, source: int, target: int) -> None:
    if tensor.data_type != source:
        return
    dtype = helper.tensor_dtype_to_np_dtype(target)
    limit = ml_dtypes.finfo(dtype)
    values = numpy_helper.to_array(tensor).astype(np.float32)
    finite = np.clip(values, np.float32(limit.min), np.float32(limit.max))
    tensor.CopyFrom(numpy_helper.from_array(np.where(np.isfinite(values), finite, values).astype(dtype), tensor.name))
