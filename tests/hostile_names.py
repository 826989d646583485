"""Hostile models that parse: operators, inputs and names (see hostile_files.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hostile_files import FLOATS, bytes_, case, external, graph, model, proto_, weight
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

node = helper.make_node
info = helper.make_tensor_value_info
ESCAPE = "\x1b]0;owned\x07\x1b[31m"
"""Sets a terminal's title and turns its text red."""

# -- operators ------------------------------------------------------------------------------------------------------


def _loop() -> onnx.NodeProto:
    values = [info("i", TensorProto.INT64, []), info("c0", TensorProto.BOOL, []), info("v", 1, None)]
    body = helper.make_graph(
        [node("Identity", ["c0"], ["c1"]), node("Identity", ["v"], ["v1"])], "body", values,
        [info("c1", TensorProto.BOOL, []), info("v1", 1, None)],
    )  # fmt: skip
    return node("Loop", ["trips", "", "x"], ["y"], body=body)


@proto_("Loop or Scan")
def a_loop_without_end() -> ModelProto:
    return model(graph([_loop()], [numpy_helper.from_array(np.array(2**60), "trips")]))


@proto_("Loop or Scan")
def a_loop_without_end_in_a_subgraph() -> ModelProto:
    loop = _loop()
    loop.output[0] = "o"
    inner = helper.make_graph([loop], "inner", [], [info("o", 1, None)])
    consts = [numpy_helper.from_array(np.array(2**60), "trips"), numpy_helper.from_array(np.array(True), "c")]
    return model(graph([node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)], consts))


@proto_("")
def an_expand_to_a_petabyte() -> ModelProto:
    shape = numpy_helper.from_array(np.array([10**9, 10**6, 1, 4]), "s")
    return model(graph([node("Expand", ["x", "s"], ["y"])], [shape]))


@proto_("")
def constants_of_every_kind() -> ModelProto:
    """Also kinds that do not go together."""
    values: dict[str, Any] = {
        "value_float": 1.0, "value_int": 2, "value_string": "s", "value_floats": [1.0], "value_ints": [1],
        "value_strings": ["a", "b"], "value": weight(),
    }  # fmt: skip
    nodes = [node("Constant", [], [key], **{key: value}) for key, value in values.items()]
    nodes += [node("Constant", [], ["none"]), node("Constant", [], ["two"], value_int=1, value_float=2.0)]
    return model(graph([*nodes, *graph().node]))


@proto_("")
def an_attribute_of_the_wrong_kind() -> ModelProto:
    return model(graph([node("Softmax", ["x"], ["y"], axis="the last")]))


@proto_("")
def an_attribute_without_a_kind() -> ModelProto:
    made = node("Softmax", ["x"], ["y"], axis=1)
    made.attribute[0].type = AttributeProto.UNDEFINED
    made.attribute[0].ClearField("i")
    return model(graph([made]))


@proto_("")
def a_million_integers_in_an_attribute() -> ModelProto:
    return model(graph([node("Transpose", ["x"], ["y"], perm=[1] * 10**6)]))


# -- inputs ---------------------------------------------------------------------------------------------------------


def _input(value: onnx.ValueInfoProto) -> ModelProto:
    value.name = "x"
    return model(graph(inputs=[value]))


@proto_("declares no shape")
def an_input_without_a_type() -> ModelProto:
    return _input(onnx.ValueInfoProto())


@proto_("")
def an_input_that_is_a_sequence() -> ModelProto:
    return _input(helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, ["n", 4]))


@proto_("")
def an_input_that_is_optional() -> ModelProto:
    return _input(helper.make_value_info("x", helper.make_optional_type_proto(FLOATS.type)))


@proto_("")
def an_input_that_is_a_map() -> ModelProto:
    return _input(helper.make_value_info("x", helper.make_map_type_proto(TensorProto.INT64, FLOATS.type)))


@proto_("")
def an_input_of_no_element_type() -> ModelProto:
    return _input(info("x", TensorProto.UNDEFINED, ["n", 4]))


