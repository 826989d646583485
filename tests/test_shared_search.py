"""The search where layers share weights: one element for a head of all of them, one for each layer's block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_fake import FakeScorer, MaskModel, mask_scorer, masks_of
from shared_fake import TOGETHER, tied

from axformer_onnx.errors import UsageError
from axformer_onnx.result.report.layers import layer_records
from axformer_onnx.search.control import random_plan
from axformer_onnx.search.elements import attention_half, feed_forward_half
from axformer_onnx.search.greedy.axformer import search_axformer
from axformer_onnx.search.greedy.robust import search_robust
from axformer_onnx.search.journal import open_journal
from axformer_passes.anatomy import Anatomy
from axformer_passes.blocks.parameters import removed_parameters
from axformer_passes.blocks.shared import expanded
from axformer_passes.plan import Plan


def test_a_group_has_one_element_for_a_head_and_each_layer_one_for_its_block() -> None:
    model = tied([[0, 1, 2, 3]])
    first, *others = (attention_half(model, i, "together") for i in range(4))
    assert [part.name for part in first.parts] == [f"layers 0-3 head {i}" for i in range(4)]
    assert [half.block.name for half in (first, *others) if half.block] == [
        f"layer {i} attention block" for i in range(4)
    ]
    assert not any(half.parts for half in others)
    part, block = first.parts[2], first.block
    assert block is not None and (block.parameters, block.reads) == (0, 4 * 17 * 16)
    assert (part.parameters, part.reads) == (3 * 17 * 4 + 4 * 16, 4 * (3 * 17 * 4 + 4 * 16))
    assert expanded(part.applied_to(TOGETHER), model).heads == {i: {2} for i in range(4)}
    neurons = feed_forward_half(model, 0, "together").parts[0]
    assert neurons.name == "layers 0-3 neurons 0-7" and neurons.parameters == 8 * (17 + 16)
    assert attention_half(model, 2).parts[1].name == "layer 2 head 1"
    assert attention_half(model, 2).parts[1].parameters < 0


def scorer(model: MaskModel, shape: Anatomy, metric: Any = None) -> FakeScorer:
    return FakeScorer(lambda plan: model.losses(masks_of(expanded(plan, shape), *model.shape)), len(model.base), metric)


@pytest.mark.parametrize("seed", range(6))
def test_search_over_groups_asks_each_element_once_and_its_plan_cuts_all_layers_alike(seed: int) -> None:
    shape, model = tied([[0, 2], [1, 3]]), MaskModel(seed, 90, 4, 4, 32)
    search, select = (scorer(model, shape, lambda plan: 80.0) for _ in range(2))
    result = search_robust(shape, search, select, start=TOGETHER)
    asked = [trial.element for trial in result.trials]
    assert len(asked) == len(set(asked))
    assert {f"layer {i} attention block" for i in range(4)} <= set(asked)
    plan = expanded(result.stages[-1], shape)
    for a, b in ((0, 2), (1, 3)):
        tried = [name for name in asked if name.startswith(f"layers {a}, {b} head")]
        assert len(tried) == (0 if {a, b} <= plan.attention_blocks else 4)
        if not {a, b} & plan.attention_blocks:
            assert plan.heads.get(a) == plan.heads.get(b)
    assert not any(name.startswith("layer ") and "head" in name for name in asked)
    assert result.plan.shared_weights == "together"


def test_heads_of_a_group_are_tried_though_its_first_layer_lost_the_block() -> None:
    shape = tied([[0, 1, 2, 3]])

    def losses(plan: Plan) -> Any:  # only layer 0's attention and head 2 are useless
        bad = (
            plan.attention_blocks - {0} or set(plan.heads.get(0, ())) - {2} or plan.neurons or plan.feed_forward_blocks
        )
        return np.full(50, 1.0 + bool(bad))

    result = search_robust(shape, FakeScorer(losses, 50), FakeScorer(losses, 50, lambda plan: 1.0), start=TOGETHER)
    assert (result.plan.attention_blocks, result.plan.heads) == ({0}, {0: {2}})
    assert expanded(result.plan, shape).heads == {1: {2}, 2: {2}, 3: {2}}


def test_parts_are_not_tried_where_every_layer_of_the_group_lost_its_block() -> None:
    shape = tied([[0, 1, 2, 3]])

    def losses(plan: Plan) -> Any:
        return np.ones(50) - 0.01 * (len(plan.attention_blocks) + len(plan.feed_forward_blocks))

    useless = FakeScorer(losses, 50)
    for result in (
        search_robust(shape, useless, FakeScorer(useless.losses, 50, lambda plan: 1.0), start=TOGETHER),
        search_axformer(shape, useless, start=TOGETHER),
    ):
        assert len(result.plan.attention_blocks) == len(result.plan.feed_forward_blocks) == 4
        assert not any("head" in trial.element for trial in result.trials)


@pytest.mark.parametrize("killed_after", [1, 5, 12])
def test_a_killed_search_over_groups_resumes_to_the_same_plan(tmp_path: Path, killed_after: int) -> None:
    shape, model = tied([[0, 2], [1, 3]]), MaskModel(7, 90, 4, 4, 32)

    def run(name: str, search: FakeScorer) -> Any:
        with open_journal(tmp_path / name, {"seed": 0}) as journal:
            select = scorer(model, shape, lambda plan: 80.0)
            return search_robust(shape, search, select, start=TOGETHER, memory=journal)

    whole = run("whole", scorer(model, shape))
    first = scorer(model, shape)
    first.interrupt_at = killed_after
    assert run("broken", first).interrupted
    resumed = run("broken", scorer(model, shape))
    assert (resumed.plan, resumed.stages) == (whole.plan, whole.stages)
    with pytest.raises(UsageError, match="another version"), open_journal(tmp_path / "whole", {"seed": 0}) as journal:
        search_robust(shape, mask_scorer(model), scorer(model, shape), memory=journal)


@pytest.mark.parametrize("seed", range(6))
def test_the_random_control_of_a_together_plan_takes_as_many_parts_together(seed: int) -> None:
    shape = tied([[0, 1, 2, 3]])
    like = TOGETHER.without_heads(0, [1, 2]).without_neurons(0, range(16)).without_attention(3).without_feed_forward(0)
    plan = random_plan(shape, like, seed)
    assert plan.shared_weights == "together"
    assert removed_parameters(shape, plan) == removed_parameters(shape, like)
    assert len(plan.attention_blocks) == len(plan.feed_forward_blocks) == 1


def test_the_report_shows_what_every_layer_loses() -> None:
    records = layer_records(tied([[0, 1, 2, 3]]), TOGETHER.without_heads(0, [1]).without_attention(2))
    assert [(r.heads_removed, r.attention) for r in records] == [
        ([1], "kept"),
        ([1], "kept"),
        ([], "removed"),
        ([1], "kept"),
    ]
