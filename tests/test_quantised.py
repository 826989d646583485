"""Quantised graphs: dynamic INT8 (MatMulInteger), static QuantizeLinear and DequantizeLinear, blocks, int4, one way or per channel.

A removal is exact: static scales stay, a dynamic range always holds 0, sums of integers have no order. Where a float32 sum is
rounded to an integer afterwards, its last bit may tip the integer, which is 1/255 of the range. So there are two comparisons.
Without the rounding (`unrounded_oracle`) every input agrees to 1e-5. In the file's own arithmetic one input of five agrees to
1e-5 at least, what is cut wrongly agrees on none; and none is further away than tipped integers explain.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
import small_graphs as draw
from graph_oracle import masked_graph, masked_graph_outputs, run_as_declared
from onnx import TensorProto
from surgery import TOLERANCE, assert_close, gated_outputs, removed
from test_matrix import PLANS
from unrounded_oracle import without_rounding
from zoo import ZooModel, build, onnx_outputs

from axformer_onnx import cli
from axformer_onnx.result.verification import verify
from axformer_onnx.runtime.sessions import run_once
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_passes.apply import apply_plan
from axformer_passes.blocks.cost import macs
from axformer_passes.errors import RecogniseError
from axformer_passes.io.files import load_model, save_model, serialized
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise

Array = npt.NDArray[np.generic]
BASE = "torchscript-eager-17"
FORMS = ("int8", "int8c", "qdq", "qdqc")


@pytest.mark.sampled(6)
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.__name__)
@pytest.mark.parametrize("form", FORMS)
def test_quantised_removed_equals_gated_equals_masked(form: str, plan: Callable[[ZooModel], Plan]) -> None:
    three_ways(build("bert", f"{BASE}+{form}"), plan)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("plan", [PLANS[1], PLANS[5], PLANS[-1]], ids=lambda plan: plan.__name__)
@pytest.mark.parametrize("case", ["distilbert+int8c", "vit+int8", "vit+qdqc", "minilm+qdq", "gpt2+int8", "gpt2+qdqc"])
def test_other_families_quantised(case: str, plan: Callable[[ZooModel], Plan]) -> None:
    family, form = case.split("+")
    three_ways(build(family, f"{BASE}+{form}"), plan)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.__name__)
def test_fused_then_quantised_removed_equals_gated_equals_masked(plan: Callable[[ZooModel], Plan]) -> None:
    three_ways(build("bert", f"{BASE}+ort+int8"), plan)


TIPPED = 0.05
"""Largest difference, relative to the largest value, that a few integers tipped by 1/255 make in the outputs of these models."""


def three_ways(model: ZooModel, plan: Callable[[ZooModel], Plan]) -> None:
    """removed = gated = the oracle, at three batch sizes and lengths, for five inputs each."""
    wanted = plan(model)
    graph = serialized(removed(model, wanted))
    masked = masked_graph(model, wanted)
    unrounded, unrounded_masked = without_rounding(graph), without_rounding(masked)
    stages = StageSessions(load_model(model.path), threads=1, optimize=False)
    for batch, length in ((1, 1), (2, 7), (3, 12)):
        what, differences = f"{batch} x {length}, {wanted.to_json()}", []
        for seed in range(5):
            feeds = model.feeds(batch, length, seed=seed)
            exact = [run_as_declared(one, feeds)[0] for one in (unrounded, unrounded_masked)]
            assert _difference(*exact) <= TOLERANCE, f"without rounding, input {seed}, {what}"
            expected = run_as_declared(masked, feeds)[0]
            found = run_as_declared(graph, feeds)[0], gated_outputs(stages, wanted, feeds)[0]
            differences.append(max(_difference(one, expected) for one in found))
        assert min(differences) <= TOLERANCE and max(differences) <= TIPPED, f"{what}: {differences}"


def _difference(found: Array, expected: Array) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("form", FORMS)
def test_the_anatomy_of_a_quantised_graph_is_that_of_its_source(form: str) -> None:
    """Heads, neurons, biases; inputs are the float tensors before they are quantised."""
    found, plain = (recognise(load_model(build("bert", e).path), run_once) for e in (f"{BASE}+{form}", BASE))
    assert not found.refused
    for layer, other in zip(found.layers, plain.layers, strict=True):
        assert layer.attention is not None and other.attention is not None
        assert layer.attention.scale == pytest.approx(other.attention.scale, rel=0.02)
        assert layer.attention.output.input == other.attention.output.input
        assert layer.feed_forward is not None and other.feed_forward is not None
        assert (layer.feed_forward.activation, layer.feed_forward.neurons) == ("gelu", other.feed_forward.neurons)
        linears = (layer.attention.query, layer.attention.output, *layer.feed_forward.up, layer.feed_forward.down)
        assert all(linear.bias is not None for linear in linears)
        assert layer.attention.sum is not None and layer.feed_forward.sum is not None


@pytest.mark.parametrize("form", FORMS)
def test_products_of_integers_count_as_multiply_accumulates(form: str) -> None:
    counts = [macs(load_model(build("bert", e).path), run_once, 1, 8) for e in (BASE, f"{BASE}+{form}")]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("form", ["int8c", "qdqc"])
def test_scales_of_columns_are_cut_in_the_file_not_at_run_time(form: str) -> None:
    model = build("bert", f"{BASE}+{form}")
    result = removed(model, Plan().without_neurons(0, [1, 2]).without_heads(1, [0]))
    before = {node.op_type for node in load_model(model.path).graph}
    assert {node.op_type for node in result.graph} <= before - {"Constant"} | {"Gather"}
    assert sum(n.op_type == "Gather" for n in result.graph) <= sum(
        n.op_type == "Gather" for n in load_model(model.path).graph
    )


@pytest.mark.parametrize("form", ["int8", "qdq"])
def test_an_emptied_block_costs_no_product(form: str) -> None:
    model = build("bert", f"{BASE}+{form}")
    result = removed(model, Plan().without_heads(1, range(model.heads)).without_neurons(1, range(model.neurons)))
    left = [node for node in result.graph if any("layer.1" in str(v.name) for v in node.outputs)]
    assert not {node.op_type for node in left} & {"MatMulInteger", "MatMul", "Softmax"}
    ranges = [sum(n.op_type == "DynamicQuantizeLinear" for n in m.graph) for m in (load_model(model.path), result)]
    assert ranges[0] - ranges[1] == (4 if form == "int8" else 0), "of the inputs of both blocks and of both projections"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("form", FORMS)
def test_verify_looks_past_the_rounding_and_finds_a_wrong_graph(form: str, tmp_path: Path) -> None:
    model = build("bert", f"{BASE}+{form}")
    plan = Plan().without_heads(0, [1]).without_neurons(1, range(20)).with_hard_attention(2, 3)
    save_model(removed(model, plan), tmp_path / "right.onnx")
    assert verify(model.path, tmp_path / "right.onnx", plan) < 1e-5
    save_model(removed(model, plan.without_neurons(2, [5])), tmp_path / "wrong.onnx")
    with pytest.raises(Exception, match="differs from the source under the plan"):
        verify(model.path, tmp_path / "wrong.onnx", plan)


def test_the_command_line_inspects_and_applies_to_a_quantised_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["axformer-onnx", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capsys.readouterr()
        assert not done.value.code, err
        return out

    model = build("bert", f"{BASE}+int8")
    layers = json.loads(call("inspect", model.path, "--json", "--length", 8))["anatomy"]["layers"]
    assert [layer["attention"]["heads"] for layer in layers] == [model.heads] * model.layers
    plan = Plan().without_heads(0, [1]).without_neurons(1, range(5)).without_feed_forward(2)
    (tmp_path / "plan.json").write_text(plan.dumps(), encoding="utf-8")
    output = tmp_path / "out.onnx"
    call("apply", tmp_path / "plan.json", model.path, "-o", output)
    feeds = model.feeds(2, 7)
    assert_close(onnx_outputs(output, feeds)[0], masked_graph_outputs(model, feeds, plan)[0])


def test_nodes_out_of_order_as_the_quantiser_writes_them_are_put_in_order() -> None:
    """DeBERTa's subgraphs: what an `If` reads stands behind it in the file, which ONNX Runtime allows and ONNX does not."""
    model = build("deberta-v2", f"{BASE}+int8")
    with pytest.raises(onnx.checker.ValidationError, match="topologically sorted"):
        onnx.checker.check_model(onnx.load(model.path))
    three_ways(model, lambda model: Plan().without_heads(0, [1]).without_neurons(1, range(7)))


