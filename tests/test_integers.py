"""Products and tables of integers: what they stand for, what they answer, and that a wrong one is refused."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import zoo
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from axformer_onnx.errors import PlanError, UsageError, VerifyError
from axformer_onnx.result import verify
from axformer_onnx.runtime import make_session, run_once, run_session
from axformer_passes.apply import apply_plan
from axformer_passes.integers import Reach, nearest, rounded_columns, simulated, tables_of
from axformer_passes.integers.smoothing import shifts_of
from axformer_passes.io import detached, load_model, save_model
from axformer_passes.plan import Plan
from axformer_passes.precision import Int8
from axformer_passes.probe import probed
from axformer_passes.recognise import recognise

ALL = Int8(frozenset(range(3)), frozenset(range(3)))
FILES = [
    ("bert", "torchscript-eager-17"),
    ("bert", "torchscript-eager-17+ort"),
    ("gpt2", "torchscript-eager-17"),
    ("bert", "dynamo-20"),
]
"""MatMul, fused operators, Gemm and packed products, weights behind Transposes."""


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def of(model: ir.Model) -> Int8:
    """Every block of a model."""
    layers = recognise(model, run_once).layers
    blocks = [
        (layer.index, "attention" if b is layer.attention else "feed_forward") for layer in layers for b in layer.blocks
    ]
    return ALL.with_blocks(blocks)  # type: ignore[arg-type]


def answers(model: ir.Model, feeds: Any) -> dict[str, Any]:
    return run_session(make_session(detached(model), threads=1, optimize=False), feeds)


@pytest.mark.parametrize("bits", [4, 7, 8])
def test_a_number_is_rounded_to_the_nearest_of_its_column(bits: int) -> None:
    weight = np.random.default_rng(0).normal(size=(50, 7)) * np.geomspace(1e-3, 1e3, 7)
    integers, scale = rounded_columns(weight, bits)
    top = 2 ** (bits - 1) - 1
    assert np.abs(integers).max(axis=0).tolist() == [top] * 7, "the largest of a column is the largest integer"
    steps = np.arange(-top, top + 1) * scale[3].astype(np.float64)
    assert nearest(weight, bits)[:, 3] == pytest.approx([steps[np.abs(steps - x).argmin()] for x in weight[:, 3]])


def test_rounding_what_is_rounded_changes_nothing_and_zeros_stay() -> None:
    weight = np.random.default_rng(1).normal(size=(30, 5))
    weight[:, 2] = 0
    once = nearest(weight.astype(np.float32)).astype(np.float32)
    assert np.abs(nearest(once) - once).max() <= 1e-6 and not once[:, 2].any()


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("family", "exporter"), FILES)
def test_integer_products_answer_what_the_simulation_answers(family: str, exporter: str) -> None:
    model = load_model(zoo.build(family, exporter).path)
    int8 = of(model)
    feeds, _ = probed(model, run_once)
    result = apply_plan(model, Plan(int8=int8), run_once)
    assert operators(result)["MatMulInteger"] >= 2 * len(int8.attention) + 2 * len(int8.feed_forward)
    found, expected = answers(result, feeds), answers(simulated(model, int8, run_once), feeds)
    plain = answers(model, feeds)
    for name, array in found.items():
        rounding = np.abs(plain[name] - array).max()
        assert 0 < rounding < 0.2 * np.abs(plain[name]).max(), "rounded, and not beyond recognition"
        assert np.abs(array - expected[name]).max() <= 0.02 * rounding + 1e-5


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("family", "exporter"), FILES)
def test_a_cut_graph_of_integers_is_verified(family: str, exporter: str, tmp_path: Path) -> None:
    path = zoo.build(family, exporter).path
    model = load_model(path)
    plan = Plan(int8=of(model), readout="narrow", constants="folded").without_heads(0, [0]).without_neurons(1, [2, 3])
    save_model(apply_plan(model, plan, run_once), tmp_path / "model.onnx")
    assert verify(path, tmp_path / "model.onnx", plan) < 1e-4


def wrong(path: Path, what: str) -> None:
    """Damage one tensor of a graph."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name.endswith(what))
    array = numpy_helper.to_array(tensor).copy()
    if array.dtype == np.int8:
        array.flat[5] += 3 if array.flat[5] < 60 else -3
    elif array.dtype == np.uint8:
        array.flat[5] ^= 0x44
    else:
        array.flat[0] *= 1.5
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, path)


