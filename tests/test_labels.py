"""Labels: what must be cut together, and what must not be cut at all, with the node and the reason named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as draw
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from small_graphs import D, E, F, H, Sketch, Weights, Writer, attend, linear, separate
from surgery import assert_close
from zoo import onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.errors import ModelError, PlanError
from axformer_passes.io.files import serialized
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise
from axformer_passes.registry.classes import Classes

PAIRS = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=20)


@settings(derandomize=True, deadline=None, database=None, max_examples=50)
@given(pairs=PAIRS)
def test_classes_are_the_connected_components(pairs: list[tuple[int, int]]) -> None:
    classes = Classes()
    classes.new(12)
    reach = np.eye(12, dtype=bool)
    for a, b in pairs:
        classes.unite(np.array([a]), np.array([b]))
        reach[a, b] = reach[b, a] = True
    for _ in range(4):  # 2**4 steps reach across 12 nodes
        reach = reach @ reach
    assert (classes.roots() == reach.argmax(axis=1)).all()


def test_a_position_without_a_label_is_never_united() -> None:
    classes = Classes()
    classes.new(2)
    classes.unite(np.array([0, -1]), np.array([-1, 1]))
    assert classes.roots().tolist() == [0, 1]


# -- what is refused ------------------------------------------------------------------------------------------------


def reversed_time(g: Sketch, x: str) -> str:
    """An operator without a rule that, with lengths of 1, changes nothing."""
    batch = g("Gather", g("Shape", x), g.weight(np.array([0])))
    lengths = g("Expand", g.weight(np.array([1])), batch)
    return str(g("ReverseSequence", x, lengths, time_axis=1, batch_axis=0))


def unknown_between(g: Sketch, w: Weights, z: str) -> str:
    inner = g("Relu", linear(g, z, w["up"], w["bu"]))
    return linear(g, reversed_time(g, inner), w["down"], w["bd"])


def normed_neurons(g: Sketch, w: Weights, z: str) -> str:
    inner = g("LayerNormalization", g("Relu", linear(g, z, w["up"], w["bu"])), g.weight(np.ones(F, np.float32)))
    return linear(g, inner, w["down"], w["bd"])


def mean_of_neurons(g: Sketch, w: Weights, z: str) -> str:
    inner = g("Relu", linear(g, z, w["up"], w["bu"]))
    inner = g("Sub", inner, g("ReduceMean", inner, axes=[-1]))
    return linear(g, inner, w["down"], w["bd"])


def read_inside_an_if(g: Sketch, w: Weights, z: str) -> str:
    inner = g("Relu", linear(g, z, w["up"], w["bu"]))
    info = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    branches = {
        f"{which}_branch": helper.make_graph([helper.make_node(op, [inner], ["out"])], which, [], info)
        for which, op in (("then", "Neg"), ("else", "Identity"))
    }
    chosen = g("If", g.weight(np.array(False)), **branches)
    return linear(g, chosen, w["down"], w["bd"])


def read_by_two(g: Sketch, w: Weights, z: str) -> str:
    inner = g("Relu", linear(g, z, w["up"], w["bu"]))
    other = linear(g, inner, w["down"][:, ::-1].copy(), w["bd"])
    return str(g("Add", linear(g, inner, w["down"], w["bd"]), other))


FEED_FORWARDS: dict[str, tuple[Writer, str]] = {
    "an operator without a rule": (unknown_between, "no rule for operator ReverseSequence"),
    "two projections that read the neurons": (read_by_two, "read by 2 projections"),
    "a norm over the neurons": (normed_neurons, "its 10 neurons are united into 1 classes"),
    "a mean over the neurons": (mean_of_neurons, "its 10 neurons are united into 1 classes"),
    "a subgraph that reads the neurons": (read_inside_an_if, "from inside a subgraph"),
}


@pytest.mark.parametrize("name", FEED_FORWARDS)
def test_feed_forward_that_is_not_understood_is_not_cut(name: str) -> None:
    write, reason = FEED_FORWARDS[name]
    w = draw.weights()
    model = ir.from_proto(draw.layer(lambda g, w, x: attend(g, w, separate(g, w, x)), write, w))
    anatomy = recognise(model, run_once)
    assert [layer.feed_forward for layer in anatomy.layers] == [None]
    assert any(reason in r.reason for r in anatomy.refused), anatomy.refused
    assert [r.before for r in anatomy.refused] == [1] * len(anatomy.refused), "behind the attention of layer 0"
    with pytest.raises(PlanError, match="no feed-forward block was recognised in layer 0"):
        apply_plan(model, Plan().without_neurons(0, [1]), run_once)


def test_the_refusal_names_the_node_and_the_rest_can_still_be_cut() -> None:
    w = draw.weights()
    proto = draw.layer(lambda g, w, x: attend(g, w, separate(g, w, x)), unknown_between, w)
    (refusal,) = recognise(ir.from_proto(proto), run_once).refused
    node = next(n for n in proto.graph.node if n.op_type == "ReverseSequence")
    assert (refusal.node, refusal.operator) == (node.output[0], "ReverseSequence")
    result = apply_plan(ir.from_proto(proto), Plan().without_heads(0, [1, 2]), run_once)
    x = np.random.default_rng(0).normal(size=(2, 5, D)).astype(np.float32)
    found = onnx_outputs(ir.to_proto(result).SerializeToString(), {"x": x})[0]
    assert_close(found, w.answer(x, heads=[1, 2]))


def over_heads(g: Sketch, w: Weights, x: str) -> str:
    """Softmax over the heads."""
    q, k, v = separate(g, w, x)
    p = g("Softmax", g("MatMul", q, g.transpose(k, 0, 1, 3, 2)), axis=1)
    return linear(g, g.reshape(g.transpose(g("MatMul", p, v), 0, 2, 1, 3), 0, 0, H * E), w["wo"], w["bo"])


def talking_heads(g: Sketch, w: Weights, x: str) -> str:
    """Scores mixed across heads by a learned matrix."""

    def mixed(g: Sketch, scores: str) -> str:
        mix = np.random.default_rng(2).normal(size=(H, H)).astype(np.float32)
        last = g("MatMul", g.transpose(scores, 0, 2, 3, 1), g.weight(mix))
        return g.transpose(last, 0, 3, 1, 2)

    return attend(g, w, separate(g, w, x), mixed)


def normed_across(g: Sketch, w: Weights, x: str) -> str:
    """One norm over the channels of all query heads."""

    def project(g: Sketch, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
        y = linear(g, x, weight, bias)
        return str(g("LayerNormalization", y, g.weight(np.ones(weight.shape[1], np.float32))))

    q, _, _ = separate(g, w, x, project)
    return attend(g, w, (q, *separate(g, w, x)[1:]))


def normed_in_pairs(g: Sketch, w: Weights, x: str) -> str:
    """A norm over the channels of two query heads each."""
    q, k, v = separate(g, w, x)
    pairs = g.reshape(g.transpose(q, 0, 2, 1, 3), 0, 0, H // 2, 2 * E)
    normed = g("LayerNormalization", pairs, g.weight(np.ones(2 * E, np.float32)))
    return attend(g, w, (g.transpose(g.reshape(normed, 0, 0, H, E), 0, 2, 1, 3), k, v))


def read_twice(g: Sketch, w: Weights, x: str) -> str:
    """A context that two projections read."""
    q, k, v = separate(g, w, x)
    p = g("Softmax", g("MatMul", q, g.transpose(k, 0, 1, 3, 2)), axis=-1)
    joined = g.reshape(g.transpose(g("MatMul", p, v), 0, 2, 1, 3), 0, 0, H * E)
    return str(g("Add", linear(g, joined, w["wo"], w["bo"]), linear(g, joined, w["wo"][:, ::-1].copy(), w["bo"])))


def scores_read(g: Sketch, w: Weights, x: str) -> str:
    """A fused node whose probabilities are read too."""
    y, _, _, p = g("Attention", *separate(g, w, x), outputs=4, qk_matmul_output_mode=3)
    context = g.transpose(g("Add", y, g("ReduceMean", p, g.weight(np.array([3])))), 0, 2, 1, 3)
    return linear(g, g.reshape(context, 0, 0, H * E), w["wo"], w["bo"])


def unknown_in_context(g: Sketch, w: Weights, x: str) -> str:
    """An operator without a rule on the context."""
    q, k, v = separate(g, w, x)
    p = g("Softmax", g("MatMul", q, g.transpose(k, 0, 1, 3, 2)), axis=-1)
    joined = g.reshape(g.transpose(g("MatMul", p, v), 0, 2, 1, 3), 0, 0, H * E)
    return linear(g, reversed_time(g, joined), w["wo"], w["bo"])


ATTENTIONS: dict[str, tuple[Writer, str]] = {
    "softmax over heads": (over_heads, "normalise over the last axis alone"),
    "heads mixed by a matrix": (talking_heads, "expected"),
    "a norm across two heads": (normed_in_pairs, "its heads are united into 2 classes, expected 4"),
    "two projections": (read_twice, "read by 2 projections"),
    "a fused node whose scores are read": (scores_read, "output 3 is read"),
    "an operator without a rule": (unknown_in_context, "no rule for operator ReverseSequence"),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_that_is_not_understood_is_refused_with_a_reason(name: str) -> None:
    write, reason = ATTENTIONS[name]
    w = draw.weights()
    model = ir.from_proto(draw.layer(write, draw.plain, w, opset=23 if write is scores_read else 17))
    anatomy = recognise(model, run_once)
    assert [layer.attention for layer in anatomy.layers if layer.attention] == []
    assert any(reason in r.reason for r in anatomy.refused), anatomy.refused


def test_context_that_is_a_graph_output_stays_whole() -> None:
    w = draw.weights()
    proto = draw.layer(lambda g, w, x: attend(g, w, separate(g, w, x)), draw.plain, w)
    softmax = next(n for n in proto.graph.node if n.op_type == "Softmax")
    context = next(n for n in proto.graph.node if n.op_type == "MatMul" and softmax.output[0] in n.input)
    proto.graph.output.append(helper.make_tensor_value_info(context.output[0], TensorProto.FLOAT, [None, H, None, E]))
    anatomy = recognise(ir.from_proto(proto), run_once)
    assert "graph output" in " ".join(r.reason for r in anatomy.refused)
    assert all(layer.attention is None for layer in anatomy.layers)


def test_heads_that_a_norm_ties_go_all_at_once_or_not_at_all() -> None:
    w = draw.weights()
    model = ir.from_proto(draw.layer(normed_across, draw.plain, w))
    attention = recognise(model, run_once).layers[0].attention
    assert attention is not None and (attention.heads, attention.kv_heads, attention.head_size) == (1, H, E)
    x = {"x": np.random.default_rng(0).normal(size=(2, 5, D)).astype(np.float32)}
    for plan, gone in ((Plan().without_heads(0, [0]), ("wo",)), (Plan().without_attention(0), ("wo", "bo"))):
        zeroed = Weights({**w.parts, **{name: np.zeros_like(w[name]) for name in gone}})
        expected = draw.layer(normed_across, draw.plain, zeroed).SerializeToString()
        found = ir.to_proto(apply_plan(model, plan, run_once))
        assert "Softmax" not in {node.op_type for node in found.graph.node}
        assert_close(onnx_outputs(found.SerializeToString(), x)[0], onnx_outputs(expected, x)[0])
    with pytest.raises(PlanError, match="head"):
        apply_plan(model, Plan().without_heads(0, [1]), run_once)


# -- what is easily taken for a tie and is none -----------------------------------------------------------------------


def normed_within(g: Sketch, w: Weights, x: str) -> str:
    """A norm within each head of the queries and the keys (Qwen3): it goes with its head."""
    q, k, v = separate(g, w, x)
    gain = np.linspace(0.5, 1.5, E, dtype=np.float32)
    q, k = (g("LayerNormalization", part, g.weight(gain), axis=-1) for part in (q, k))
    return attend(g, w, (q, k, v))


def test_a_norm_within_each_head_leaves_the_heads_apart() -> None:
    w = draw.weights()
    model = ir.from_proto(draw.layer(normed_within, draw.plain, w))
    result = apply_plan(model, Plan().without_heads(0, [0, 2]), run_once)
    zeroed = Weights({**w.parts, "wo": np.where(np.isin(np.arange(H * E) // E, [0, 2])[:, None], 0, w["wo"])})
    expected = ir.to_proto(ir.from_proto(draw.layer(normed_within, draw.plain, zeroed))).SerializeToString()
    x = {"x": np.random.default_rng(0).normal(size=(2, 5, D)).astype(np.float32)}
    assert_close(onnx_outputs(ir.to_proto(result).SerializeToString(), x)[0], onnx_outputs(expected, x)[0])


def by_quantised(per_channel: bool) -> Callable[..., str]:
    """Weights as int8 behind a DequantizeLinear."""

    def project(g: Sketch, x: str, weight: np.ndarray, bias: np.ndarray) -> str:
        scale = np.abs(weight).max(axis=0 if per_channel else None) / 127
        whole = np.round(weight / scale).astype(np.int8)
        inputs = [g.weight(whole), g.weight(np.float32(scale)), g.weight(np.zeros(np.shape(scale), np.int8))]
        real = g("DequantizeLinear", *inputs, **({"axis": 1} if per_channel else {}))
        return str(g("Add", g("MatMul", x, real), g.weight(bias)))

    return project


def prefixed(g: Sketch, w: Weights, x: str) -> str:
    """Two learned key and value tokens before those of the input, for every row of the batch."""
    q, k, v = separate(g, w, x)
    longer = []
    for part, seed in ((k, 1), (v, 2)):
        learned = np.random.default_rng(seed).normal(size=(1, H, 2, E)).astype(np.float32)
        rest = g.weight(np.array([H, 2, E]))
        stretched = g("Expand", g.weight(learned), g.sizes(part, 0, rest))
        longer.append(g("Concat", stretched, part, axis=2))
    return attend(g, w, (q, longer[0], longer[1]))


SELF_CHECKED: dict[str, Writer] = {
    "int8 weights": lambda g, w, x: attend(g, w, separate(g, w, x, by_quantised(False))),
    "int8 weights, a scale for each channel": lambda g, w, x: attend(g, w, separate(g, w, x, by_quantised(True))),
    "learned prefixes": prefixed,
}


@pytest.mark.parametrize("heads", [[0], [1, 3], [0, 1, 2]])
@pytest.mark.parametrize("name", SELF_CHECKED)
def test_cut_equals_the_source_with_the_rows_of_the_output_projection_zeroed(name: str, heads: list[int]) -> None:
    """Zero rows of the output projection are zero contexts: an oracle for drawings without a NumPy answer."""
    w = draw.weights()
    model = ir.from_proto(draw.layer(SELF_CHECKED[name], draw.plain, w))
    result = serialized(apply_plan(model, Plan().without_heads(0, heads), run_once))
    onnx.checker.check_model(result, full_check=True)
    zeroed = w["wo"].copy().reshape(H, E, D)
    zeroed[heads] = 0
    w.parts["wo"] = zeroed.reshape(H * E, D)
    expected = draw.layer(SELF_CHECKED[name], draw.plain, w)
    for batch, tokens in ((1, 1), (3, 6)):
        feeds = {"x": np.random.default_rng(tokens).normal(size=(batch, tokens, D)).astype(np.float32)}
        found, wanted = (onnx_outputs(graph, feeds)[0] for graph in (result, expected.SerializeToString()))
        assert_close(found, wanted, name)
    assert len(result) < expected.ByteSize()


# -- hostile or old graphs -------------------------------------------------------------------------------------------


def test_a_loop_is_an_error_that_names_it() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["v"], ["u"])],
        "body",
        [
            helper.make_tensor_value_info(n, t, [] if n != "v" else None)
            for n, t in (("i", TensorProto.INT64), ("c", TensorProto.BOOL), ("v", TensorProto.FLOAT))
        ],
        [helper.make_tensor_value_info("d", TensorProto.BOOL, []), helper.make_tensor_value_info("u", 1, None)],
    )
    g = Sketch()
    proto = g.model({"x": [2, 3]}, g("Loop", g.weight(np.array(2)), "", "x", body=body), [2, 3])
    with pytest.raises(ModelError, match="Loop or Scan"):
        recognise(ir.from_proto(proto), run_once)


def test_a_graph_without_a_transformer_has_no_layers() -> None:
    g = Sketch()
    logits = g("Softmax", linear(g, "x", np.ones((4, 3), np.float32), np.ones(3, np.float32)), axis=-1)
    anatomy = recognise(ir.from_proto(g.model({"x": ["n", 4]}, logits, ["n", 3])), run_once)
    assert (anatomy.layers, anatomy.width) == ((), 0)


def test_slices_of_old_operator_sets_are_refused_not_stumbled_over() -> None:
    """Before opset 10 the bounds of a Slice are attributes."""
    g = Sketch(opset=9)
    y = linear(g, "x", np.ones((D, D), np.float32), np.ones(D, np.float32))
    y = g("Slice", y, starts=[0], ends=[4], axes=[2])
    proto = g.model({"x": ["batch", "tokens", D]}, y, ["batch", "tokens", 4])
    proto.ir_version = 4
    assert recognise(ir.from_proto(proto), run_once).layers == ()
