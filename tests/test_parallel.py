"""Attention and feed-forward in parallel (GPT-NeoX): both read one stream, are added to one another, and then to the stream.

The oracle is torch with the same activations zeroed.
"""

from __future__ import annotations

import onnx_ir as ir
import pytest
import small_graphs as draw
import transformers as t
import zoo
from surgery import assert_three_ways_agree, sessions
from zoo import ZooModel, onnx_outputs
from zoo_families import LABELS, POSITIONS, VOCAB, Family, Sizes, layered, text_feeds

from axformer_onnx.compensate.moments import Sample
from axformer_onnx.compensate.refit_outputs import refit_weights
from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan, narrowed
from axformer_passes.io.files import load_model, serialized
from axformer_passes.plan import Hard, Plan
from axformer_passes.recognise.examination import Examined, examine
from axformer_passes.stages.stages import FORMS, Staged

PLANS = {
    "nothing": Plan(),
    "heads": Plan().without_heads(0, [1]).without_heads(1, [0, 3]),
    "neurons": Plan().without_neurons(0, [2, 5]).without_neurons(1, range(20)),
    "attention": Plan().without_attention(1),
    "feed-forward": Plan().without_feed_forward(0),
    "a whole layer": Plan().without_attention(0).without_feed_forward(0),
    "everything": Plan().without_attention(0).without_feed_forward(0).without_attention(1).without_feed_forward(1),
    "hard attention": Plan(hard_attention={0: Hard(2, "truncated")}).without_neurons(0, [1]),
}


def neox(monkeypatch: pytest.MonkeyPatch, parallel: bool, static: bool) -> ZooModel:
    """A GPT-NeoX of two layers as dynamo writes it, with eager attention."""

    def config(sizes: Sizes) -> t.GPTNeoXConfig:
        return t.GPTNeoXConfig(
            num_labels=LABELS, pad_token_id=0, vocab_size=VOCAB, use_cache=False, hidden_size=sizes.width,
            num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, intermediate_size=sizes.neurons,
            max_position_embeddings=POSITIONS, rotary_pct=0.5, use_parallel_residual=parallel, bos_token_id=1, eos_token_id=1,
        )  # fmt: skip

    name = f"gpt-neox-{'parallel' if parallel else 'serial'}-{'static' if static else 'dynamic'}"
    family = Family(
        name, t.GPTNeoXForSequenceClassification, config,
        layered("gpt_neox.layers", "attention", "attention.dense", "mlp.dense_4h_to_h"), text_feeds(),
        axes={"input_ids": {}, "attention_mask": {}} if static else {}, sizes={"layers": 2},
    )  # fmt: skip
    monkeypatch.setitem(zoo.FAMILY, name, family)
    return zoo.build(name, "dynamo-eager-18")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("static", [True, False], ids=["static", "dynamic"])
@pytest.mark.parametrize("parallel", [True, False], ids=["parallel", "serial"])
def test_a_gpt_neox_under_a_plan_equals_torch_through_stages_and_after_the_cut(
    monkeypatch: pytest.MonkeyPatch, parallel: bool, static: bool, plan: Plan
) -> None:
    shapes = ((2, 7),) if static else ((1, 1), (3, 9))
    assert_three_ways_agree(neox(monkeypatch, parallel, static), plan, shapes)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("static", [True, False], ids=["static", "dynamic"])
def test_parallel_blocks_share_the_stage_that_begins_at_their_stream(
    monkeypatch: pytest.MonkeyPatch, static: bool
) -> None:
    model = neox(monkeypatch, True, static)
    stages = sessions(model.path).stages
    both = ["attention", "feed_forward"]
    assert [[(b.layer, b.kind) for b in stage.blocks] for stage in stages] == [
        [], [(0, kind) for kind in both], [(1, kind) for kind in both]
    ]  # fmt: skip
    assert len(stages[1].outputs) == 1, "behind a layer the stream is one value"


def test_blocks_whose_sum_is_read_twice_cannot_be_taken_out_and_no_stage_is_empty() -> None:
    """attended + fed is added to x, and read by a Relu: without both it would not be the stream that is left."""
    w, g = draw.weights(), draw.Sketch()
    total = g("Add", draw.attend(g, w, draw.separate(g, w, "x")), draw.plain(g, w, "x"))
    out = g("Add", g("Add", "x", total), g("Relu", total))
    proto = g.model({"x": ["b", "s", draw.D]}, draw.norm(g, out), ["b", "s", draw.D])
    staged = Staged(_examined(ir.from_proto(proto)))
    blocks = [block for layer in staged.examined.anatomy.layers for block in layer.blocks]
    assert [block.sum for block in blocks] == [None, None]
    assert all("is read by more than one Add" in str(block.why) for block in blocks)
    for stage in staged.stages:
        assert staged.detached(stage, "plain").proto.graph.node, f"stage {stage.index} is empty"


def test_forms_are_built_where_parallel_blocks_have_one_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    staged = Staged(_examined(load_model(neox(monkeypatch, True, False).path)))
    for stage in staged.stages:
        for form in FORMS:
            assert staged.detached(stage, form).proto.graph.node


def test_refits_of_parallel_blocks_bring_answers_nearer_to_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a narrow read-out the last attention stands a stage before its feed-forward block, which is its residual."""
    model = neox(monkeypatch, True, False)
    source = narrowed(load_model(model.path), run_once)[0]
    rows = [model.feeds(4, 9, seed=seed) for seed in range(6)]
    samples = [Sample(feeds, feeds["attention_mask"].astype(bool)) for feeds in rows]
    plan = Plan().without_neurons(0, range(24)).without_heads(1, [2])
    refitted = refit_weights(source, plan, {}, samples, threads=1)
    assert {name.removesuffix(".weight") for name in refitted if name.count(".") == 3} >= {
        f"layers.{layer}.{kind}" for layer in range(2) for kind in ("attention", "feed_forward")
    }
    far = {}
    for name, weights in (("cut", None), ("refitted", refitted)):
        graph = serialized(apply_plan(source, plan, run_once, weights=weights))
        far[name] = sum(float(((onnx_outputs(graph, one)[0] - model.logits(one)) ** 2).sum()) for one in rows)
    assert far["refitted"] < 0.8 * far["cut"], far


def _examined(model: ir.Model) -> Examined:
    return examine(model, run_once)
