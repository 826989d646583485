"""Given weights in output projections: applied = through gates = torch with those weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from surgery import assert_close, gated_outputs
from torch_oracle import random_plan
from weights_oracle import drawn, weighted_outputs
from zoo import FAMILY, ZooModel, build, onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_passes.apply import apply_plan, reweighted
from axformer_passes.blocks.projections import classifier, projection
from axformer_passes.cut.new_weights import Weights, weight_shapes
from axformer_passes.errors import AxformerError, PlanError, RecogniseError
from axformer_passes.io.files import load_model, serialized
from axformer_passes.io.lean_model import detached
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import examine

BIASED = (
    "bert",
    "gpt2",
    "llama",
    "albert",
    "distilbert",
    "t5-encoder",
    "clip-vision",
    "wav2vec2",
    "bart",
    "mobilebert",
)
EXPORTERS = ("torchscript-eager-17", "dynamo-20")


def plan_of(model: ZooModel, seed: int = 0) -> Plan:
    """Heads and neurons of most blocks, one block of each kind, hard attention."""
    plan = random_plan(model, np.random.default_rng(seed))
    return Plan(heads=plan.heads, neurons=plan.neurons).with_hard_attention(0, 3) if seed == 0 else plan


def assert_weights_count(model: ZooModel, plan: Plan, weights: Weights) -> ir.Model:
    """Applied and gated both equal torch; the applied graph passes the full checker. Returns it."""
    result = apply_plan(load_model(model.path), plan, run_once, weights=weights)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    sessions = StageSessions(reweighted(load_model(model.path), plan, weights, run_once), threads=1)
    for batch, length in ((1, 1), (2, 7)):
        feeds = model.feeds(batch, length)
        expected = weighted_outputs(model, feeds, plan, weights)
        assert_close(onnx_outputs(serialized(result), feeds)[0], expected, f"applied {plan.to_json()}")
        assert_close(gated_outputs(sessions, plan, feeds)[0], expected, f"gated {plan.to_json()}")
    return result


@pytest.mark.matrix
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("family", [f for f in BIASED if f in FAMILY])
def test_applied_equals_gated_equals_torch_with_the_weights(family: str, exporter: str) -> None:
    if FAMILY[family].reason(exporter):
        pytest.skip(str(FAMILY[family].reason(exporter)))
    model = build(family, exporter)
    for seed in range(2):
        plan = plan_of(model, seed)
        assert_weights_count(model, plan, drawn(model, plan, seed))


def test_weights_without_biases_leave_the_biases_of_the_source() -> None:
    for family in ("bert", "xlnet"):
        model = build(family, "torchscript-eager-17")
        plan = plan_of(model)
        assert_weights_count(model, plan, drawn(model, plan, 1, bias=False))


def test_biases_alone_and_some_blocks_alone_can_be_given() -> None:
    model = build("gpt2", "torchscript-eager-17")
    plan = plan_of(model)
    every = drawn(model, plan, 2)
    assert_weights_count(model, plan, {k: v for k, v in every.items() if k.endswith("bias")})
    assert_weights_count(model, plan, {k: v for k, v in every.items() if k.startswith("layers.1.")})
    assert_weights_count(model, Plan(), drawn(model, Plan(), 3))


@pytest.mark.parametrize("family", ["bert", "t5-encoder", "gpt2"])
def test_a_block_without_heads_or_neurons_puts_out_its_bias(family: str) -> None:
    """The last level: t5 has no bias of its own there."""
    model = build(family, "torchscript-eager-17")
    plan = Plan().without_heads(1, range(model.heads)).without_neurons(0, range(model.neurons))
    weights = drawn(model, plan, 4)
    assert weights["layers.1.attention.weight"].shape == (0, model.width)
    assert_weights_count(model, plan, weights)
    bias_alone = {k: v for k, v in weights.items() if v.size}
    assert_weights_count(model, plan, bias_alone)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_layers_that_share_their_weights_may_each_be_given_their_own(exporter: str) -> None:
    model = build("albert", exporter)
    plan = Plan().without_heads(0, [1]).without_heads(2, [0, 3]).without_neurons(1, range(9))
    assert_weights_count(model, plan, drawn(model, plan, 5))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_layers_that_share_their_weights_together_are_given_one(exporter: str, tmp_path: Path) -> None:
    model = build("albert", exporter)
    together = Plan(shared_weights="together").without_heads(0, [1]).without_neurons(1, [2, 3]).without_attention(2)
    separate = Plan().without_attention(2)
    for layer in range(3):
        separate = separate.without_neurons(layer, [2, 3])
    for layer in range(2):
        separate = separate.without_heads(layer, [1])
    every = drawn(model, separate, 6)
    one = {k: v for k, v in every.items() if k.startswith(("layers.1.attention", "layers.0.feed_forward"))}
    each = {k: one[f"layers.{int('attention' in k)}{k[8:]}"] for k in every}
    result = apply_plan(load_model(model.path), together, run_once, weights=one)
    feeds = model.feeds(2, 7)
    assert_close(onnx_outputs(serialized(result), feeds)[0], weighted_outputs(model, feeds, separate, each))
    plain = serialized(apply_plan(load_model(model.path), together, run_once))
    assert len(serialized(result)) < len(plain) + 2048, "shared weights were written apart"
    with pytest.raises(PlanError, match="differ, but these layers share"):
        apply_plan(load_model(model.path), together, run_once, weights=every)


VARIANTS = (
    ("bert", "torchscript-eager-17+transposed"), ("bert", "torchscript-eager-17+wfp16"), ("bert", "torchscript-eager-17+ort"),
    ("bert", "dynamo-20+ortfusions"), ("bert", "torchscript-eager-17+external"), ("bert", "torchscript-eager-17+functions"),
    ("gpt2", "torchscript-eager-17+ort"), ("vit", "torchscript-eager-17+onnxslim"),
)  # fmt: skip


@pytest.mark.parametrize(("family", "exporter"), VARIANTS)
def test_weights_are_written_where_tools_have_put_them(family: str, exporter: str) -> None:
    model = build(family, exporter)
    plan = Plan().without_heads(0, [1]).without_neurons(1, range(0, model.neurons, 3))
    weights = drawn(model, plan, 7)
    if "fp16" in exporter:  # what the file can hold
        weights = {k: v.astype(np.float16).astype(np.float32) for k, v in weights.items()}
    result = apply_plan(load_model(model.path), plan, run_once, weights=weights)
    source = apply_plan(load_model(model.path), plan, run_once)
    assert sorted(n.op_type for n in result.graph) == sorted(n.op_type for n in source.graph), "another set of nodes"
    feeds = model.feeds(2, 7)
    found, expected = onnx_outputs(serialized(result), feeds)[0], weighted_outputs(model, feeds, plan, weights)
    if "wfp16" in exporter:
        assert np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()  # all other weights are rounded
    else:
        assert_close(found, expected)


def test_a_bias_that_the_source_lacks_is_one_addition() -> None:
    model = build("t5-encoder", "torchscript-eager-17")
    plan = Plan().without_heads(0, [1])
    counts = []
    for weights in (drawn(model, plan, 8, bias=False), drawn(model, plan, 8)):
        counts.append([n.op_type for n in assert_weights_count(model, plan, weights).graph].count("Add"))
    assert counts[1] - counts[0] == 2 * model.layers


@pytest.mark.parametrize("family", ["bert", "gpt2", "xlnet", "albert", "llama"])
def test_projections_are_read_as_torch_holds_them(family: str) -> None:
    model = build(family, "torchscript-eager-17")
    examined = examine(load_model(model.path), run_once)
    shapes = weight_shapes(Plan(), examined)
    for layer in examined.anatomy.layers:
        for kind in ("attention", "feed_forward"):
            place = projection(examined, layer.index, kind)
            matrix, bias = place.weight_matrix(), place.bias_vector()
            assert matrix.shape == shapes[f"layers.{layer.index}.{kind}.weight"]
            own = {f"layers.{layer.index}.{kind}.weight": matrix.astype(np.float32)}
            if bias is not None:
                own[f"layers.{layer.index}.{kind}.bias"] = bias.astype(np.float32)
            feeds = model.feeds(2, 6)
            assert_close(weighted_outputs(model, feeds, Plan(), own), model.logits(feeds), f"{layer.index} {kind}")


@pytest.mark.parametrize("exporter", ["torchscript-eager-17+int8", "torchscript-eager-17+qdq"])
def test_quantised_projections_are_refused_at_their_node(exporter: str) -> None:
    model = build("bert", exporter)
    with pytest.raises(
        RecogniseError, match=r"layer 0, attention: its weight '.*' is quantised \((MatMulInteger|Deq)"
    ) as caught:
        apply_plan(load_model(model.path), Plan(), run_once, weights=drawn(model, Plan(), 9))
    assert "quantise the result" in str(caught.value) and "\n" not in str(caught.value)


def test_the_source_is_untouched_and_equal_arguments_give_equal_bytes() -> None:
    model = build("bert", "torchscript-eager-17")
    plan = plan_of(model)
    weights = drawn(model, plan, 10)
    source = load_model(model.path)
    before = serialized(source)
    first = serialized(apply_plan(source, plan, run_once, weights=weights))
    assert serialized(source) == before
    assert serialized(apply_plan(load_model(model.path), plan, run_once, weights=weights)) == first
    assert serialized(apply_plan(source, plan, run_once, weights={})) == serialized(apply_plan(source, plan, run_once))


GONE = Plan(weights="plan.safetensors").without_heads(0, [1]).without_feed_forward(1)
F32 = np.float32
WRONG: list[tuple[dict[str, np.ndarray], str]] = [
    ({"bert.encoder.layer.0.output.dense.weight": np.zeros((24, 32), F32)}, "is no such name; expected names such as"),
    ({"layers.0.attention.gate": np.zeros(3, F32)}, "is no such name"),
    ({"layers.00.attention.bias": np.zeros(32, F32)}, "is no such name"),
    ({"layers.3.attention.bias": np.zeros(32, F32)}, "a block that the plan removes or the model lacks"),
    ({"layers.1.feed_forward.bias": np.zeros(32, F32)}, "a block that the plan removes or the model lacks"),
    ({"layers.0.attention.weight": np.zeros((32, 32), F32)}, r"has the shape \(32, 32\), but under the plan it is \(24, 32\)"),
    ({"layers.0.attention.weight": np.zeros((24, 32), np.int64)}, "is int64, expected float32 or float64"),
    ({"layers.0.attention.weight": np.zeros((24, 32), np.float16)}, "is float16, expected float32 or float64"),
    ({"layers.0.attention.bias": np.full(32, np.nan, F32)}, "numbers that are not finite"),
    ({"layers.0.attention.bias": np.full(32, 1e300)}, "the given bias does not fit its type FLOAT"),
]  # fmt: skip


@pytest.mark.parametrize(("weights", "message"), WRONG, ids=[m[:30] for _, m in WRONG])
def test_weights_that_do_not_fit_are_refused_in_one_line(weights: dict[str, np.ndarray], message: str) -> None:
    model = build("bert", "torchscript-eager-17")
    with pytest.raises(PlanError, match=message) as caught:
        apply_plan(load_model(model.path), GONE, run_once, weights=weights)
    assert "\n" not in str(caught.value)


def test_a_plan_that_names_weights_is_not_applied_without_them() -> None:
    model = build("bert", "torchscript-eager-17")
    with pytest.raises(AxformerError, match=r"names its weights .*plan.safetensors.*none were given"):
        apply_plan(load_model(model.path), GONE, run_once)


def test_classifier_whose_answers_are_picked_afterwards_is_refused() -> None:
    examined = examine(load_model(build("gpt2", "torchscript-eager-17").path), run_once)
    with pytest.raises(RecogniseError, match="logits: no linear layer with learned weights stands right before"):
        classifier(examined, "logits")


@pytest.mark.parametrize("family", ["bert", "distilbert", "vit"])
@pytest.mark.parametrize("exporter", ["torchscript-eager-17", "dynamo-20"])
def test_classifier_is_found_and_written(family: str, exporter: str) -> None:
    model = build(family, exporter)
    feeds, output = model.feeds(3, 7), "logits"
    examined = examine(load_model(model.path), run_once)
    place = classifier(examined, output)
    weight, bias = place.weight_matrix(), place.bias_vector()
    assert weight.shape[1] == model.logits(feeds).shape[-1]
    if bias is None:
        return
    given = {f"classifier.{output}.weight": 2 * weight, f"classifier.{output}.bias": 2 * bias + 1}
    changed = apply_plan(load_model(model.path), Plan(), run_once, weights=given)
    found = run_once(detached(changed), feeds)[output]
    assert_close(found, 2 * model.logits(feeds) + 1, f"{family} {exporter}")
