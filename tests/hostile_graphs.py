"""Hostile models that parse: tensors that lie, graphs that contradict themselves, odd types (see hostile_files.py)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
from hostile_files import FLOATS, LOGITS, bytes_, graph, model, proto_, varint, weight
from onnx import ModelProto, TensorProto, helper, numpy_helper

node = helper.make_node
info = helper.make_tensor_value_info

# -- tensors --------------------------------------------------------------------------------------------------------


def _tensor(**fields: Any) -> ModelProto:
    tensor = weight()
    if "dims" in fields:
        del tensor.dims[:]
    for key in ("float_data", "int32_data", "string_data"):
        if key in fields:
            tensor.ClearField("raw_data")
    for key, value in fields.items():
        if isinstance(value, list):
            getattr(tensor, key).extend(value)
        else:
            setattr(tensor, key, value)
    return model(graph(tensors=[tensor]))


@proto_("needs 36")
def more_shape_than_bytes() -> ModelProto:
    return _tensor(dims=[3, 3])


@proto_("negative size")
def a_negative_size() -> ModelProto:
    return _tensor(dims=[-1, 4])


@proto_("needs")
def ten_to_the_eighteen_elements_without_data() -> ModelProto:
    return _tensor(dims=[10**9, 10**9], raw_data=b"")


@proto_("needs")
def sizes_that_overflow_64_bits() -> ModelProto:
    return _tensor(dims=[2**62, 2**62, 4])


@proto_("nothing in it")
def millions_of_columns_without_a_row() -> ModelProto:
    first, second = _empty("w", [4, 0]), _empty("v", [0, 2**22])
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "v"], ["y"])]
    return model(graph(nodes, tensors=[first, second]))


def _empty(name: str, shape: list[int]) -> TensorProto:
    return helper.make_tensor(name, TensorProto.FLOAT, shape, [])


@proto_("needs 16")
def too_few_floats() -> ModelProto:
    return _tensor(dims=[4, 4], float_data=[1.0] * 15)


@proto_("needs 8")
def four_bits_that_claim_more() -> ModelProto:
    return _tensor(dims=[4, 4], data_type=TensorProto.INT4, int32_data=[1])


@proto_("")
def an_unknown_element_type() -> ModelProto:
    return _tensor(data_type=999)


@proto_("element type that is not known")
def an_unknown_element_type_of_a_weight_that_is_an_input_too() -> ModelProto:
    tensor = weight()
    tensor.data_type = 38
    return model(graph(inputs=[FLOATS, info("w", TensorProto.FLOAT, [4, 4])], tensors=[tensor]))


@proto_("no element type")
def no_element_type() -> ModelProto:
    return _tensor(data_type=0)


@proto_("")
def strings_as_weights() -> ModelProto:
    return _tensor(data_type=TensorProto.STRING, dims=[4, 4], string_data=[b"a"] * 16)


@proto_("needs 16")
def too_few_strings() -> ModelProto:
    return _tensor(data_type=TensorProto.STRING, dims=[4, 4], string_data=[b"a"])


@proto_("sparse initializers")
def a_sparse_initializer() -> ModelProto:
    made = graph(tensors=[])
    values, indices = weight(shape=(2,)), numpy_helper.from_array(np.array([0, 5]), "i")
    made.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4, 4]))
    return model(made)


@proto_(None)
def weights_that_are_no_numbers() -> ModelProto:
    return model(graph(tensors=[numpy_helper.from_array(np.full((4, 4), np.nan, np.float32), "w")]))


@proto_(None)
def weights_without_end() -> ModelProto:
    return model(graph(tensors=[numpy_helper.from_array(np.full((4, 4), np.inf, np.float32), "w")]))


@proto_(None)
def sizes_of_zero() -> ModelProto:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "v"], ["y"])]
    return model(graph(nodes, [weight("w", (4, 0)), weight("v", (0, 4))]))


# -- structure ------------------------------------------------------------------------------------------------------


@proto_("")
def a_cycle() -> ModelProto:
    return model(graph([node("Add", ["x", "b"], ["a"]), node("Add", ["a", "w"], ["b"]), node("Relu", ["b"], ["y"])]))


@proto_("")
def a_node_that_reads_itself() -> ModelProto:
    return model(graph([node("Add", ["x", "y"], ["y"])]))


@proto_(None)
def nodes_in_the_wrong_order() -> ModelProto:
    """Read and put in order: ONNX Runtime's quantiser writes such files."""
    return model(graph(list(graph().node)[::-1]))


@proto_("")
def a_missing_initializer() -> ModelProto:
    return model(graph(tensors=[]))


@proto_("")
def a_tensor_made_twice() -> ModelProto:
    return model(graph([node("MatMul", ["x", "w"], ["y"]), node("Relu", ["x"], ["y"])]))


@proto_("")
def an_initializer_twice() -> ModelProto:
    return model(graph(tensors=[weight(), weight(shape=(4, 5))]))


@proto_("")
def an_output_that_nobody_makes() -> ModelProto:
    return model(graph(outputs=[LOGITS, info("none", TensorProto.FLOAT, None)]))


