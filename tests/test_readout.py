"""The narrowed read-out on real exports: the outputs of the source, with less to compute; where it is not legal, the reason.

The oracle is the source file in ONNX Runtime, its own optimisations off. Hand-drawn graphs: test_readout_rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from surgery import assert_close, clear_sample
from zoo import CASES, FURTHER_CASES, UNEXPORTABLE, Feeds, ZooModel, build, onnx_outputs

from axformer_onnx.runtime.sessions import make_session, run_once, run_session
from axformer_passes.apply import apply_plan
from axformer_passes.blocks.cost import macs
from axformer_passes.graph.cleanup import Cleanup
from axformer_passes.io.files import load_model, serialized
from axformer_passes.plan import Plan
from axformer_passes.prepare.fused.lifting import lift
from axformer_passes.readout.narrowing import NarrowedReadout, narrow_readout
from axformer_passes.recognise.examination import examine

POOLED = (
    "bert", "distilbert", "roberta", "electra", "minilm", "vit", "deit", "albert", "deberta-v2", "mobilebert", "modernbert",
    "mpnet", "xlnet", "gpt2", "llama", "clip-text", "clip-vision",
)  # fmt: skip
WHOLE = (
    "gpt2-tokens", "t5-encoder", "t5", "bart", "wav2vec2", "wav2vec2-stable", "whisper",
    "bart-classifier", "mbart-classifier", "t5-classifier", "umt5-classifier", "olmo2", "swinv2",
)  # fmt: skip
EXPORTERS = ("torchscript-eager-17", "dynamo-20", "optimum")
EXPORTED = frozenset((*CASES, *FURTHER_CASES))
LENGTHS = 12


def cases(families: tuple[str, ...], *exporters: str) -> list[tuple[str, str]]:
    """What of these can be exported."""
    return [(f, e) for f in families for e in exporters if (f, e.split("+")[0]) in EXPORTED]


def prepared(model: ir.Model) -> ir.Model:
    """The form in which a plan finds a graph."""
    return examine(model, run_once).labelling.model


def narrowed(source: ir.Model) -> tuple[ir.Model, NarrowedReadout]:
    """A clone of `source` with a narrow read-out, after the full checker with strict shape inference."""
    model = prepared(source)
    found = narrow_readout(model, run_once)
    assert found.why == ""
    Cleanup()(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    return model, found


def runner(model: ir.Model) -> Callable[[Feeds], dict[str, Any]]:
    """One session for many feeds, optimisations off."""
    session = make_session(serialized(model), threads=1, optimize=False)
    return lambda feeds: run_session(session, feeds)


def padded(model: ZooModel, batch: int, length: int, left: bool) -> Feeds:
    """Feeds with real padding behind the text, or before it."""
    feeds = model.feeds(batch, length, seed=100 * batch + length)
    return {name: array[:, ::-1].copy() if left and array.ndim == 2 else array for name, array in feeds.items()}


def assert_same(zoo: ZooModel, source: ir.Model, other: ir.Model, lengths: range = range(1, LENGTHS + 1)) -> None:
    """Equal outputs at every length, one to three rows, padded on either side."""
    before, after = runner(source), runner(other)
    for length in lengths:
        for left in (False, True):
            batch = 1 + (length + left) % 3
            feeds = padded(zoo, batch, length, left)
            expected = before(feeds)
            for name, found in after(feeds).items():
                assert_close(found, expected[name], f"{name}, {batch} x {length}, padding left: {left}")


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), cases(POOLED, *EXPORTERS))
def test_narrowed_outputs_equal_the_source(family: str, exporter: str) -> None:
    zoo = build(family, exporter)
    source = load_model(zoo.path)
    assert_same(zoo, source, narrowed(source)[0])


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "exporter"),
    [c for c in sorted(EXPORTED) if c[0] not in WHOLE and not (c[0] in POOLED and c[1] in EXPORTERS)],
)
def test_narrowed_outputs_equal_the_source_for_every_other_export(family: str, exporter: str) -> None:
    zoo = build(family, exporter)
    source = zoo.opened()
    assert_same(zoo, source, narrowed(source)[0], range(1, LENGTHS + 1, 5))


@pytest.mark.parametrize("how", ["torchscript-eager-11", "dynamo-20+ortfusions", "torchscript-eager-17+qdq"])
def test_narrowed_outputs_equal_the_source_in_older_fused_and_quantised_files(how: str) -> None:
    zoo = build("bert", how)
    source = load_model(zoo.path)
    assert_same(zoo, source, narrowed(source)[0], range(1, LENGTHS + 1, 4))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("family", [f for f in ("bert", "gpt2", "llama") if (f, "dynamo-23") not in UNEXPORTABLE])
def test_fused_operators_that_still_fit_are_put_back(family: str) -> None:
    zoo = build(family, "dynamo-23")
    source = load_model(zoo.path)
    model, _ = narrowed(source)
    lift(model)
    Cleanup()(model)
    assert any(node.op_type == "Attention" for node in model.graph)
    assert_same(zoo, source, model, range(1, LENGTHS + 1, 3))


# -- what is saved ----------------------------------------------------------------------------------------------------


def last_layer(zoo: ZooModel, length: int) -> int:
    """Multiply-accumulates of the last layer for one token: query, scores, context, output, up, down."""
    return 2 * zoo.width**2 + 2 * length * zoo.width + 2 * zoo.width * zoo.neurons


@pytest.mark.matrix
@pytest.mark.parametrize("exporter", ["torchscript-eager-17", "dynamo-20"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "minilm", "mpnet", "albert", "clip-text", "gpt2"])
def test_all_tokens_but_one_are_saved_in_the_last_layer(family: str, exporter: str) -> None:
    zoo, length = build(family, exporter), 32
    source = load_model(zoo.path)
    model, _ = narrowed(source)
    saved = macs(source, run_once, 1, length) - macs(model, run_once, 1, length)
    classified = zoo.width * 3 if family == "gpt2" else 0  # GPT-2 classifies every token, and then picks one
    assert saved == (length - 1) * (last_layer(zoo, length) + classified)


PACKED = (*cases(("gpt2", "modernbert"), *EXPORTERS), ("bert", "torchscript-eager-17+ort"))
"""Query, key and value come out of one product."""


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), PACKED)
def test_the_query_of_a_packed_projection_is_taken_apart(family: str, exporter: str) -> None:
    zoo = build(family, exporter)
    source = load_model(zoo.path)
    model, _ = narrowed(source)
    width = zoo.width

    def columns(one: ir.Model) -> list[int]:
        shapes = [v.const_value.shape for v in one.graph.initializers.values() if v.const_value is not None]
        return [max(int(n) for n in s) for s in shapes if len(s) == 2]

    assert columns(model).count(3 * width) == columns(prepared(source)).count(3 * width) - 1
    assert_same(zoo, source, model, range(1, LENGTHS + 1, 3))


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), PACKED)
def test_heads_keep_their_numbers_where_a_projection_was_taken_apart(family: str, exporter: str) -> None:
    zoo = build(family, exporter)
    model, last = narrowed(load_model(zoo.path))[0], zoo.layers - 1
    for head in range(zoo.heads):
        plan = Plan().without_heads(last, [head]).without_heads(0, [head])
        feeds, expected = clear_sample(zoo, plan, 2, 7)
        assert_close(onnx_outputs(serialized(apply_plan(model, plan, run_once)), feeds)[0], expected, f"{head}")


def test_images_are_narrowed_to_the_class_token() -> None:
    zoo = build("vit", "dynamo-20")
    source, tokens = load_model(zoo.path), 17
    model, found = narrowed(source)
    assert found.tokens == (0,)
    saved = macs(source, run_once) - macs(model, run_once)
    assert saved == (tokens - 1) * last_layer(zoo, tokens)


def test_the_record_says_what_moved_where() -> None:
    zoo = build("bert", "torchscript-eager-17")
    source = load_model(zoo.path)
    before = {v.name for node in source.graph for v in node.outputs}
    _, found = narrowed(source)
    assert found.tokens == (0,)
    assert found.places == ("/bert/encoder/layer.1/output/LayerNorm/LayerNormalization_output_0",)
    assert set(found.nodes) <= before
    assert {"query", "dense"} <= {part for name in found.nodes for part in name.split("/")}
    assert not any("/key/" in name or "/value/" in name or "/layer.1/" in name for name in found.nodes)


def test_a_pruned_and_hardened_graph_is_narrowed_too() -> None:
    for exporter in ("torchscript-eager-17", "dynamo-20"):
        zoo = build("bert", exporter)
        plan = Plan().without_heads(2, [1]).without_neurons(2, range(20)).without_attention(1)
        plan = plan.with_hard_attention(2, 3, "truncated").with_hard_attention(0, 2, "renormalised")
        pruned = apply_plan(load_model(zoo.path), plan, run_once)
        assert_same(zoo, pruned, narrowed(pruned)[0], range(1, LENGTHS + 1, 3))


def test_a_layer_without_attention_is_narrowed_with_the_one_before_it() -> None:
    zoo = build("bert", "torchscript-eager-17")
    pruned = apply_plan(load_model(zoo.path), Plan().without_attention(2), run_once)
    model, found = narrowed(pruned)
    assert any("/layer.1/" in name for name in found.nodes)
    assert_same(zoo, pruned, model, range(1, LENGTHS + 1, 5))


def test_the_order_and_the_names_of_outputs_stay_and_equal_inputs_give_equal_bytes() -> None:
    path = build("gpt2", "torchscript-eager-17").path
    source = load_model(path)
    first, second = (serialized(narrowed(load_model(path))[0]) for _ in range(2))
    assert first == second
    model = onnx.load_from_string(first)
    assert [v.name for v in model.graph.output] == [v.name for v in source.graph.outputs]
    assert [v.name for v in model.graph.input] == [v.name for v in source.graph.inputs]


# -- where it is not legal --------------------------------------------------------------------------------------------

REASONS = {
    "gpt2-tokens": "nothing picks single tokens for 'logits': every token is read",
    "t5-encoder": "nothing picks single tokens for 'last_hidden_state': every token is read",
    "bart": "nothing picks single tokens for 'logits': every token is read",
    "wav2vec2-stable": "ReduceMean 'mean' reads all tokens",
    "whisper": "ReduceMean 'mean' reads all tokens",
}


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), cases(tuple(REASONS), "dynamo-20"))
def test_outputs_of_all_tokens_are_left_alone_with_the_reason(family: str, exporter: str) -> None:
    model = prepared(load_model(build(family, exporter).path))
    before = serialized(model)
    found = narrow_readout(model, run_once)
    assert found.why.startswith(REASONS[family])
    assert (found.nodes, found.tokens, found.places) == ((), (), ())
    assert serialized(model) == before


def test_another_output_that_reads_all_tokens_is_the_reason() -> None:
    model = prepared(load_model(build("bert", "torchscript-eager-17").path))
    hidden = next(v for node in model.graph for v in node.outputs if "/layer.2/output/LayerNorm" in str(v.name))
    hidden.type = ir.TensorType(ir.DataType.FLOAT)
    model.graph.outputs.append(hidden)
    before = serialized(model)
    why = narrow_readout(model, run_once).why
    assert why.startswith("nothing would be saved: LayerNormalization ")
    assert f"{hidden.name!r} is an output with all its tokens" in why
    assert serialized(model) == before


def test_hidden_states_of_a_lower_layer_are_no_obstacle() -> None:
    zoo = build("bert", "torchscript-eager-17")
    source = load_model(zoo.path)
    hidden = next(v for node in source.graph for v in node.outputs if "/layer.1/output/LayerNorm" in str(v.name))
    hidden.shape, hidden.type = ir.Shape(["batch", "tokens", zoo.width]), ir.TensorType(ir.DataType.FLOAT)
    source.graph.outputs.append(hidden)
    assert_same(zoo, source, narrowed(source)[0], range(1, LENGTHS + 1, 5))


def test_narrowing_twice_changes_nothing() -> None:
    model = prepared(load_model(build("bert", "dynamo-20").path))
    assert narrow_readout(model, run_once).why == ""
    before = serialized(model)
    assert narrow_readout(model, run_once).why
    assert serialized(model) == before


def test_the_input_of_dynamic_integers_is_quantised_whole() -> None:
    """The range of a DynamicQuantizeLinear is of all tokens: what is computed of it may be picked, not what it reads."""
    zoo = build("bert", "torchscript-eager-17+int8")
    source = load_model(zoo.path)
    model, _ = narrowed(source)
    before, after = runner(source), runner(model)
    for batch, length in ((1, 1), (2, 7), (3, 12)):
        feeds = padded(zoo, batch, length, left=False)
        np.testing.assert_array_equal(after(feeds)["logits"], before(feeds)["logits"])