# -- drawn by hand ----------------------------------------------------------------------------------------------------


def quantised(array: Array, axis: int | None, signed: bool = True) -> tuple[Array, Array, Array]:
    """(integers, scale, zero point) of a weight, one scale for all or one a position of `axis`.

    7 bits: without VNNI, ONNX Runtime adds two products of bytes in 16 bits, which larger weights overflow.
    """
    over = None if axis is None else tuple(i for i in range(array.ndim) if i != axis)
    low, high = np.minimum(array.min(over), 0), np.maximum(array.max(over), 0)
    least = -64 if signed else 0
    scale = np.asarray((high - low) / 127, np.float32)
    kind = np.int8 if signed else np.uint8
    zero = np.asarray(np.round(least - low / scale), kind)
    shape = [-1 if i == axis else 1 for i in range(array.ndim)] if axis is not None else ()
    wide = np.round(array / scale.reshape(shape)) + zero.reshape(shape)
    return np.clip(wide, least, least + 127).astype(kind), scale, zero


def scaled(array: Array) -> tuple[Array, Array]:
    """(integers of 7 bits, scale of each row) of a weight, the zero point 0."""
    scale = np.asarray(np.abs(array).max(axis=1) / 63, np.float32)
    return np.round(array / scale[:, None]).astype(np.int8), scale