@pytest.mark.parametrize("what", ["_weight", "_weight_scale"])
def test_a_wrong_integer_and_a_wrong_scale_are_refused(what: str, tmp_path: Path) -> None:
    path = zoo.build("bert", "torchscript-eager-17").path
    plan = Plan(int8=ALL)
    save_model(apply_plan(load_model(path), plan, run_once), tmp_path / "model.onnx")
    wrong(tmp_path / "model.onnx", what)
    with pytest.raises(VerifyError, match="half a step"):
        verify(path, tmp_path / "model.onnx", plan)


def test_a_wrong_wire_is_refused(tmp_path: Path) -> None:
    path, plan = zoo.build("bert", "torchscript-eager-17").path, Plan(int8=ALL)
    result = apply_plan(load_model(path), plan, run_once)
    first, second = [n for n in result.graph if n.op_type == "DynamicQuantizeLinear"][:2]
    product = next(use.node for use in second.outputs[0].uses() if use.node.op_type == "MatMulInteger")
    for slot, output in ((0, 0), (2, 2)):
        product.replace_input_with(slot, first.outputs[output])
    save_model(result, tmp_path / "model.onnx")
    with pytest.raises(VerifyError, match="differs"):
        verify(path, tmp_path / "model.onnx", plan)


def test_seven_bits_never_saturate_and_eight_bits_can() -> None:
    """Without VNNI a CPU adds two products of an unsigned and a signed byte in 16 signed bits."""
    seven, eight = (int(rounded_columns(np.ones((2, 1)), bits)[0].max()) for bits in (7, 8))
    assert 2 * 255 * seven <= 2**15 - 1 < 2 * 255 * eight


def test_integer_products_of_the_runtime_are_exact_on_the_worst_inputs() -> None:
    for value in (-63, 63):
        weight = np.full((256, 40), value, np.int8)
        weight[::3] *= -1
        data = np.full((5, 256), 255, np.uint8)
        data[1::2] = 0
        made = onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])
        graph = onnx.helper.make_graph(
            [made], "g",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [5, 256])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [5, 40])],
            [numpy_helper.from_array(weight, "w")],
        )  # fmt: skip
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        found = run_once(detached(ir.from_proto(model)), {"x": data})["y"]
        assert (found == data.astype(np.int64) @ weight.astype(np.int64)).all()


