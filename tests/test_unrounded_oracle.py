"""The oracle without rounding, against products in NumPy; and where nothing is rounded it changes no bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from graph_oracle import run_as_declared
from onnx import TensorProto, helper, numpy_helper
from unrounded_oracle import without_rounding
from zoo import build, onnx_outputs

from axformer_passes.prepare.unrounded_twin import unrounded

WEIGHT = np.random.default_rng(0).integers(-64, 64, (6, 4)).astype(np.int8)
ZERO = np.array([3, -5, 0, 17], np.int8)
SCALE = np.array([0.5, 0.25, 2.0, 0.125], np.float32)
BIAS = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
X = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
PRODUCT = X @ ((WEIGHT.astype(np.float32) - ZERO) * SCALE)


def node(
    operator: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any
) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, domain=domain, **attributes)


QUANTISED = node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])
BY_HAND = [
    QUANTISED,
    node("MatMulInteger", ["q", "weight", "z", "zero"], ["i"]),
    node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
    node("Mul", ["s", "scale"], ["both"]),
    node("Mul", ["f", "both"], ["y"]),
]
STATIC = [
    node("QuantizeLinear", ["x", "step", "middle"], ["q"]),
    node("DequantizeLinear", ["q", "step", "middle"], ["d"]),
    node("DequantizeLinear", ["weight", "scale", "zero"], ["w"], axis=1),
    node("MatMul", ["d", "w"], ["y"]),
]
IN_ONE = [node("DynamicQuantizeMatMul", ["x", "weight", "scale", "zero", "bias"], ["y"], "com.microsoft")]
IN_TWO = [
    QUANTISED,
    node("MatMulIntegerToFloat", ["q", "weight", "s", "scale", "z", "zero", "bias"], ["y"], "com.microsoft"),
]


def model(nodes: list[onnx.NodeProto]) -> bytes:
    given = {
        "weight": WEIGHT,
        "zero": ZERO,
        "scale": SCALE,
        "bias": BIAS,
        "step": np.float32(0.1),
        "middle": np.uint8(128),
    }
    graph = helper.make_graph(
        nodes, "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in given.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString())


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [(BY_HAND, PRODUCT), (STATIC, PRODUCT), (IN_ONE, PRODUCT + BIAS), (IN_TWO, PRODUCT + BIAS)],
    ids=["MatMulInteger", "QuantizeLinear", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"],
)
def test_a_quantised_product_is_the_product_with_the_weight_that_the_integers_stand_for(
    nodes: list[onnx.NodeProto], expected: np.ndarray
) -> None:
    rounded = onnx_outputs(model(nodes), {"x": X})[0]
    found = onnx_outputs(without_rounding(model(nodes)), {"x": X})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert 1e-3 < np.abs(rounded - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("nodes", [BY_HAND, STATIC], ids=["MatMulInteger", "QuantizeLinear"])
def test_the_twin_that_the_package_checks_with_is_that_product_too(nodes: list[onnx.NodeProto]) -> None:
    twin = unrounded(onnx.ModelProto.FromString(model(nodes)))
    found = onnx_outputs(twin.SerializeToString(), {"x": X})[0]
    np.testing.assert_allclose(found, PRODUCT, rtol=1e-5, atol=1e-4)


def test_a_float_file_is_left_as_it_is_to_the_last_bit() -> None:
    found = build("bert", "torchscript-eager-17")
    feeds = found.feeds(3, 9)
    content = found.path.read_bytes()
    np.testing.assert_array_equal(
        run_as_declared(without_rounding(content), feeds)[0], onnx_outputs(found.path, feeds)[0]
    )


def test_an_operator_that_it_does_not_know_is_no_silent_pass() -> None:
    nodes = [BY_HAND[0], node("QLinearMatMul", ["q", "s", "z", "weight", "scale", "zero", "step", "middle"], ["y"])]
    with pytest.raises(AssertionError, match=r"QLinearMatMul .*computes with"):
        without_rounding(model(nodes))
