"""Models that come quantised, in float32: the oracle is the float model that onnxruntime quantised, with rounded weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from axformer_passes.prepare.dequantising import dequantised, is_quantised

_ROWS, _WIDTH = 12, 8


def _source() -> onnx.ModelProto:
    """Rows of a table, shifted -> product -> Relu -> product."""
    rng = np.random.default_rng(0)
    arrays = {
        "table": rng.normal(size=(_ROWS, _WIDTH)),
        "offset": rng.normal(size=_WIDTH),
        "first": rng.normal(size=(_WIDTH, 16)),
        "bias": rng.normal(size=16),
        "second": rng.normal(size=(16, 3)),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"], "gather"),
        helper.make_node("Add", ["rows", "offset"], ["shifted"], "shift"),
        helper.make_node("MatMul", ["shifted", "first"], ["product"], "product_one"),
        helper.make_node("Add", ["product", "bias"], ["sum"], "add"),
        helper.make_node("Relu", ["sum"], ["hidden"], "relu"),
        helper.make_node("MatMul", ["hidden", "second"], ["logits"], "product_two"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens", 3])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self._left = iter([{"input_ids": np.arange(_ROWS, dtype=np.int64).reshape(2, -1)}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


def _quantised(kind: str, folder: Path) -> onnx.ModelProto:
    before, after = folder / "float.onnx", folder / "integers.onnx"
    onnx.save(_source(), before)
    if kind == "dynamic":
        quantize_dynamic(before, after, weight_type=QuantType.QInt8, per_channel=False)
    else:
        quantize_static(before, after, _Reader(), QuantFormat.QDQ, weight_type=QuantType.QInt8)
    return onnx.load(after)


def _step(array: np.ndarray) -> float:
    """Of eight bits with one scale for the array, its range symmetric around 0: the coarsest that the quantiser chooses."""
    return float(np.abs(array).max()) / 127


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_what_onnxruntime_quantised_is_float32_with_weights_within_a_step_of_the_source(
    kind: str, tmp_path: Path
) -> None:
    integers = _quantised(kind, tmp_path)
    given = ir.from_proto(integers)
    assert is_quantised(given) and not is_quantised(ir.from_proto(_source()))
    floats = dequantised(given)
    assert floats is not given and not is_quantised(floats)
    assert [node.op_type for node in floats.graph] == ["Gather", "Add", "MatMul", "Add", "Relu", "MatMul"]
    source = {t.name: numpy_helper.to_array(t) for t in _source().graph.initializer}
    held = [v.const_value.numpy() for v in floats.graph.initializers.values() if v.const_value is not None]
    for name in ("table", "first", "second"):
        near = [a for a in held if a.shape == source[name].shape and a.dtype == np.float32]
        assert len(near) == 1, name
        off = np.abs(near[0] - source[name]).max()
        assert 0 < off <= _step(source[name]), name


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_the_float32_form_answers_as_the_integers_within_their_rounding(kind: str, tmp_path: Path) -> None:
    integers = _quantised(kind, tmp_path)
    floats = ir.to_proto(dequantised(ir.from_proto(integers)))
    feed = {"input_ids": np.arange(_ROWS, dtype=np.int64).reshape(2, -1)}
    answers = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for m in (integers, floats)
    ]
    spread = np.abs(answers[0]).max()
    assert np.abs(answers[0] - answers[1]).max() < 0.04 * spread


def test_integers_that_are_gathered_into_an_integer_product_stay_as_they_are() -> None:
    arrays = {"table": np.ones((_ROWS, _WIDTH), np.uint8), "weight": np.ones((_WIDTH, 3), np.int8)}
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"], "gather"),
            helper.make_node("MatMulInteger", ["rows", "weight"], ["sums"], "product"),
            helper.make_node("Cast", ["sums"], ["logits"], "cast", to=TensorProto.FLOAT),
        ],
        "integers",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "tokens", 3])],
        [numpy_helper.from_array(a, name) for name, a in arrays.items()],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    assert is_quantised(model) and dequantised(model) is model