@proto_("")
def an_input_of_strings() -> ModelProto:
    return _input(info("x", TensorProto.STRING, ["n", 4]))


@proto_("elements")
def an_input_of_an_exabyte() -> ModelProto:
    return _input(info("x", TensorProto.FLOAT, [10**9, 10**9]))


@proto_("elements")
def an_input_of_sixty_open_axes() -> ModelProto:
    return _input(info("x", TensorProto.FLOAT, [f"d{i}" for i in range(60)]))


@proto_(None)  # an axis of unknown size, as paddle2onnx writes it
def an_input_of_negative_size() -> ModelProto:
    return _input(info("x", TensorProto.FLOAT, [-4, 4]))


# -- names ----------------------------------------------------------------------------------------------------------


@proto_(None)
def names_with_escapes() -> ModelProto:
    """Everything that has a name is called so that a terminal would obey it."""
    nodes = [
        node("MatMul", ["x", "w"], [f"a{ESCAPE}\n"]),
        node(f"Odd{ESCAPE}", [f"a{ESCAPE}\n"], ["y"], name=ESCAPE, domain=f"d{ESCAPE}"),
    ]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(f"d{ESCAPE}", 1)]
    return model(graph(nodes), opset_imports=imports, producer_name=f"p{ESCAPE}\r\n")


@proto_(None)
def a_producer_with_escapes() -> ModelProto:
    return model(producer_name=f"p{ESCAPE}\r\nnot recognised: nothing", producer_version="../../x")


@proto_(None)
def names_that_are_paths() -> ModelProto:
    nodes = [node("MatMul", ["x", "../../w"], ["/etc/h"]), node("Softmax", ["/etc/h"], ["y"])]
    return model(graph(nodes, [weight("../../w")]))


@proto_(None)
def names_with_escapes_in_a_whole_transformer() -> ModelProto:
    """Layers are recognised, with refusals and reasons that name what is in the file."""
    import small_graphs as draw

    proto = draw.layer(lambda g, w, x: draw.attend(g, w, draw.separate(g, w, x)), draw.plain, draw.weights())
    rename = {
        v: f"{v}{ESCAPE}" for n in proto.graph.node for v in n.output if v not in {o.name for o in proto.graph.output}
    }
    for one in proto.graph.node:
        one.input[:] = [rename.get(v, v) for v in one.input]
        one.output[:] = [rename.get(v, v) for v in one.output]
    proto.producer_name = ESCAPE
    del proto.graph.value_info[:]
    return proto


@case(None)
def data_with_keys_that_nobody_knows(folder: Path) -> Path:
    """onnx warns of them."""
    (folder / "w.data").write_bytes(weight().raw_data)
    tensor = external(f"w{ESCAPE}", **{ESCAPE: "1"})
    path = folder / "model.onnx"
    path.write_bytes(model(graph([node("MatMul", ["x", tensor.name], ["y"])], [tensor])).SerializeToString())
    return path


def _not_text(name: str, damage: Callable[[ModelProto], None]) -> None:
    """Protobuf writes and reads a text that is not UTF-8, and hands it out as bytes."""
    proto = model(graph(tensors=[external(location="BAD")] if name == "location" else None))
    damage(proto)
    bytes_(f"a_{name}_that_is_not_utf8", "is not UTF-8", proto.SerializeToString().replace(b"BAD", b"B\x96D"))


_not_text("location", lambda _: None)
_not_text("node_name", lambda proto: setattr(proto.graph.node[0], "name", "BAD"))
_not_text("operator", lambda proto: setattr(proto.graph.node[0], "op_type", "BAD"))
_not_text("tensor_name", lambda proto: setattr(proto.graph.initializer[0], "name", "BAD"))
_not_text("tensor_that_is_read", lambda proto: proto.graph.node[0].input.append("BAD"))
_not_text("symbol", lambda proto: setattr(proto.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "BAD"))
_not_text("remark", lambda proto: setattr(proto.metadata_props.add(key="k"), "value", "BAD"))
_not_text("producer", lambda proto: setattr(proto, "producer_name", "BAD"))
