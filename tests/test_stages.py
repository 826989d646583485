"""Scoring through stages: the same losses as by surgery and a full run, at the cost of what a plan changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch_oracle import random_plan
from zoo import LABELS, VOCAB, ZooModel, build

from axformer_onnx.data.encoding import Encoded
from axformer_onnx.data.rows import Rows
from axformer_onnx.data.tokenizer_files import Padding
from axformer_onnx.runtime.sessions import make_session, run_once
from axformer_onnx.scoring.outputs import evaluate, score_session
from axformer_onnx.scoring.stage_scorer import StageScorer
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_onnx.tasks.definitions import Task
from axformer_onnx.tasks.labels import LabelMap
from axformer_passes.apply import apply_plan, narrowed
from axformer_passes.io.files import load_model, serialized
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import examine, recognise
from axformer_passes.stages.stages import FORMS, Staged

ROWS = 37
TASK = Task("custom", ("text",), "label", (), "accuracy", ("accuracy", "mcc"))
MAP = LabelMap((2, 0, 1), ("a", "b", "c"), "")


def data(seed: int = 0) -> tuple[Encoded, Rows]:
    """Rows of 1 to 14 tokens with random labels."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 15, ROWS))])
    ids = rng.integers(5, VOCAB, offsets[-1])
    encoded = Encoded(ids, np.zeros_like(ids), offsets, 0, 64, Padding(0, 0, "right"))
    return encoded, Rows(tuple(("",) for _ in range(ROWS)), rng.integers(0, LABELS, ROWS), "here", "0")


def scorer(model: ZooModel, **options: Any) -> StageScorer:
    source = load_model(model.path)
    encoded, rows = data()
    return StageScorer(source, recognise(source, run_once), encoded, rows, TASK, MAP, batch_size=8, **options)


@pytest.mark.parametrize(("family", "exporter"), [("bert", "torchscript-sdpa-17"), ("bert", "dynamo-23")])
def test_losses_equal_those_of_the_graph_with_the_parts_removed(family: str, exporter: str) -> None:
    model = build(family, exporter)
    found = scorer(model, threads=1)
    encoded, rows = data()
    for seed in range(4):
        plan = random_plan(model, np.random.default_rng(seed)) if seed else Plan()
        graph = serialized(apply_plan(load_model(model.path), plan, run_once))
        expected = score_session(make_session(graph), encoded, rows, TASK, MAP)
        np.testing.assert_allclose(found.losses(plan), expected.loss_per_row, rtol=1e-4, atol=1e-5)
        assert found.metric(plan) == pytest.approx(expected.value)
    assert found.rows == ROWS


def test_losses_equal_torch_row_by_row() -> None:
    """One row at a time, no padding, no batches, no stages."""
    model = build("bert", "dynamo-20")
    encoded, rows = data()
    outputs = []
    for row in range(ROWS):
        ids = encoded.ids[None, encoded.offsets[row] : encoded.offsets[row + 1]]
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        outputs.append(model.logits(feeds)[0])
    expected = evaluate(np.array(outputs), rows.labels, TASK, MAP)
    np.testing.assert_allclose(scorer(model, threads=1).losses(Plan()), expected.loss_per_row, rtol=1e-4, atol=1e-5)


def test_order_of_questions_and_cache_size_leave_no_trace() -> None:
    model = build("bert", "torchscript-sdpa-17")
    plans = [random_plan(model, np.random.default_rng(seed)) for seed in range(6)]
    plans += [Plan().without_heads(layer, [1]) for layer in range(3)]
    large, small, none = (scorer(model, threads=1, cache_bytes=size) for size in (2**30, 40_000, 0))
    expected = [large.losses(plan) for plan in plans]
    for plan, losses in sorted(zip(plans, expected, strict=True), key=lambda pair: pair[0].dumps()):
        for found in (large, small, none):
            np.testing.assert_array_equal(found.losses(plan), losses)


def test_several_workers_give_the_bits_of_one() -> None:
    model = build("bert", "torchscript-sdpa-17")
    one, three = scorer(model, threads=1), scorer(model, threads=3)
    for seed in range(3):
        plan = random_plan(model, np.random.default_rng(seed))
        np.testing.assert_array_equal(one.losses(plan), three.losses(plan))


def test_only_stages_from_the_first_change_on_are_run() -> None:
    model = build("bert", "torchscript-sdpa-17")
    found = scorer(model, threads=1)
    stages = found.sessions.stages
    found.losses(Plan())
    assert found.stages_run == len(stages) * ROWS
    at = {(b.layer, b.kind): stage.index for stage in stages for b in stage.blocks}
    for plan, first in (
        (Plan().without_feed_forward(2), at[2, "feed_forward"]),
        (Plan().without_feed_forward(2).without_heads(2, [0]), at[2, "attention"]),
        (Plan().without_heads(2, [0]), at[2, "feed_forward"]),  # the prefix is the last plan's
        (Plan().without_neurons(0, [3]), at[0, "feed_forward"]),
    ):
        before = found.stages_run
        found.losses(plan)
        assert found.stages_run - before == (len(stages) - first) * ROWS


def test_the_last_plan_is_remembered_for_nothing() -> None:
    found = scorer(build("bert", "torchscript-sdpa-17"), threads=1)
    found.losses(Plan().without_heads(0, [1]))
    before = found.stages_run
    found.metric(Plan().without_heads(0, [1]))
    assert found.stages_run == before


def test_sessions_can_be_shared_between_sets_of_rows() -> None:
    model = build("bert", "torchscript-sdpa-17")
    source = load_model(model.path)
    shared = StageSessions(source, threads=1)
    anatomy = recognise(source, run_once)
    encoded, rows = data(1)
    plan = Plan().without_heads(0, [2])
    fresh = StageScorer(source, anatomy, encoded, rows, TASK, MAP, threads=1).losses(plan)
    StageScorer(shared, anatomy, *data(0), TASK, MAP).losses(plan)
    np.testing.assert_array_equal(StageScorer(shared, anatomy, encoded, rows, TASK, MAP).losses(plan), fresh)


def test_shapes_that_a_stage_is_handed_state_how_many_axes_they_are_of() -> None:
    source, handed = load_model(build("bert", "torchscript-eager-17").path), list[str]()
    staged = Staged(examine(narrowed(source, run_once)[0], run_once))
    for stage in staged.stages:
        for form in FORMS:
            graph = staged.detached(stage, form).proto.graph
            lengths = {value.name: value.type.tensor_type.shape.dim for value in graph.input}
            for node in graph.node:
                if node.op_type == "Reshape" and node.input[1] in lengths:
                    handed.append(node.name)
                    assert [dim.dim_value for dim in lengths[node.input[1]]] in ([3], [4])
    assert handed
