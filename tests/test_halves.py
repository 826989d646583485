"""Half precision: near to float32, nothing beyond its reach, and a wrong weight is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import zoo
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from axformer_onnx.errors import PlanError, UsageError, VerifyError
from axformer_onnx.result import verify
from axformer_onnx.runtime import make_session, run_once, run_session
from axformer_passes.apply import apply_plan
from axformer_passes.halves import TYPES, halve, outgrown, seen
from axformer_passes.io import detached, load_model, save_model
from axformer_passes.plan import Plan
from axformer_passes.precision import Half
from axformer_passes.probe import probed, trace
from axformer_passes.recognise import recognise

FP16 = Plan(half=Half("fp16"), readout="narrow", constants="folded").without_heads(0, [0]).without_neurons(1, [2, 3])
FILES = [
    ("bert", "torchscript-eager-17"),
    ("bert", "torchscript-eager-17+ort"),
    ("gpt2", "torchscript-eager-17"),
    ("distilbert", "dynamo-20"),
    ("llama", "torchscript-eager-17"),
]


def dtypes(model: ir.Model) -> set[ir.DataType]:
    """Of the weights: constants with more than one number."""
    tensors = (v.const_value for v in model.graph.initializers.values())
    return {t.dtype for t in tensors if t is not None and t.size > 1 and t.dtype.is_floating_point()}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("family", "exporter"), FILES)
def test_a_graph_in_half_precision_answers_nearly_as_in_float32_and_is_verified(
    family: str, exporter: str, tmp_path: Path
) -> None:
    path = zoo.build(family, exporter).path
    model = load_model(path)
    result = apply_plan(model, FP16, run_once)
    assert dtypes(result) == {ir.DataType.FLOAT16}
    save_model(result, tmp_path / "model.onnx")
    assert verify(path, tmp_path / "model.onnx", FP16) < 1e-3
    feeds, _ = probed(model, run_once)
    whole = apply_plan(model, dataclasses.replace(FP16, half=None), run_once)
    expected = run_once(detached(whole), feeds)
    for name, array in run_session(make_session(tmp_path / "model.onnx", threads=1), feeds).items():
        assert array.dtype == expected[name].dtype
        drift = np.abs(array - expected[name]).max() / np.abs(expected[name]).max()
        assert 0 < drift < 0.02


def test_bfloat16_has_its_own_weights(tmp_path: Path) -> None:
    path, plan = zoo.build("bert", "torchscript-eager-17").path, Plan(half=Half("bf16"))
    model = load_model(path)
    result = apply_plan(model, plan, run_once)
    assert dtypes(result) == {ir.DataType.BFLOAT16}
    save_model(result, tmp_path / "model.onnx")
    assert verify(path, tmp_path / "model.onnx", plan) < 1e-3
    assert {v.dtype for v in result.graph.outputs} == {v.dtype for v in model.graph.outputs}


def drawn(nodes: list[Any], constants: dict[str, Any], opset: int = 17) -> ir.Model:
    """x float32[N, 4] -> y float32."""
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8))


def norm() -> ir.Model:
    """y = x / sqrt(mean(x^2)), as exporters without a node for it write it: x^2 leaves float16 where |x| > 255."""
    nodes = [
        helper.make_node("Pow", ["x", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["mean"], axes=[-1]),
        helper.make_node("Sqrt", ["mean"], ["root"]),
        helper.make_node("Div", ["x", "root"], ["y"]),
    ]
    return drawn(nodes, {"two": np.float32(2)})


@pytest.mark.filterwarnings("ignore:overflow")
def test_what_would_not_fit_stays_in_float32() -> None:
    """ONNX's own reference computes in halves; ONNX Runtime's CPU widens what it has no kernel for."""
    model, x = norm(), np.array([[300.0, -400.0, 100.0, 7.0]], np.float32)
    expected = run_once(detached(model), {"x": x})["y"]
    stay = outgrown(model, seen(trace(model, run_once, {"x": x})), TYPES["fp16"])
    assert {"square", "mean"} <= stay
    alone, islands = model.clone(), model.clone()
    halve(alone, TYPES["fp16"], (), run_once)
    halve(islands, TYPES["fp16"], stay, run_once)
    found, near = (ReferenceEvaluator(ir.to_proto(one)).run(None, {"x": x})[0] for one in (alone, islands))
    assert not np.allclose(found, expected, rtol=0.1), "or the test shows nothing"
    assert near == pytest.approx(expected, rel=2e-3)
    assert run_once(detached(islands), {"x": x})["y"] == pytest.approx(expected, rel=2e-3)
    assert not outgrown(model, seen(trace(model, run_once, {"x": x})), TYPES["bf16"])


def test_a_mask_is_bounded_and_makes_no_node_stay() -> None:
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["y"], axis=-1),
    ]
    model = drawn(nodes, {"mask": np.array([0, 0, 0, np.finfo(np.float32).min], np.float32)})
    x = np.array([[1, 2, 3, 4]], np.float32)
    stay = outgrown(model, seen(trace(model, run_once, {"x": x})), TYPES["fp16"])
    expected = run_once(detached(model), {"x": x})["y"]
    halve(model, TYPES["fp16"], stay, run_once)
    found = run_once(detached(model), {"x": x})["y"]
    assert not stay and found == pytest.approx(expected, abs=1e-3) and found[0, 3] == 0
    mask = model.graph.initializers["mask"].const_value
    assert mask is not None and mask.numpy().min() == -65504


def test_an_operator_that_takes_no_halves_stays_in_float32() -> None:
    """CumSum takes none before operator set 14."""
    nodes = [helper.make_node("CumSum", ["x", "axis"], ["sum"]), helper.make_node("Mul", ["sum", "two"], ["y"])]
    for opset, stays in ((13, True), (14, False)):
        model = drawn(nodes, {"axis": np.array(1), "two": np.float32(2)}, opset)
        halve(model, TYPES["fp16"], (), run_once)
        onnx.checker.check_model(ir.to_proto(model), full_check=True)
        total = next(node for node in model.graph if node.op_type == "CumSum").inputs[0]
        assert total is not None and (total.name == "x") is stays
        x = np.ones((2, 4), np.float32)
        assert run_once(detached(model), {"x": x})["y"].tolist() == [[2, 4, 6, 8]] * 2


def test_a_weight_that_both_kinds_read_is_there_in_both() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["wide"]),
        helper.make_node("Mul", ["wide", "scale"], ["y"]),
    ]
    model = drawn(nodes, {"scale": np.full(4, 0.1, np.float32)})
    halve(model, TYPES["fp16"], {"wide"}, run_once)
    kinds = {v.const_value.dtype for v in model.graph.initializers.values() if v.const_value is not None}
    assert kinds == {ir.DataType.FLOAT, ir.DataType.FLOAT16}
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    assert run_once(detached(model), {"x": x})["y"] == pytest.approx(0.01 * x, rel=2e-3)


@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_a_wrong_half_is_refused(kind: Any, tmp_path: Path) -> None:
    path, plan = zoo.build("bert", "torchscript-eager-17").path, Plan(half=Half(kind))
    save_model(apply_plan(load_model(path), plan, run_once), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    tensor = next(t for t in model.graph.initializer if len(t.dims) == 2)
    array = numpy_helper.to_array(tensor).copy()
    bits = array.view(np.uint16)
    bits.flat[3] += 1  # the neighbour
    tensor.CopyFrom(onnx.helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, array.tobytes(), raw=True))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(VerifyError, match="not the halves nearest"):
        verify(path, tmp_path / "model.onnx", plan)


def test_a_result_in_half_precision_is_recognised_again() -> None:
    model = load_model(zoo.build("bert", "torchscript-eager-17").path)
    before, after = (
        recognise(model, run_once),
        recognise(apply_plan(model, Plan(half=Half("fp16")), run_once), run_once),
    )
    for one, other in zip(before.layers, after.layers, strict=True):
        assert (
            one.attention is not None and other.attention is not None and one.attention.heads == other.attention.heads
        )
        assert one.feed_forward is not None and other.feed_forward is not None
        assert one.feed_forward.neurons == other.feed_forward.neurons


def test_a_plan_names_its_half_precision_and_comes_back() -> None:
    plan = Plan(half=Half("fp16", frozenset({"b", "a"})))
    assert Plan.loads(plan.dumps()) == plan and not plan.is_exact
    assert json.loads(plan.dumps())["half"] == {"type": "fp16", "float32": ["a", "b"]}
    assert "half" not in json.loads(Plan().dumps())


@pytest.mark.parametrize(
    "half", ["fp16", {"type": "fp8"}, {"type": "fp16", "float32": "a"}, {"type": "fp16", "more": 1}]
)
def test_what_is_no_half_precision_is_refused(half: Any) -> None:
    data = {**json.loads(Plan().dumps()), "half": half}
    with pytest.raises(PlanError, match=r'"half" is \{"type": "fp16" or "bf16"'):
        Plan.loads(json.dumps(data))


def test_integers_and_halves_are_named_one_at_a_time(tmp_path: Path) -> None:
    from axformer_onnx.options import OptimizeOptions

    with pytest.raises(UsageError, match="--quantize int8 and --half fp16 were given; name one"):
        OptimizeOptions(model=tmp_path, output=tmp_path / "o", quantize="int8", half="fp16")


def test_the_largest_half_is_the_types_own() -> None:
    from axformer_onnx.result.half_weights import _LARGEST

    assert float(np.finfo(np.float16).max) == _LARGEST["fp16"]
    assert float(ml_dtypes.finfo(ml_dtypes.bfloat16).max) == _LARGEST["bf16"]


@pytest.mark.slow
@pytest.mark.usefixtures("latency_cache")
def test_optimize_ends_in_half_precision_and_apply_replays_it(tmp_path: Path, call: Any) -> None:
    import tiny_folder

    from axformer_onnx.commands import optimize
    from axformer_onnx.options import OptimizeOptions
    from axformer_onnx.tasks import get_task

    folder, out = tiny_folder.make_folder(tmp_path / "model", search=160), tmp_path / "out"
    given: Any = {"length": (8,), "threads": 1, "effort": "low", "size": 0.4, "half": "fp16"}
    result = optimize(OptimizeOptions(model=folder, task=get_task("mnli"), output=out, **given))
    assert result.plan.half == Half("fp16") and dtypes(load_model(out / "model.onnx")) == {ir.DataType.FLOAT16}
    assert result.report.candidate.size_bytes <= 0.4 * result.report.source.size_bytes
    code, _, error = call("apply", out, folder, "-o", tmp_path / "again")
    assert code == 0, error
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()
