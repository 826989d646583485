"""Static ranges: what a graph of QuantizeLinear and DequantizeLinear answers, who runs it, and that a wrong one is refused."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import zoo
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from static_steps import numpy_answers, with_static

from axformer_onnx.errors import PlanError, UsageError, VerifyError
from axformer_onnx.options import OptimizeOptions
from axformer_onnx.result import verify
from axformer_onnx.runtime import make_session, run_once, run_session
from axformer_passes.apply import apply_plan
from axformer_passes.integers import quantise, simulated
from axformer_passes.io import detached, load_model, save_model
from axformer_passes.plan import Plan
from axformer_passes.precision import Activations, Int8
from axformer_passes.prepare import dequantised, is_quantised
from axformer_passes.probe import probe_feeds, probed, ragged
from axformer_passes.recognise import recognise

ALL = Int8(frozenset(range(3)), frozenset(range(3)))
BERT = ("bert", "torchscript-eager-17")
FILES = [BERT, ("gpt2", "torchscript-eager-17"), ("bert", "dynamo-20"), ("bert", "torchscript-eager-17+ort")]
SMOOTH = {
    "attention": {0: {3: 2, 17: 1}},
    "feed_forward": {1: {5: 3}, 2: {0: 1}},
    "neurons": {1: {2: 2, 9: 4}, 2: {7: 1}},
}


def loaded(family: str = BERT[0], exporter: str = BERT[1]) -> tuple[Path, ir.Model]:
    path = zoo.build(family, exporter).path
    return path, load_model(path)


def answers(model: ir.Model, feeds: Any, *, optimize: bool = False) -> dict[str, Any]:
    return run_session(make_session(detached(model), threads=1, optimize=optimize), feeds)


def batches(model: ir.Model) -> list[dict[str, Any]]:
    return [ragged(model, probe_feeds(model, rows, length, seed=rows)) for rows, length in ((2, 6), (5, 9))]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("activations", ["static", "static-uint8"])
@pytest.mark.parametrize(("family", "exporter"), FILES)
def test_ragged_batches_are_answered_as_numpy_answers_them(
    family: str, exporter: str, activations: Activations
) -> None:
    _, model = loaded(family, exporter)
    int8 = with_static(model, dataclasses.replace(ALL, smooth=SMOOTH), activations)
    result = apply_plan(model, Plan(int8=int8), run_once)
    floats = apply_plan(model, Plan(), run_once, fused=False)
    for feeds in batches(model):
        plain, expected = answers(model, feeds), numpy_answers(floats, int8, feeds)
        for optimize in (False, True):  # in floats, and in the integers that ONNX Runtime makes
            for name, array in answers(result, feeds, optimize=optimize).items():
                rounding = np.abs(plain[name] - array).max()
                assert 0 < rounding < 0.5 * np.abs(plain[name]).max(), "rounded, and not beyond recognition"
                assert np.abs(array - expected[name]).max() <= 0.05 * rounding + 1e-5


@pytest.mark.parametrize(("family", "exporter"), [FILES[0], FILES[2]])
def test_the_reference_evaluator_answers_what_the_runtime_answers(family: str, exporter: str) -> None:
    _, model = loaded(family, exporter)
    result = apply_plan(model, Plan(int8=with_static(model, ALL)), run_once)
    proto = detached(result).whole()
    proto.opset_import[0].version = max(
        19, proto.opset_import[0].version
    )  # the evaluator has no DequantizeLinear before
    feeds = batches(model)[0]
    found, plain = answers(result, feeds), answers(model, feeds)
    with np.errstate(over="ignore"):  # masks add what is already as low as can be
        evaluated = ReferenceEvaluator(proto).run(list(found), feeds)
    for array, (name, own) in zip(evaluated, found.items(), strict=True):
        assert np.abs(array - own).max() <= 0.05 * np.abs(plain[name] - own).max() + 1e-5


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("family", "exporter"), FILES)
def test_the_search_rounds_as_the_graph_does_whatever_the_runtime_rewrites(family: str, exporter: str) -> None:
    _, model = loaded(family, exporter)
    int8 = with_static(model, dataclasses.replace(ALL, smooth=SMOOTH))
    feeds, _ = probed(model, run_once)
    expected, twin = answers(apply_plan(model, Plan(int8=int8), run_once), feeds), simulated(model, int8, run_once)
    for optimize in (False, True):
        for name, array in answers(twin, feeds, optimize=optimize).items():
            assert array == pytest.approx(expected[name], abs=1e-5)


def test_what_queries_keys_and_values_read_is_rounded_once() -> None:
    _, model = loaded()
    result = apply_plan(model, Plan(int8=with_static(model, ALL)), run_once)
    found = Counter(node.op_type for node in result.graph)
    assert found["QuantizeLinear"] == 4 * 3 and found["DequantizeLinear"] == (4 + 6) * 3
    assert not found["MatMulInteger"] and not found["DynamicQuantizeLinear"]
    for node in result.graph:
        if node.op_type == "QuantizeLinear":
            zero = node.inputs[2].const_value  # type: ignore[union-attr]
            assert zero is not None and zero.dtype == ir.DataType.INT8 and not zero.numpy().any()


def test_the_runtime_makes_integers_of_every_product_of_unsigned_ones(tmp_path: Path) -> None:
    import onnxruntime

    _, model = loaded()
    save_model(apply_plan(model, Plan(int8=with_static(model, ALL, "static-uint8")), run_once), tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in nodes) == 6 * 3
    assert not any(node.op_type == "DequantizeLinear" for node in nodes)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("family", "exporter"), FILES)
def test_a_cut_static_graph_is_verified_and_replayed_to_the_same_bytes(
    family: str, exporter: str, tmp_path: Path
) -> None:
    path, model = loaded(family, exporter)
    int8 = with_static(model, dataclasses.replace(ALL, smooth=SMOOTH, stored=True))
    plan = Plan(int8=int8, readout="narrow", constants="folded").without_heads(0, [0]).without_neurons(1, [2, 3])
    for name, own in (("a", plan), ("b", Plan.loads(plan.dumps()))):
        save_model(apply_plan(load_model(path), own, run_once), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert verify(path, tmp_path / "a", plan) < 1e-4


def test_products_of_real_tokens_alone_are_static_too(tmp_path: Path) -> None:
    path, model = loaded()
    plan = Plan(int8=with_static(model, ALL), padding="removed", readout="narrow", constants="folded")
    save_model(apply_plan(model, plan, run_once), tmp_path / "model.onnx")
    assert verify(path, tmp_path / "model.onnx", plan) < 1e-4


# -- what is wrong is refused ------------------------------------------------------------------------------------------


def _tensor(model: onnx.ModelProto, end: str, change: Callable[[Any], Any]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name.endswith(end))
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(array.copy()), array.dtype), tensor.name))


def _one_more(array: Any) -> Any:
    array.flat[5] += 3 if array.flat[5] < 60 else -3
    return array


def _smaller(array: Any) -> Any:
    return np.where(array < 1, 2 * array, array)


def _axis(model: onnx.ModelProto) -> None:
    """A square weight, each row by its own scale."""
    shapes = {t.name: list(t.dims) for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and len(set(shapes.get(node.input[0], [1, 2]))) == 1:
            node.attribute[0].i = 0
            return


def _bare(model: onnx.ModelProto) -> None:
    """A product reads what is not rounded."""
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        back = made.get(node.input[0]) if node.op_type == "MatMul" else None
        if back is not None and back.op_type == "DequantizeLinear":
            node.input[0] = made[back.input[0]].input[0]
            return


def _weight_zero(model: onnx.ModelProto) -> None:
    """Columns of a weight that are moved by one."""
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 2:
            columns = next(t.dims[0] for t in model.graph.initializer if t.name == node.input[1])
            model.graph.initializer.append(numpy_helper.from_array(np.ones(columns, np.int8), "moved"))
            node.input.append("moved")
            return


WRONG: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "step": (lambda m: _tensor(m, "_scale", lambda a: a * 1.01), "rounded by steps of"),
    "zero point": (lambda m: _tensor(m, "_zero", lambda a: a + 1), "zero point 1, expected 0"),
    "weight": (lambda m: _tensor(m, "_weight", _one_more), "half a step"),
    "weight's scale": (lambda m: _tensor(m, "_weight_scale", lambda a: a * 1.5), "half a step"),
    "weight's zero point": (_weight_zero, "half a step"),
    "axis": (_axis, "half a step"),
    "factor": (lambda m: _tensor(m, "_smooth_factor", _smaller), "half a step"),
    "no rounding": (_bare, "not rounded"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("what", WRONG)
def test_a_planted_error_is_refused(what: str, tmp_path: Path) -> None:
    path, model = loaded()
    plan = Plan(int8=with_static(model, dataclasses.replace(ALL, smooth=SMOOTH)))
    save_model(apply_plan(model, plan, run_once), tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    damage, message = WRONG[what]
    before = proto.SerializeToString()
    damage(proto)
    assert proto.SerializeToString() != before
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(VerifyError, match=message):
        verify(path, tmp_path / "model.onnx", plan)


def test_steps_of_two_projections_that_are_exchanged_are_refused(tmp_path: Path) -> None:
    path, model = loaded()
    int8 = with_static(model, ALL)
    steps = {kind: {i: dict(own) for i, own in layers.items()} for kind, layers in int8.scales.items()}
    steps["feed_forward"][0], steps["feed_forward"][1] = steps["feed_forward"][1], steps["feed_forward"][0]
    exchanged = Plan(int8=dataclasses.replace(int8, scales=steps))
    save_model(apply_plan(model, exchanged, run_once), tmp_path / "model.onnx")
    with pytest.raises(VerifyError, match="the plan names"):
        verify(path, tmp_path / "model.onnx", Plan(int8=int8))


def test_a_step_that_is_missing_is_refused() -> None:
    _, model = loaded()
    int8 = with_static(model, dataclasses.replace(ALL, feed_forward=frozenset({0})))
    with pytest.raises(PlanError, match='"scales" has no step'):
        apply_plan(model, Plan(int8=dataclasses.replace(int8, feed_forward=frozenset({0, 1}))), run_once)


def test_an_operator_set_without_scales_by_column_is_refused() -> None:
    _, model = loaded()
    int8 = dataclasses.replace(ALL, activations="static")
    model.opset_imports[""] = 12
    with pytest.raises(PlanError, match="needs operator set 13 or later, the model has 12"):
        quantise(model, {}, int8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activations": "fixed"}, 'activations is "fixed", expected dynamic or static or static-uint8'),
        ({"activations": "dynamic"}, "scales go with activations that are static"),
        ({"scales": {"attention": {"0": {"query": 0}}}}, "layer, projection, step"),
        ({"scales": {"attention": {"0": {"query": float("nan")}}}}, "layer, projection, step"),
        ({"scales": {"attention": {"x": {"query": 0.5}}}}, "layer, projection, step"),
        ({"scales": {"heads": {}}}, "layer, projection, step"),
        ({"scales": []}, "layer, projection, step"),
    ],
)
def test_what_are_no_static_ranges_is_refused(changes: dict[str, Any], message: str) -> None:
    scales = {"attention": {0: {"query": 0.5}}}
    plan = Plan(int8=Int8(frozenset({0}), activations="static", scales=scales))
    data = plan.to_json()
    assert Plan.loads(json.dumps(data)) == plan
    data["int8"] |= changes
    with pytest.raises(PlanError, match=message):
        Plan.loads(json.dumps(data))


# -- who else takes it ------------------------------------------------------------------------------------------------


def test_a_static_result_is_recognised_and_dequantised_again() -> None:
    _, model = loaded()
    result = apply_plan(model, Plan(int8=with_static(model, dataclasses.replace(ALL, stored=True))), run_once)
    floats = dequantised(result)
    assert is_quantised(result) and not is_quantised(floats)
    for again in (result, floats):
        for one, other in zip(recognise(model, run_once).layers, recognise(again, run_once).layers, strict=True):
            assert one.attention is not None and other.attention is not None
            assert one.attention.heads == other.attention.heads
            assert one.feed_forward is not None and other.feed_forward is not None
            assert one.feed_forward.neurons == other.feed_forward.neurons


def test_openvino_answers_what_the_runtime_answers(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    _, model = loaded()
    result = apply_plan(model, Plan(int8=with_static(model, ALL)), run_once)
    save_model(result, tmp_path / "model.onnx")
    compiled = openvino.Core().compile_model(str(tmp_path / "model.onnx"), "CPU")
    for feeds in batches(model):
        plain, found = answers(model, feeds), answers(result, feeds)
        for output, (name, array) in zip(compiled(feeds).values(), found.items(), strict=True):
            assert np.abs(output - array).max() <= np.abs(plain[name] - array).max()


@pytest.mark.parametrize(
    ("provider", "given", "expected"),
    [("cpu", None, "dynamic"), ("cpu", "static", "static"), ("cuda", None, "dynamic"), ("CPUExecutionProvider", None, "dynamic")],
)  # fmt: skip
def test_ranges_are_static_where_that_is_asked_for(
    provider: str, given: Activations | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    options = OptimizeOptions(
        model=tmp_path, output=tmp_path / "o", quantize="int8", activations=given, provider=provider
    )
    assert options.int8 is not None and options.int8.activations == expected


@pytest.mark.parametrize("provider", ["tensorrt,cuda", "openvino:device_type=GPU", "qnn"])
def test_ranges_are_static_for_providers_that_know_no_others(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("Tensorrt", "OpenVINO", "QNN", "CUDA", "CPU")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [f"{name}ExecutionProvider" for name in names])
    for given, expected in ((None, "static"), ("dynamic", "dynamic")):
        options = OptimizeOptions(
            model=tmp_path, output=tmp_path / "o", quantize="int8", provider=provider, activations=given
        )
        assert options.int8 is not None and options.int8.activations == expected


def test_static_ranges_without_integers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--activations static goes with --quantize int8"):
        OptimizeOptions(model=tmp_path, output=tmp_path / "o", activations="static")
