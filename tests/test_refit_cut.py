"""The pruned model of a refit: cut where it can be, the rest of the plan through gates, the outputs those of torch."""

from __future__ import annotations

import itertools
import logging

import pytest
from inner_oracle import PLACES, drawn_inner
from surgery import assert_close, gated_outputs
from weights_oracle import drawn, weighted_outputs
from zoo import FAMILY, ZooModel, build

from axformer_onnx.compensate import refit_cut
from axformer_onnx.compensate.refit_cut import divided, pruned_sessions
from axformer_onnx.errors import RecogniseError
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_passes.io.files import load_model
from axformer_passes.plan import Plan

FAMILIES = ("bert", "gpt2", "llama", "gemma2", "albert", "distilbert", "t5-encoder", "modernbert", "vit", "deberta-v2")
EXPORTERS = ("torchscript-eager-17", "dynamo-20")
CASES = [*itertools.product(FAMILIES, EXPORTERS), ("bert", "torchscript-eager-17+ort")]


def plan_of(model: ZooModel) -> Plan:
    """Some heads and neurons, all heads of one block, a whole block, hard attention."""
    plan = Plan().without_heads(0, [1]).without_neurons(0, range(0, model.neurons, 3)).with_hard_attention(0, 3)
    last = len(model.records) - 1
    return plan.without_heads(last, range(model.heads)).without_neurons(1, range(5)).without_feed_forward(last)


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), CASES)
def test_it_is_small_and_computes_what_torch_does_with_these_weights(family: str, exporter: str) -> None:
    if FAMILY[family].reason(exporter):
        pytest.skip(str(FAMILY[family].reason(exporter)))
    model = build(family, exporter)
    plan, source = plan_of(model), StageSessions(load_model(model.path), threads=1)
    inner = drawn_inner(model, plan, 1) if family in PLACES and "+" not in exporter else {}
    weights = {**drawn(model, plan, 1), **inner}
    sessions, rest = pruned_sessions(source, plan, weights, 1)
    last = len(model.records) - 1
    assert set(rest.heads) == {last} and not rest.neurons and rest.hard_attention == plan.hard_attention
    assert rest.feed_forward_blocks == plan.feed_forward_blocks
    layers = sessions.staged.examined.anatomy.layers
    assert layers[0].attention.heads == model.heads - 1  # type: ignore[union-attr]
    assert layers[1].feed_forward.neurons == model.neurons - 5  # type: ignore[union-attr]
    for batch, length in ((1, 1), (2, 7)):
        feeds = model.feeds(batch, length)
        expected = weighted_outputs(model, feeds, plan, weights)
        assert_close(gated_outputs(sessions, rest, feeds)[0], expected, f"{batch} x {length}")


def test_what_cannot_be_cut_is_left_to_gates(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    model = build("bert", "torchscript-eager-17")
    plan, source = plan_of(model), StageSessions(load_model(model.path), threads=1)

    def refused(*_: object, **__: object) -> None:
        raise RecogniseError("node 7: no")

    monkeypatch.setattr(refit_cut, "apply_plan", refused)
    weights = drawn(model, plan, 2)
    with caplog.at_level(logging.INFO):
        sessions, rest = pruned_sessions(source, plan, weights, 1)
    assert rest == plan and "node 7: no" in caplog.text
    feeds = model.feeds(2, 7)
    assert_close(gated_outputs(sessions, rest, feeds)[0], weighted_outputs(model, feeds, plan, weights))


def test_a_plan_is_divided_without_remainder() -> None:
    examined = StageSessions(load_model(build("bert", "torchscript-eager-17").path), threads=1).staged.examined
    plan = plan_of(build("bert", "torchscript-eager-17"))
    inside, rest = divided(plan, examined)
    assert {**inside.heads, **rest.heads} == plan.heads and {**inside.neurons, **rest.neurons} == plan.neurons
    assert divided(Plan().without_attention(0), examined) == (Plan(), Plan().without_attention(0))