def layer_with(down: Callable[[draw.Sketch, draw.Weights, str], str], opset: int = 17) -> onnx.ModelProto:
    """One layer; `down` writes its down projection and bias, of the activated neurons."""

    def feed_forward(g: draw.Sketch, w: draw.Weights, z: str) -> str:
        return down(g, w, str(g("Relu", draw.linear(g, z, w["up"], w["bu"]))))

    return draw.layer(lambda g, w, x: draw.attend(g, w, draw.separate(g, w, x)), feed_forward, draw.weights(), opset)


def assert_neurons_go(proto: onnx.ModelProto, neurons: list[int]) -> None:
    """removed = gated = the layer whose up projection has zero columns there (Relu makes zeros of them)."""
    zeroed = onnx.ModelProto.FromString(proto.SerializeToString())
    for tensor in zeroed.graph.initializer:
        if tensor.dims and tensor.dims[-1] == draw.F and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) < 3:
            array = onnx.numpy_helper.to_array(tensor).copy()
            if array.shape in ((draw.D, draw.F), (draw.F,)):
                array[..., neurons] = 0
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    x = np.random.default_rng(0).normal(size=(2, 5, draw.D)).astype(np.float32)
    expected = onnx_outputs(zeroed.SerializeToString(), {"x": x})[0]
    plan, source = Plan().without_neurons(0, neurons), ir.from_proto(proto)
    result = apply_plan(source, plan, run_once)
    assert_close(onnx_outputs(serialized(result), {"x": x})[0], expected, "removed")
    stages = StageSessions(source, threads=1, optimize=False)
    assert_close(gated_outputs(stages, plan, {"x": x})[0], expected, "gated")


def integer_product(g: draw.Sketch, w: draw.Weights, inner: str, left: bool, by_channel: bool) -> str:
    """DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul, zero points given; `left`: weight @ x."""
    q, scale, zero = g("DynamicQuantizeLinear", g.transpose(inner, 0, 2, 1) if left else inner, outputs=3)
    weight = w["down"].T.copy() if left else w["down"]
    array, own, own_zero = quantised(weight, (0 if left else 1) if by_channel else None, signed=not left)
    if left and by_channel:  # ONNX Runtime takes one zero point alone for the left operand
        array, own, own_zero = *scaled(weight), np.array(0, np.int8)
    operands = (
        [g.weight(array), q, g.weight(own_zero), zero] if left else [q, g.weight(array), zero, g.weight(own_zero)]
    )
    floats = g("Cast", g("MatMulInteger", *operands), to=TensorProto.FLOAT)
    own = own.reshape(-1, 1) if left and by_channel else own
    y = g("Mul", floats, g("Mul", scale, g.weight(own)))
    return str(g("Add", g.transpose(y, 0, 2, 1) if left else y, g.weight(w["bd"])))


@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_integer_products_with_zero_points_on_either_side(left: bool, by_channel: bool) -> None:
    assert_neurons_go(layer_with(lambda g, w, x: integer_product(g, w, x, left, by_channel)), [0, 3, 4])


@pytest.mark.parametrize("left", [False, True])
def test_zero_points_and_scales_of_the_neurons_own_channels_are_cut(left: bool) -> None:
    """The up projection in integers, per column: its scales are those of neurons."""

    def feed_forward(g: draw.Sketch, w: draw.Weights, z: str) -> str:
        q, scale, zero = g("DynamicQuantizeLinear", g.transpose(z, 0, 2, 1) if left else z, outputs=3)
        array, own, own_zero = quantised(w["up"], 1)
        if left:
            array, own, own_zero = *scaled(w["up"].T.copy()), np.array(0, np.int8)
        parts = (
            [g.weight(array), q, g.weight(own_zero), zero] if left else [q, g.weight(array), zero, g.weight(own_zero)]
        )
        floats = g("Cast", g("MatMulInteger", *parts), to=TensorProto.FLOAT)
        y = g("Mul", floats, g("Mul", scale, g.weight(own.reshape(-1, 1) if left else own)))
        inner = g("Relu", g("Add", g.transpose(y, 0, 2, 1) if left else y, g.weight(w["bu"])))
        gain = g("Mul", inner, g.weight(np.ones(draw.F, np.float32), "gain"))
        return draw.linear(g, gain, w["down"], w["bd"])

    proto = draw.layer(lambda g, w, x: draw.attend(g, w, draw.separate(g, w, x)), feed_forward, draw.weights())
    result = apply_plan(ir.from_proto(proto), Plan().without_neurons(0, [2, 7]), run_once)
    assert not [n for n in result.graph if n.op_type == "Gather" and "kept" in str(n.outputs[0].name)]
    x = np.random.default_rng(0).normal(size=(2, 5, draw.D)).astype(np.float32)
    for tensor in proto.graph.initializer:
        if tensor.name == "gain":
            gain = np.ones(draw.F, np.float32)
            gain[[2, 7]] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(gain, "gain"))
    assert_close(onnx_outputs(serialized(result), {"x": x})[0], onnx_outputs(proto.SerializeToString(), {"x": x})[0])


