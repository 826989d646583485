"""The authors' search, against a literal second telling of their loop that knows masks and no plans."""

from typing import Any

import numpy as np
import pytest
from search_fake import FakeScorer, MaskModel, Masks, anatomy, mask_scorer, masks_of

from axformer_onnx.search.elements import attention_half
from axformer_onnx.search.greedy.axformer import judge_axformer, search_axformer


def authors_loop(model: MaskModel) -> tuple[Masks, list[float]]:
    """docs/method.md 1.2 as straight-line code: masks are set, looked at, and put back."""
    layers, heads, neurons = model.shape
    masks = Masks.ones(layers, heads, neurons)
    l0 = model.losses(masks)
    best = l0.mean()
    half = len(l0) / 2
    seen: list[float] = []

    def attempt(array: Any, where: Any, value: float) -> tuple[bool, float]:
        nonlocal best
        before = np.array(array[where])
        array[where] = value
        loss = model.losses(masks)
        seen.append(float(loss.mean()))
        if loss.mean() < best and (loss <= l0).sum() > half:
            best = loss.mean()
            return True, float(loss.mean())
        array[where] = before
        return False, float(loss.mean())

    for layer in range(layers):
        attempt(masks.hard, layer, 1)
    group = neurons // heads
    for layer in range(layers - 1, -1, -1):
        accepted, loss = attempt(masks.feed_forward, layer, 0)
        if not accepted and loss < 1.1 * best:
            for start in range(0, neurons, group):
                attempt(masks.neurons, (layer, slice(start, start + group)), 0)
        accepted, loss = attempt(masks.attention, layer, 0)
        if not accepted and loss < 1.1 * best:
            for head in range(heads):
                attempt(masks.heads, (layer, head), 0)
    return masks, seen


@pytest.mark.parametrize("seed", range(25))
def test_search_asks_and_accepts_what_the_authors_loop_does(seed: int) -> None:
    layers, heads, neurons = 3 + seed % 3, 4, 32
    rows = 41 + seed % 2  # odd and even: "more than half" differs
    model = MaskModel(seed, rows, layers, heads, neurons, scale=0.02 + 0.05 * (seed % 5))
    masks, seen = authors_loop(model)
    result = search_axformer(anatomy(layers, heads, 4, neurons), mask_scorer(model))
    assert [t.loss for t in result.trials] == pytest.approx(seen, abs=0)
    found = masks_of(result.plan, *model.shape)
    masks.hard *= masks.attention  # a removed block has no attention to harden
    for ours, theirs in zip(found.__dict__.values(), masks.__dict__.values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_authors_loop_cases_cover_acceptance_fine_steps_and_skipped_parts() -> None:
    counts = [
        len(
            search_axformer(anatomy(3, 4, 4, 32), mask_scorer(MaskModel(s, 41, 3, 4, 32, 0.02 + 0.05 * (s % 5)))).trials
        )
        for s in range(10)
    ]
    assert len(set(counts)) > 3 and max(counts) > 15


def test_trials_never_exceed_the_bound_and_the_bound_left_is_never_too_low() -> None:
    lefts: list[int] = []
    model = MaskModel(1, 30, 3, 4, 32, scale=1e-4)  # small effects: every block leads to its parts
    result = search_axformer(anatomy(3, 4, 4, 32), mask_scorer(model), progress=lambda trial, left: lefts.append(left))
    assert len(result.trials) <= 3 + 2 * 3 + 2 * 4 * 3
    assert (lefts == sorted(lefts, reverse=True) and lefts[-1] == 0) or lefts[-1] <= 4
    assert all(left >= len(lefts) - i - 1 for i, left in enumerate(lefts))


def test_exactly_half_the_rows_is_not_enough() -> None:
    element = attention_half(anatomy(), 0).parts[0]
    source = np.ones(4)
    half = judge_axformer(element, np.array([0.1, 0.1, 1.1, 1.1]), source, source)
    more = judge_axformer(element, np.array([0.1, 0.1, 1.0, 1.1]), source, source)
    assert not half.accepted and more.accepted


def test_equal_mean_loss_is_rejected() -> None:
    element = attention_half(anatomy(), 0).parts[0]
    assert not judge_axformer(element, np.ones(4), np.ones(4), np.ones(4)).accepted


def test_loss_that_is_not_a_number_is_rejected_and_its_parts_are_not_tried() -> None:
    scorer = FakeScorer(lambda plan: np.full(4, 1.0 if plan.is_empty else np.nan), 4)
    result = search_axformer(anatomy(), scorer)
    assert result.plan.is_empty and len(result.trials) == 3 + 6
    assert "not a finite number" in result.trials[0].reason


def test_blocks_that_cannot_be_taken_out_hand_over_to_their_parts() -> None:
    fixed = anatomy(2, fixed=frozenset({1}))
    result = search_axformer(fixed, FakeScorer(lambda plan: np.full(4, 1.0 + 9 * (not plan.is_empty)), 4))
    names = [t.element for t in result.trials]
    assert "layer 1 attention block" not in names and "layer 1 head 3" in names
    assert "layer 0 attention block" in names and "layer 0 head 3" not in names


def test_every_stage_is_the_one_before_with_one_element_more() -> None:
    model = MaskModel(3, 41, 4, 4, 32, scale=0.02)
    result = search_axformer(anatomy(4), mask_scorer(model))
    accepted = [t for t in result.trials if t.accepted]
    assert result.stages == (result.stages[0], *(t.plan for t in accepted))
    assert result.chosen == len(accepted) and result.plan == result.stages[-1]
