"""Absorbed keys and values on real exports: the outputs of the source, without the large products of the last layer.

The oracles are the source file in ONNX Runtime, its own optimisations off, and torch. Hand-drawn graphs: test_absorb_rules.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_oracle import run_as_declared
from surgery import assert_close, clear_sample, gated_outputs
from test_half import BASE, HALF_TOLERANCE, in_float32
from test_readout import EXPORTERS, POOLED, WHOLE, assert_same, cases
from weights_oracle import drawn, weighted_outputs
from zoo import Feeds, ZooModel, build, onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_passes.apply import apply_plan
from axformer_passes.errors import PlanError
from axformer_passes.io.files import load_model, serialized
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise

PROJECTED = Plan(readout="narrow", constants="folded")
ABSORBED = dataclasses.replace(PROJECTED, keys_values="absorbed")
MOVES = ("Reshape", "Transpose")
GROUPED = ("llama", "qwen2", "qwen3")
KEY_VALUE_HEADS = 2


def absorbed(source: ir.Model, plan: Plan = ABSORBED, **given: Any) -> ir.Model:
    """`plan` with keys and values absorbed, after the full checker with strict shape inference."""
    result = apply_plan(source, dataclasses.replace(plan, keys_values="absorbed"), run_once, **given)
    proto = onnx.ModelProto.FromString(serialized(result))
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    return result


def macs(model: ir.Model, feeds: Feeds) -> int:
    """Multiply-accumulates of every MatMul and Gemm, from the shapes of a run."""
    proto = onnx.ModelProto.FromString(serialized(model))
    products = [node for node in proto.graph.node if node.op_type in ("MatMul", "Gemm")]
    known = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    names = list(dict.fromkeys(n for node in products for n in (node.input[0], node.output[0]) if n not in known))
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    shapes = known | {n: a.shape for n, a in zip(names, onnx_outputs(proto.SerializeToString(), feeds), strict=True)}
    return sum(int(np.prod(shapes[node.output[0]])) * shapes[node.input[0]][-1] for node in products)


def saved(zoo: ZooModel, batch: int, tokens: int, groups: int | None = None) -> int:
    """What keys, or values, cost less: B (S D G d + H S d) before, B (H D H d + H S D) after."""
    heads, d, width = zoo.sizes.heads, zoo.sizes.head_size, zoo.width
    before = tokens * width * (groups or heads) * d + heads * tokens * d
    return batch * (before - heads * width * heads * d - heads * tokens * width)


def gone(zoo: ZooModel, plan: Plan = PROJECTED) -> float:
    """How many of keys and values of the last layer are gone, from what the graphs multiply."""
    source, feeds = load_model(zoo.path), zoo.feeds(3, 11)
    less = macs(apply_plan(source, plan, run_once), feeds) - macs(absorbed(source, plan), feeds)
    return less / saved(zoo, 3, 11, KEY_VALUE_HEADS if zoo.family in GROUPED else None)


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), cases((*POOLED, *WHOLE), *EXPORTERS))
def test_outputs_equal_the_source(family: str, exporter: str) -> None:
    zoo = build(family, exporter)
    source = zoo.opened()
    assert_same(zoo, source, absorbed(source), range(1, 13, 2))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "how", ["torchscript-eager-11", "torchscript-eager-17+ort", "dynamo-20+ortfusions", "dynamo-23"]
)
def test_outputs_equal_the_source_in_older_and_fused_files(how: str) -> None:
    zoo = build("bert", how)
    source = load_model(zoo.path)
    assert_same(zoo, source, absorbed(source), range(1, 13, 4))


@pytest.mark.parametrize("how", ["torchscript-eager-17+qdq", "torchscript-eager-17+int8"])
def test_quantised_weights_stay(how: str) -> None:
    zoo = build("bert", how)
    source = load_model(zoo.path)
    assert serialized(absorbed(source)) == serialized(apply_plan(source, PROJECTED, run_once))


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("family", "exporter"),
    cases(("bert", "distilbert", "roberta", "electra", "minilm", "mpnet", "albert", "clip-text"), *EXPORTERS),
)
def test_keys_and_values_of_the_last_layer_are_gone(family: str, exporter: str) -> None:
    assert gone(build(family, exporter)) == 2


@pytest.mark.sampled(1)
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_keys_and_values_are_gone_out_of_a_packed_projection(exporter: str) -> None:
    """Behind GPT-2's Where of torchscript nobody sees that the bias of keys is forgotten: B H d more for it."""
    zoo = build("gpt2", exporter)
    bias = 3 * zoo.heads**2 * zoo.head_size if exporter == "torchscript-eager-17" else 0
    assert gone(zoo) == 2 - bias / saved(zoo, 3, 11)