def linear_product(g: draw.Sketch, w: draw.Weights, inner: str) -> str:
    """QuantizeLinear -> QLinearMatMul -> DequantizeLinear, the weight per column."""
    scale, zero, out, mid = (g.weight(v) for v in (np.float32(0.04), np.uint8(3), np.float32(0.1), np.uint8(128)))
    array, own, own_zero = quantised(w["down"], 1)
    q = g("QuantizeLinear", inner, scale, zero)
    y = g("QLinearMatMul", q, scale, zero, g.weight(array), g.weight(own), g.weight(own_zero), out, mid)
    return str(g("Add", g("DequantizeLinear", y, out, mid), g.weight(w["bd"])))


def test_a_product_of_integers_that_is_scaled_inside() -> None:
    assert_neurons_go(layer_with(linear_product), [1, 9])


def fake_quantised(g: draw.Sketch, w: draw.Weights, inner: str) -> str:
    """As after training for quantisation: a float weight through QuantizeLinear and DequantizeLinear, scales of rows."""
    _, scale, zero = quantised(w["down"], 0)
    both = g.weight(scale), g.weight(zero)
    q = g("QuantizeLinear", g.weight(w["down"]), *both, axis=0)
    return str(g("Add", g("MatMul", inner, g("DequantizeLinear", q, *both, axis=0)), g.weight(w["bd"])))


def test_float_weights_that_are_rounded_in_the_graph() -> None:
    assert_neurons_go(layer_with(fake_quantised), [0, 1, 8])


def blocked(size: int, kind: int = TensorProto.INT8) -> Callable[[draw.Sketch, draw.Weights, str], str]:
    """The down projection's rows in blocks of `size` that share a scale and a zero point (operator set 21)."""

    def down(g: draw.Sketch, w: draw.Weights, inner: str) -> str:
        limit = 7 if kind == TensorProto.INT4 else 127
        parts = w["down"].reshape(-1, size, draw.D)
        scale = (np.abs(parts).max(axis=1) / limit).astype(np.float32)
        integers = np.round(parts / scale[:, None]).reshape(w["down"].shape).astype(np.int8)
        tensor = onnx.helper.make_tensor("q", kind, integers.shape, integers.reshape(-1).tolist())
        g.initializers.append(tensor)
        weight = g("DequantizeLinear", "q", g.weight(scale), axis=0, block_size=size)
        return str(g("Add", g("MatMul", inner, weight), g.weight(w["bd"])))

    return down


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.INT4], ids=["int8", "int4"])
def test_whole_blocks_of_a_scale_can_go(kind: int) -> None:
    assert_neurons_go(layer_with(blocked(2, kind), opset=21), [2, 3, 8, 9])


def test_a_cut_through_a_block_of_a_scale_is_refused_before_any_edit() -> None:
    model = ir.from_proto(layer_with(blocked(5), opset=21))
    with pytest.raises(RecogniseError, match=r"quantised in blocks of 5 values .*in runs of 5"):
        apply_plan(model, Plan().without_neurons(0, [1]), run_once)
    apply_plan(model, Plan().without_neurons(0, range(5)), run_once)


@pytest.mark.parametrize(
    "kind", [TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT8E4M3FN], ids=["int4", "uint4", "f8"]
)
def test_narrow_weights_behind_one_scale_are_cut(kind: int) -> None:
    def down(g: draw.Sketch, w: draw.Weights, inner: str) -> str:
        values = np.clip(np.round(w["down"] * 3), 0 if kind == TensorProto.UINT4 else -8, 7)
        g.initializers.append(onnx.helper.make_tensor("q", kind, values.shape, values.reshape(-1).tolist()))
        weight = g("DequantizeLinear", "q", g.weight(np.float32(0.3)))
        return str(g("Add", g("MatMul", inner, weight), g.weight(w["bd"])))

    assert_neurons_go(layer_with(down, opset=21), [0, 2, 5])
