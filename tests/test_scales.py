"""Factors that meet the same weight one after the other all go into it, in every run alike."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.io.files import serialized
from axformer_passes.simplify.fold import fold_constants


def two_factors(shared: bool) -> onnx.ModelProto:
    """x @ W x 0.5 -> Reshape -> x 0.25; `shared`: a second product reads W, too."""
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    constants = {"w": weight, "half": np.float32(0.5), "quarter": np.float32(0.25), "to": np.array([-1, 2])}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "half"], ["b"]),
        helper.make_node("Reshape", ["b", "to"], ["c"]),
        helper.make_node("Mul", ["c", "quarter"], ["d"]),
        helper.make_node("Identity", ["d"], ["y"]),
    ]
    outputs = ["y"]
    if shared:
        nodes.append(helper.make_node("MatMul", ["x", "w"], ["z"]))
        outputs.append("z")
    graph = helper.make_graph(
        nodes,
        "two factors",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["b", 3])],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def folded(proto: onnx.ModelProto) -> onnx.ModelProto:
    model = ir.from_proto(proto)
    fold_constants(model, run_once)
    return onnx.ModelProto.FromString(serialized(model))


def test_two_factors_go_into_one_weight() -> None:
    result = folded(two_factors(shared=False))
    assert "Mul" not in [node.op_type for node in result.graph.node]
    weight = next(numpy_helper.to_array(one) for one in result.graph.initializer if one.name == "w")
    np.testing.assert_array_equal(weight, np.arange(12, dtype=np.float32).reshape(3, 4) / 8)


def test_a_weight_that_others_read_stays_as_it_is() -> None:
    result = folded(two_factors(shared=True))
    assert [node.op_type for node in result.graph.node].count("Mul") == 2
    x = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    product = x @ np.arange(12, dtype=np.float32).reshape(3, 4)
    found = run_once(result.SerializeToString(), {"x": x})
    np.testing.assert_allclose(found["z"], product, rtol=1e-5)
    np.testing.assert_allclose(found["y"], product.reshape(-1, 2) / 8, rtol=1e-5)