@pytest.mark.parametrize("exporter", ["torchscript-eager-11", f"{BASE}+wfp16", f"{BASE}+external", f"{BASE}+ort"])
def test_keys_and_values_are_gone_in_files_spelled_otherwise(exporter: str) -> None:
    assert gone(build("bert", exporter)) == 2


def test_keys_and_values_are_gone_out_of_a_fused_attention() -> None:
    """What it multiplies within itself, B H S d twice, is not counted before."""
    zoo = build("bert", "dynamo-23")
    inside = 2 * 3 * zoo.heads * 11 * zoo.head_size
    assert gone(zoo) == 2 - inside / saved(zoo, 3, 11)
    kept = [node.op_type for node in absorbed(load_model(zoo.path)).graph].count("Attention")
    assert kept == zoo.layers - 1  # the others leave fused


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), cases((*GROUPED, "modernbert"), *EXPORTERS))
def test_values_go_where_keys_are_turned(family: str, exporter: str) -> None:
    assert gone(build(family, exporter)) == 1


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), cases(WHOLE, *EXPORTERS))
def test_nothing_changes_where_all_tokens_are_read(family: str, exporter: str) -> None:
    source = build(family, exporter).opened()
    assert serialized(absorbed(source)) == serialized(apply_plan(source, PROJECTED, run_once))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_the_whole_readout_leaves_nothing_to_absorb(exporter: str) -> None:
    source = load_model(build("bert", exporter).path)
    plan = Plan(constants="folded")
    assert serialized(absorbed(source, plan)) == serialized(apply_plan(source, plan, run_once))


@pytest.mark.parametrize(("exporter", "count"), [("torchscript-eager-17", 2), ("dynamo-20", 2), ("optimum", 1)])
def test_constants_may_be_kept(exporter: str, count: int) -> None:
    """optimum scales keys by a root of their size, which is a constant only when it is folded."""
    zoo = build("bert", exporter)
    source, plan = load_model(zoo.path), Plan(readout="narrow")
    assert gone(zoo, plan) == count
    assert_same(zoo, source, absorbed(source, plan), range(1, 13, 4))


def test_a_weight_that_layers_share_is_written_once() -> None:
    zoo = build("albert", "dynamo-20")
    source = load_model(zoo.path)
    sizes = [sum(t.size for t in map(_tensor, m.graph.initializers.values())) for m in (source, absorbed(source))]
    assert sizes[1] <= sizes[0]


def _tensor(value: ir.Value) -> Any:
    return value.const_value


# -- with all else that a plan says -----------------------------------------------------------------------------------


def plans(last: int = 2, heads: int = 4) -> dict[str, Plan]:
    """What else may happen to the last layer."""
    cut = ABSORBED.without_heads(0, [0]).without_neurons(1, [0, 3, 4])
    return {
        "heads": cut.without_heads(last, range(0, heads, 2)),
        "one head": cut.without_heads(last, range(1, heads)),
        "no head": cut.without_heads(last, range(heads)),
        "no attention": cut.without_attention(last),
        "truncated": cut.with_hard_attention(last, 3),
        "renormalised": cut.with_hard_attention(last, 3, "renormalised"),
        "heads, truncated": cut.without_heads(last, [1]).with_hard_attention(last, 2),
    }


@pytest.mark.matrix
@pytest.mark.parametrize("what", plans())
@pytest.mark.parametrize(("family", "exporter"), cases(("bert", "distilbert", "llama"), *EXPORTERS))
def test_plans_equal_torch(family: str, exporter: str, what: str) -> None:
    zoo = build(family, exporter)
    plan = plans(zoo.layers - 1, zoo.heads)[what]
    for constants in ("kept", "folded"):
        graph = serialized(absorbed(load_model(zoo.path), dataclasses.replace(plan, constants=constants)))
        for batch, length in ((1, 1), (2, 7), (3, 12)):
            feeds, expected = clear_sample(zoo, plan, batch, length)
            assert_close(onnx_outputs(graph, feeds)[0], expected, f"{what}, {constants}, {batch} x {length}")