@pytest.mark.parametrize(("bits", "bytes_a_number"), [(8, 1.0), (4, 0.5)])
def test_tables_become_rows_of_integers(
    bits: int, bytes_a_number: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axformer_passes.integers.tables.LEAST", 1000)
    path = zoo.build("bert", "torchscript-eager-17").path
    model, plan = load_model(path), Plan(int8=Int8(tables=bits))
    tables = [v.const_value for v in tables_of(model.graph)]
    result = apply_plan(model, plan, run_once)
    save_model(result, tmp_path / "model.onnx")
    stored = [v.const_value for v in result.graph.initializers.values() if str(v.name).endswith("_integers")]
    assert tables and sum(t.size for t in tables if t) * bytes_a_number == sum(t.nbytes for t in stored if t)
    assert verify(path, tmp_path / "model.onnx", plan) < 1e-4
    feeds, _ = probed(model, run_once)
    expected, plain = answers(simulated(model, plan.int8 or ALL, run_once), feeds), answers(model, feeds)
    for name, array in answers(result, feeds).items():
        assert array == pytest.approx(expected[name], abs=1e-5)
        assert 0 < np.abs(array - plain[name]).max() < 0.2 * np.abs(plain[name]).max()


@pytest.mark.parametrize(("bits", "what"), [(8, "_integers"), (8, "_scale"), (4, "_integers"), (4, "_scale")])
def test_a_wrong_row_is_refused(bits: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("axformer_passes.integers.tables.LEAST", 1000)
    path, plan = zoo.build("bert", "torchscript-eager-17").path, Plan(int8=Int8(tables=bits))
    save_model(apply_plan(load_model(path), plan, run_once), tmp_path / "model.onnx")
    wrong(tmp_path / "model.onnx", what)
    with pytest.raises(VerifyError, match="half a step"):
        verify(path, tmp_path / "model.onnx", plan)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("family", "exporter"), FILES)
def test_weights_are_stored_in_integers_and_multiplied_in_float32(
    family: str, exporter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("axformer_passes.integers.storage.LEAST", 200)
    path = zoo.build(family, exporter).path
    model = load_model(path)
    plan = Plan(int8=Int8(frozenset({0}), stored=True), readout="narrow", constants="folded").without_neurons(1, [2, 3])
    result = apply_plan(model, plan, run_once)
    save_model(result, tmp_path / "model.onnx")
    left = {v: v.const_value for node in result.graph if node.op_type in ("MatMul", "Gemm") for v in node.inputs if v}
    assert not [v.name for v, t in left.items() if t is not None and len(t.shape) == 2 and t.size >= 200]
    assert verify(path, tmp_path / "model.onnx", plan) < 1e-4
    feeds, _ = probed(model, run_once)
    bare = apply_plan(model, dataclasses.replace(plan, int8=None), run_once, fused=False)
    assert plan.int8 is not None
    expected = answers(simulated(bare, plan.int8, run_once), feeds)
    for name, array in answers(result, feeds).items():
        assert array == pytest.approx(expected[name], abs=1e-4)
    wrong(tmp_path / "model.onnx", "_integers")
    with pytest.raises(VerifyError, match="half a step"):
        verify(path, tmp_path / "model.onnx", plan)


def test_products_of_real_tokens_alone_are_integers_too(tmp_path: Path) -> None:
    path = zoo.build("bert", "torchscript-eager-17").path
    model, plan = load_model(path), Plan(int8=ALL, padding="removed", readout="narrow", constants="folded")
    result = apply_plan(model, plan, run_once)
    kept = apply_plan(model, dataclasses.replace(plan, padding="kept"), run_once)
    assert operators(result)["NonZero"] and operators(result)["MatMulInteger"] == operators(kept)["MatMulInteger"]
    save_model(result, tmp_path / "model.onnx")
    assert verify(path, tmp_path / "model.onnx", plan) < 1e-4


def test_a_runtime_folds_what_restores_stored_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import onnxruntime

    monkeypatch.setattr("axformer_passes.integers.storage.LEAST", 200)
    model = load_model(zoo.build("bert", "torchscript-eager-17").path)
    save_model(apply_plan(model, Plan(int8=Int8(stored=True)), run_once), tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    optimized = load_model(tmp_path / "optimized.onnx")
    assert not any(
        v.const_value is not None and v.const_value.dtype == ir.DataType.INT8
        for v in optimized.graph.initializers.values()
    )


SMOOTH = {
    "attention": {0: {3: 2, 17: 1}},
    "feed_forward": {1: {5: 3}, 2: {0: 1}},
    "neurons": {1: {2: 2, 9: 4}, 2: {7: 1}},
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("family", "exporter"), [*FILES, ("llama", "torchscript-eager-17")])
def test_outliers_that_are_moved_into_weights_are_moved_in_graph_and_simulation_alike(
    family: str, exporter: str, tmp_path: Path
) -> None:
    path = zoo.build(family, exporter).path
    model = load_model(path)
    int8 = dataclasses.replace(of(model), smooth=SMOOTH)
    feeds, _ = probed(model, run_once)
    whole, plain = apply_plan(model, Plan(int8=int8), run_once), apply_plan(model, Plan(int8=of(model)), run_once)
    assert operators(whole)["Mul"] > operators(plain)["Mul"]
    expected, source = answers(simulated(model, int8, run_once), feeds), answers(model, feeds)
    for name, array in answers(whole, feeds).items():
        rounding = np.abs(source[name] - array).max()
        assert np.abs(array - expected[name]).max() <= 0.02 * rounding + 1e-5
    plan = Plan(int8=int8, readout="narrow", constants="folded").without_heads(0, [0]).without_neurons(1, [0, 2, 3])
    save_model(apply_plan(model, plan, run_once), tmp_path / "model.onnx")
    assert verify(path, tmp_path / "model.onnx", plan) < 1e-4


def test_neurons_behind_those_that_go_move_up() -> None:
    after = Int8(smooth=SMOOTH).without_neurons({1: [0, 2, 3], 2: [8]})
    assert after.smooth["neurons"] == {1: {6: 4}, 2: {7: 1}}
    assert after.smooth["attention"] == SMOOTH["attention"]
    assert "neurons" not in Int8(smooth=SMOOTH).without_neurons({1: [2, 9], 2: [7]}).smooth


def test_what_is_moved_makes_the_error_of_a_product_with_an_outlier_smaller() -> None:
    """Against integers, by brute force: the product itself, rounded as a runtime rounds it."""
    rng = np.random.default_rng(5)
    x, weight = rng.normal(size=(64, 40)).astype(np.float32), rng.normal(size=(40, 24)).astype(np.float32)
    x[3, 7] = 90
    shifts = shifts_of(Reach.of(x), weight.astype(np.float64))
    assert np.flatnonzero(shifts).tolist() == [7] and 2 <= shifts[7] <= 6

    def error(k: Any) -> float:
        factor = np.exp2(np.asarray(k, float))
        given = x / factor
        step = (given.max() - given.min()) / 255
        seen = np.clip(np.rint(given / step), np.rint(given.min() / step), np.rint(given.max() / step)) * step
        scaled = weight * factor[:, None]
        return float(((seen @ nearest(scaled) - x @ weight) ** 2).mean())

    assert error(shifts) < 0.3 * error(np.zeros(40))
    assert not shifts_of(Reach.of(rng.normal(size=(64, 40)).astype(np.float32)), weight.astype(np.float64)).any()


def test_a_wrong_factor_before_the_rounding_is_refused(tmp_path: Path) -> None:
    path = zoo.build("bert", "torchscript-eager-17").path
    plan = Plan(int8=dataclasses.replace(ALL, smooth=SMOOTH))
    save_model(apply_plan(load_model(path), plan, run_once), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name.endswith("_smooth_factor"))
    array = numpy_helper.to_array(tensor).copy()
    array[array < 1] *= 2
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(VerifyError, match="half a step"):
        verify(path, tmp_path / "model.onnx", plan)


def test_a_plan_names_its_integers_and_comes_back(tmp_path: Path) -> None:
    plan = Plan(int8=Int8(frozenset({0, 2}), frozenset({1}), 4, 8, True, {"neurons": {0: {11: 2}}}))
    assert Plan.loads(plan.dumps()) == plan and not plan.is_exact
    assert json.loads(plan.dumps())["int8"] == {
        "bits": 8, "attention": [0, 2], "feed_forward": [1], "tables": 4, "stored": True,
        "smooth": {"neurons": {"0": {"11": 2}}},
    }  # fmt: skip
    assert "int8" not in json.loads(Plan().dumps())


@pytest.mark.parametrize(
    ("int8", "message"),
    [
        ({"bits": 9}, "bits is 9, expected 4 to 8"),
        ({"bits": True}, "bits is true"),
        ({"attention": [0, 0]}, "each once"),
        ({"tables": True}, "tables is true, expected their bits: 8, 4, or 0"),
        ({"tables": 5}, "tables is 5, expected their bits: 8, 4, or 0"),
        ({"stored": 1}, "stored is 1, expected true or false"),
        ({"smooth": {"heads": {}}}, "smooth is .*: layer, channel, power of 2"),
        ({"smooth": {"neurons": {"0": {"1": 0}}}}, "smooth is .*: layer, channel, power of 2"),
        ({"smooth": {"neurons": {"x": {}}}}, "smooth is .*: layer, channel, power of 2"),
        ({"heads": []}, "tables"),
        ([], "tables"),
    ],
)
def test_what_is_no_plan_for_integers_is_refused(int8: Any, message: str) -> None:
    data = {**json.loads(Plan().dumps()), "int8": int8}
    with pytest.raises(PlanError, match=message):
        Plan.loads(json.dumps(data))


def test_a_layer_that_is_not_there_is_refused() -> None:
    model = load_model(zoo.build("bert", "torchscript-eager-17").path)
    with pytest.raises(PlanError, match='"int8": layer 7 has no feed-forward block'):
        apply_plan(model, Plan(int8=Int8(feed_forward=frozenset({7}))), run_once)


@pytest.mark.parametrize(
    "options",
    [{}, {"per_channel": True}, {"per_channel": True, "reduce_range": True}, {"weight_type": QuantType.QUInt8}],
)
def test_quantize_dynamic_of_a_result_without_integers_loads_and_answers(
    options: dict[str, Any], tmp_path: Path
) -> None:
    model = load_model(zoo.build("bert", "torchscript-eager-17").path)
    plan = Plan(readout="narrow", constants="folded").without_heads(0, [0])
    cut = apply_plan(model, plan, run_once)
    save_model(cut, tmp_path / "cut.onnx")
    quantize_dynamic(tmp_path / "cut.onnx", tmp_path / "int8.onnx", **options)
    feeds, _ = probed(model, run_once)
    plain = answers(cut, feeds)
    for name, array in run_session(make_session(tmp_path / "int8.onnx", threads=1), feeds).items():
        assert array.shape == plain[name].shape and np.isfinite(array).all()
        if "reduce_range" in options:  # the others saturate on a CPU without VNNI
            assert np.abs(array - plain[name]).max() < 0.2 * np.abs(plain[name]).max()


@pytest.mark.parametrize("int8", [ALL, Int8(frozenset({1}), tables=4, stored=True)])
def test_a_result_of_integers_is_recognised_again(int8: Int8, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("storage", "tables"):
        monkeypatch.setattr(f"axformer_passes.integers.{room}.LEAST", 200)
    model = load_model(zoo.build("bert", "torchscript-eager-17").path)
    before, after = recognise(model, run_once), recognise(apply_plan(model, Plan(int8=int8), run_once), run_once)
    for one, other in zip(before.layers, after.layers, strict=True):
        assert one.attention is not None and other.attention is not None
        assert one.attention.heads == other.attention.heads
        assert one.feed_forward is not None and other.feed_forward is not None
        assert one.feed_forward.neurons == other.feed_forward.neurons


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    model = load_model(zoo.build("bert", "torchscript-eager-17").path)
    for name in ("a", "b"):
        save_model(
            apply_plan(model, Plan(int8=dataclasses.replace(ALL, tables=8, stored=True)), run_once), tmp_path / name
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_walk_does_not_quantise(tmp_path: Path) -> None:
    from axformer_onnx.options import OptimizeOptions

    with pytest.raises(
        UsageError, match="--quantize int8 is for --search compensated; --search robust changes no weight"
    ):
        OptimizeOptions(model=tmp_path, output=tmp_path / "o", search="robust", quantize="int8")


@pytest.mark.parametrize("option", [{"structure": "whole"}, {"weight_bits": 8}, {"embedding_bits": 4}])
def test_options_of_integers_without_integers_are_refused(option: dict[str, Any], tmp_path: Path) -> None:
    from axformer_onnx.options import OptimizeOptions

    with pytest.raises(UsageError, match=" goes with --quantize int8"):
        OptimizeOptions(model=tmp_path, output=tmp_path / "o", **option)


def test_a_model_in_half_precision_is_refused_before_anything_is_searched() -> None:
    from axformer_onnx.scoring import StageSessions
    from axformer_onnx.search.compensated.levels import Levels, Unit, round_stages

    sessions = StageSessions(load_model(zoo.build("bert", "torchscript-eager-17+fp16").path))
    units = [Unit("attention", (0,), 4, ())]
    with pytest.raises(UsageError, match="no product of this model can be made of integers"):
        round_stages(sessions, Levels(units, {}, None, Int8(tables=8)))  # type: ignore[arg-type]