@proto_("no nodes or no outputs")
def no_outputs() -> ModelProto:
    return model(graph(outputs=[]))


@proto_(None)
def no_inputs() -> ModelProto:
    return model(
        graph([node("MatMul", ["v", "w"], ["h"]), node("Softmax", ["h"], ["y"])], [weight("v"), weight()], inputs=[])
    )


@proto_(None)
def an_output_that_is_an_input() -> ModelProto:
    return model(graph(outputs=[LOGITS, FLOATS]))


@proto_(None)
def an_output_that_is_a_weight() -> ModelProto:
    return model(graph(outputs=[LOGITS, info("w", TensorProto.FLOAT, [4, 4])]))


@proto_("also a graph input")
def an_input_that_is_a_weight() -> ModelProto:
    return model(graph(inputs=[FLOATS, info("w", TensorProto.FLOAT, [4, 4])]))


@proto_("")
def shapes_that_do_not_fit() -> ModelProto:
    return model(graph(tensors=[weight(shape=(5, 4))]))


@proto_("")
def no_graph() -> ModelProto:
    proto = model(producer_name="a producer with a long name")
    proto.ClearField("graph")
    return proto


@proto_("")
def an_unknown_operator() -> ModelProto:
    return model(graph([node("Frobnicate", ["x"], ["y"])]))


@proto_("")
def an_unknown_domain() -> ModelProto:
    return model(graph([node("Relu", ["x"], ["y"], domain="evil.example")]))


@proto_("operator set None")
def no_operator_set() -> ModelProto:
    proto = model()
    del proto.opset_import[:]
    return proto


@proto_("operator set 0")
def operator_set_0() -> ModelProto:
    return model(opset=0)


@proto_("")
def operator_set_a_million() -> ModelProto:
    return model(opset=10**6)


@proto_("")
def ir_version_a_billion() -> ModelProto:
    return model(ir_version=10**9)


@proto_("")
def ir_version_below_zero() -> ModelProto:
    return model(ir_version=-3)


# -- depth ----------------------------------------------------------------------------------------------------------


def _nested(depth: int) -> onnx.GraphProto:
    inner = helper.make_graph([node("Identity", ["x"], ["o"])], "leaf", [], [info("o", 1, None)])
    for _ in range(depth):
        made = node("If", ["c"], ["o"], then_branch=inner, else_branch=helper.make_graph([], "e", [], []))
        inner = helper.make_graph([made], "level", [], [info("o", 1, None)])
    return inner


@proto_("")
def subgraphs_twenty_deep() -> ModelProto:
    made = node("If", ["c"], ["y"], then_branch=_nested(20), else_branch=_nested(0))
    return model(graph([made], [numpy_helper.from_array(np.array(True), "c")]))


def _deep(depth: int) -> bytes:
    """ModelProto with `depth` subgraphs in each other, by hand: protobuf itself refuses to build it."""
    inner = b"\x0a\x02\x22\x00"  # one node
    for _ in range(depth):
        attribute = b"\x0a\x0bthen_branch" + b"\x32" + varint(len(inner)) + inner + b"\xa0\x01\x05"
        made = b"\x22\x02If" + b"\x2a" + varint(len(attribute)) + attribute
        inner = b"\x0a" + varint(len(made)) + made
    return b"\x08\x08\x3a" + varint(len(inner)) + inner


bytes_("subgraphs_a_thousand_deep", "not an ONNX model", _deep(1000))


def _functions(*calls: tuple[str, tuple[str, ...]]) -> ModelProto:
    """Functions by name, each calling others one after the other on its input."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    made = []
    for name, called in calls:
        body = [node(f, [f"t{i}"], [f"t{i + 1}"], domain="mine") for i, f in enumerate(called)]
        body = body or [node("Relu", ["t0"], ["t1"])]
        made.append(helper.make_function("mine", name, ["t0"], [f"t{len(body)}"], body, imports))
    start = [node(calls[0][0], ["x"], ["y"], domain="mine")]
    return model(graph(start), opset_imports=imports, functions=made)


@proto_("")
def a_function_that_calls_itself() -> ModelProto:
    return _functions(("F", ("F",)))


@proto_("")
def functions_that_call_each_other() -> ModelProto:
    return _functions(("F", ("G",)), ("G", ("H", "H")), ("H", ("F",)))


def functions_that_double() -> ModelProto:
    """Forty times."""
    names = [f"F{i}" for i in range(40)]
    return _functions(*((a, (b, b)) for a, b in itertools.pairwise(names)), (names[-1], ()))


proto_("too many nodes")(functions_that_double)


@proto_("")
def functions_that_double_and_are_not_called() -> ModelProto:
    proto = functions_that_double()
    proto.graph.node[0].op_type = "Missing"
    return proto


@proto_("")
def a_function_with_another_number_of_inputs() -> ModelProto:
    proto = _functions(("F", ()))
    proto.graph.node[0].input.extend(["x", "w"])
    return proto