@pytest.mark.parametrize("mode", ["truncated", "renormalised"])
def test_hard_attention_does_not_keep_keys_or_values(mode: Any) -> None:
    zoo = build("bert", BASE)
    source, plan = load_model(zoo.path), PROJECTED.with_hard_attention(2, 3, mode)
    feeds = zoo.feeds(3, 11)
    less = macs(apply_plan(source, plan, run_once), feeds) - macs(absorbed(source, plan), feeds)
    assert less >= 2 * saved(zoo, 3, 11) - 3 * zoo.heads**2 * zoo.head_size  # at most one number for each head more


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("family", "exporter"), cases(("bert", "llama"), "torchscript-eager-17", "dynamo-20"))
def test_compensation_weights_equal_torch(family: str, exporter: str) -> None:
    zoo = build(family, exporter)
    source = load_model(zoo.path)
    plan = ABSORBED.without_heads(2, [0]).without_neurons(2, [1, 5]).with_hard_attention(2, 3)
    weights = drawn(zoo, plan, 0)
    graph = serialized(absorbed(source, plan, weights=weights))
    for batch, length in ((1, 1), (2, 7)):
        feeds = zoo.feeds(batch, length)
        assert_close(onnx_outputs(graph, feeds)[0], weighted_outputs(zoo, feeds, plan, weights), f"{batch} x {length}")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", ["bert+fp16", "bert+fp16io", "bert+wfp16", "bert+bf16", "vit+fp16io", "minilm+bf16"])
def test_half_precision(case: str) -> None:
    family, form = case.split("+")
    zoo = build(family, f"{BASE}+{form}")
    source = load_model(zoo.path)
    result = serialized(absorbed(source, PROJECTED.with_hard_attention(1, 3)))
    plain = serialized(apply_plan(source, PROJECTED.with_hard_attention(1, 3), run_once))
    assert result != plain
    for batch, length in ((1, 2), (2, 7)):
        feeds = zoo.feeds(batch, length)
        found, expected = (run_as_declared(in_float32(one), feeds)[0] for one in (result, plain))
        assert_close(found, expected, f"{case}, {batch} x {length}")
        if form != "bf16":
            found, expected = (run_as_declared(one, feeds)[0].astype(np.float64) for one in (result, plain))
            assert np.abs(found - expected).max() <= HALF_TOLERANCE * np.abs(expected).max()


# -- what comes after -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_result_is_a_model_like_any_other(exporter: str) -> None:
    """All of its heads are recognised, those behind the absorbed keys and values too, and can go."""
    zoo = build("bert", exporter)
    first = absorbed(load_model(zoo.path))
    anatomy, source = recognise(first, run_once), recognise(load_model(zoo.path), run_once)
    assert [(layer.attention and layer.attention.heads) for layer in anatomy.layers] == [zoo.heads] * zoo.layers
    assert [layer.feed_forward for layer in anatomy.layers] and len(anatomy.layers) == len(source.layers)
    for plan in (
        ABSORBED.without_heads(0, [1]).without_neurons(2, [0, 2]),
        ABSORBED.without_heads(2, [0, 2]).without_heads(1, [3]),
        ABSORBED.with_hard_attention(2, 3, "renormalised").without_heads(2, [1]),
        PROJECTED.without_heads(2, [1]),
    ):
        feeds, expected = clear_sample(zoo, plan, 2, 9)
        assert_close(gated_outputs(StageSessions(first, threads=1), plan, feeds)[0], expected)
        assert_close(onnx_outputs(serialized(apply_plan(first, plan, run_once)), feeds)[0], expected)


def test_twice_is_once() -> None:
    """But for what moves numbers about, the same operators."""
    first = absorbed(load_model(build("bert", BASE).path))
    once, twice = ([n.op_type for n in m.graph if n.op_type not in MOVES] for m in (first, absorbed(first)))
    assert sorted(once) == sorted(twice)


def test_equal_arguments_give_equal_bytes_and_leave_the_source() -> None:
    source = load_model(build("bert", BASE).path)
    before = serialized(source)
    one, two = (serialized(absorbed(source)) for _ in range(2))
    assert one == two and serialized(source) == before


def test_a_plan_says_it_and_refuses_another_word() -> None:
    assert '"keys_values": "absorbed"' in ABSORBED.dumps() and "keys_values" not in Plan().dumps()
    assert Plan.loads(ABSORBED.dumps()) == ABSORBED
    only = Plan(keys_values="absorbed")
    assert not only.is_empty and only.is_exact
    with pytest.raises(PlanError, match="expected projected or absorbed"):
        Plan.loads(ABSORBED.dumps().replace("absorbed", "forgotten"))
