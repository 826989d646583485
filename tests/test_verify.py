"""Verification refuses what is not the source with the plan carried out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from torch_oracle import random_plan
from zoo import CASES, build

from axformer_onnx.errors import AxformerError, VerifyError
from axformer_onnx.result.verification import verify
from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.io.files import load_model, save_model
from axformer_passes.plan import Plan

SOME = [(f, e) for f, e in CASES if e in ("torchscript-eager-17", "dynamo-23")]
PLAN = Plan().without_heads(0, [1]).without_neurons(1, [2, 3]).without_attention(2).with_hard_attention(1, 2)


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), SOME)
def test_a_true_result_passes_and_the_difference_is_tiny(family: str, exporter: str, tmp_path: Path) -> None:
    model = build(family, exporter)
    for seed in range(2):
        plan = random_plan(model, np.random.default_rng(seed))
        save_model(apply_plan(load_model(model.path), plan, run_once), tmp_path / "out.onnx")
        assert verify(model.path, tmp_path / "out.onnx", plan) < 1e-4


@pytest.fixture
def candidate(tmp_path: Path) -> Path:
    model = build("bert", "torchscript-sdpa-17")
    save_model(apply_plan(load_model(model.path), PLAN, run_once), tmp_path / "out.onnx")
    return tmp_path / "out.onnx"


def perturbed_weight(proto: onnx.ModelProto) -> None:
    tensor = max((t for t in proto.graph.initializer if "embed" not in t.name), key=lambda t: len(t.raw_data))
    array = numpy_helper.to_array(tensor).copy()
    array[array.shape[0] // 2] += 0.5
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def lost_bias(proto: onnx.ModelProto) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name.endswith("output.dense.bias"))
    tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))


def other_opset(proto: onnx.ModelProto) -> None:
    proto.opset_import[0].version = 18


def other_ir_version(proto: onnx.ModelProto) -> None:
    proto.ir_version += 1


def renamed_output(proto: onnx.ModelProto) -> None:
    for node in proto.graph.node:
        node.output[:] = ["answers" if name == "logits" else name for name in node.output]
    proto.graph.output[0].name = "answers"


def frozen_batch(proto: onnx.ModelProto) -> None:
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1


def lost_input(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, [1]))


def not_a_number(proto: onnx.ModelProto) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name.endswith("classifier.bias"))
    values = np.full(numpy_helper.to_array(tensor).shape, np.nan, np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def unreadable_node(proto: onnx.ModelProto) -> None:
    proto.graph.node[3].input[0] = "nobody"


MISTAKES: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (perturbed_weight, "'logits' differs from the source under the plan"),
    (lost_bias, "'logits' differs from the source under the plan"),
    (not_a_number, "'logits' differs from the source under the plan"),
    (other_opset, "opset changed from"),
    (other_ir_version, "IR version changed from"),
    (renamed_output, "inputs and outputs changed from"),
    (frozen_batch, "inputs and outputs changed from"),
    (lost_input, "inputs and outputs changed from"),
    (unreadable_node, "the ONNX checker refuses it"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=lambda x: getattr(x, "__name__", ""))
def test_a_wrong_result_is_refused(mistake: Callable[[onnx.ModelProto], None], message: str, candidate: Path) -> None:
    proto = onnx.load(candidate)
    mistake(proto)
    candidate.write_bytes(proto.SerializeToString())
    with pytest.raises(VerifyError, match=message) as caught:
        verify(build("bert", "torchscript-sdpa-17").path, candidate, PLAN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        PLAN.without_heads(0, [2]),
        PLAN.without_feed_forward(0),
        PLAN.with_hard_attention(1, 3),
        PLAN.with_hard_attention(1, 2, "renormalised"),
    ],
    ids=["empty", "a head more", "a block more", "another k", "another mode"],
)
def test_the_result_of_another_plan_is_refused(plan: Plan, candidate: Path) -> None:
    with pytest.raises(VerifyError, match="differs from the source under the plan"):
        verify(build("bert", "torchscript-sdpa-17").path, candidate, plan)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").write_bytes(b"not a model at all")
    with pytest.raises(AxformerError):
        verify(build("bert", "torchscript-sdpa-17").path, tmp_path / "out.onnx", Plan())


def test_a_source_that_the_checker_refuses_is_held_to_the_comparison_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """ONNX Runtime's fusions write SimplifiedLayerNormalization into the default domain, where ONNX knows no such operator."""
    source = build("t5-encoder", "dynamo-20+ortfusions").path
    save_model(apply_plan(load_model(source), Plan().without_heads(0, [1]), run_once), tmp_path / "out.onnx")
    assert verify(source, tmp_path / "out.onnx", Plan().without_heads(0, [1])) < 1e-4
    assert "the ONNX checker refuses the source as it is" in caplog.text
    with pytest.raises(VerifyError, match="differs from the source"):
        verify(source, tmp_path / "out.onnx", Plan().without_heads(0, [2]))
