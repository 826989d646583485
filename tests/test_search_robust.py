"""The default search: its verdict, its drift guard, its choice of stage."""

import numpy as np
import pytest
from scipy import stats
from search_fake import FakeScorer, MaskModel, anatomy, mask_scorer

from axformer_onnx.records import FloatArray
from axformer_onnx.search.elements import attention_half, hard_attention
from axformer_onnx.search.greedy.robust import (
    STAGES_SCORED,
    choose_stage,
    fold_rows,
    robust_judge,
    search_robust,
    standard_error,
)
from axformer_passes.plan import Plan

HEAD = attention_half(anatomy(), 0).parts[0]
HARD = hard_attention(anatomy(), 0, 30)
assert HARD is not None


def noise(rows: int, seed: int = 0) -> FloatArray:
    """Standard normal values with mean exactly 0 and standard error exactly 1."""
    values = np.random.default_rng(seed).normal(size=rows)
    values -= values.mean()
    return values / values.std(ddof=1) * np.sqrt(rows)


def test_standard_error_is_scipys() -> None:
    values = np.random.default_rng(0).normal(size=77)
    assert standard_error(values) == pytest.approx(stats.sem(values), rel=1e-12)
    assert standard_error(values[:1]) == 0.0


def test_folds_are_disjoint_even_and_the_same_for_a_seed() -> None:
    folds = fold_rows(23, seed=5)
    assert sorted(np.concatenate(folds)) == list(range(23))
    assert {len(f) for f in folds} == {4, 5}
    assert all(np.array_equal(a, b) for a, b in zip(folds, fold_rows(23, seed=5), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(folds, fold_rows(23, seed=6), strict=True))
    assert len(fold_rows(3, seed=0)) == 3


@pytest.mark.parametrize(("rise", "accepted"), [(-3.0, True), (0.0, True), (0.9, True), (1.1, False), (5.0, False)])
def test_removal_may_rise_by_one_standard_error_and_no_more(rise: float, accepted: bool) -> None:
    current = np.full(1000, 2.0)
    folds = [np.arange(1000)]  # one fold: mean and median are the same
    step = (noise(1000) + rise) * 1e-3
    verdict = robust_judge(folds)(HEAD, current + step, current, current + 1)
    assert verdict.accepted is accepted
    assert verdict.details["mean"] == pytest.approx(rise * 1e-3, abs=1e-12)
    assert verdict.details["se"] == pytest.approx(1e-3)


@pytest.mark.parametrize(("change", "accepted"), [(-2.1, True), (-1.9, False), (0.0, False), (3.0, False)])
def test_hard_attention_must_fall_beyond_two_standard_errors(change: float, accepted: bool) -> None:
    current = np.full(500, 2.0)
    trial = current + (noise(500) + change) * 1e-2
    assert robust_judge(fold_rows(500, 0))(HARD, trial, current, current + 1).accepted is accepted


def test_one_fold_cannot_carry_the_verdict_against_the_others() -> None:
    folds = np.array_split(np.arange(100), 5)
    step = noise(100) * 1e-3 + 0.01
    step[folds[0]] -= 0.06  # the mean falls, most folds rise
    current = np.full(100, 2.0)
    verdict = robust_judge(folds)(HEAD, current + step, current, current + 1)
    assert verdict.details["mean"] < 0 and not verdict.accepted


def test_part_that_does_nothing_goes_even_at_the_edge_of_the_guard() -> None:
    draw = np.random.default_rng(1)
    source = draw.gamma(2.0, 0.3, 300)
    current = source + (noise(300) + 0.999) * 1e-3  # at the very edge of the guard
    rounding = draw.normal(0, 1e-8, 300) + 1e-8
    assert robust_judge(fold_rows(300, 0))(HEAD, current + rounding, current, source).accepted


def test_loss_that_is_not_finite_in_one_row_is_rejected() -> None:
    trial = np.zeros(50)
    trial[7] = np.nan
    verdict = robust_judge(fold_rows(50, 0))(HEAD, trial, np.ones(50), np.ones(50))
    assert not verdict.accepted and "not a finite number" in verdict.reason


def parts_gone(plan: Plan) -> set[int]:
    """Numbers of the parts that `plan` removes: eight a layer, four heads and then four neuron groups."""
    gone = {8 * i + h for i, ids in plan.heads.items() for h in ids}
    gone |= {8 * i + 4 + n // 8 for i, ids in plan.neurons.items() for n in ids}
    gone |= {8 * i + h for i in plan.attention_blocks for h in range(4)}
    return gone | {8 * i + 4 + g for i in plan.feed_forward_blocks for g in range(4)}


def test_many_small_steps_do_not_add_up_to_a_drift() -> None:
    """Every part alone is within its own noise (half an SE up); together they must stay within one."""
    rows = 400
    steps = [noise(rows, seed) + 0.5 for seed in range(6 * 8)]

    def losses(plan: Plan) -> FloatArray:
        return 5.0 + 1e-3 * np.sum([np.zeros(rows), *(steps[i] for i in parts_gone(plan))], axis=0)

    search = FakeScorer(losses, rows, metric=lambda plan: 80.0)
    result = search_robust(anatomy(6, 4, 4, 32), search, search)
    assert len(result.stages) > 3
    for stage in result.stages[1:]:
        drift = losses(stage) - losses(Plan())
        assert drift.mean() <= stats.sem(drift) + 1e-6
    assert any("needs no rise beyond 1 SE: passed" in t.reason and not t.accepted for t in result.trials)
    assert len(parts_gone(result.plan)) < 40  # without the guard nearly everything goes


def test_useless_parts_all_go_and_needed_ones_all_stay() -> None:
    """Planted truth: in every layer heads 1 and 3 and neuron group 1 do nothing, the rest matters."""
    draw = np.random.default_rng(3)
    rows = 300
    needed = draw.normal(1.0, 0.3, rows)

    def losses(plan: Plan) -> FloatArray:
        cost = 10.0 * (len(plan.attention_blocks) + len(plan.feed_forward_blocks))
        cost += sum(len(ids - {1, 3}) for ids in plan.heads.values())
        cost += sum(len(ids - set(range(8, 16))) for ids in plan.neurons.values())
        return 1.0 + cost * needed

    result = search_robust(anatomy(), FakeScorer(losses, rows), FakeScorer(losses, rows, lambda plan: 90.0))
    assert result.plan.heads == {i: frozenset({1, 3}) for i in range(3)}
    assert result.plan.neurons == {i: frozenset(range(8, 16)) for i in range(3)}
    assert not result.plan.attention_blocks and not result.plan.hard_attention


def test_order_is_top_down_coarse_to_fine_and_skips_what_is_gone() -> None:
    def losses(plan: Plan) -> FloatArray:
        kept = Plan(attention_blocks=plan.attention_blocks - {1}, feed_forward_blocks=plan.feed_forward_blocks)
        bad = bool(kept.attention_blocks or kept.feed_forward_blocks or plan.heads or plan.neurons)
        return np.full(10, 1.0 + bad)

    flat = FakeScorer(losses, 10, lambda plan: 1.0)
    names = [t.element for t in search_robust(anatomy(2, 2, 4, 16), flat, flat).trials]
    assert names == [
        "layer 1 feed-forward block",
        "layer 1 neurons 0-7",
        "layer 1 neurons 8-15",
        "layer 1 attention block",  # accepted: neither its heads nor its hard attention are asked
        "layer 0 feed-forward block",
        "layer 0 neurons 0-7",
        "layer 0 neurons 8-15",
        "layer 0 attention block",
        "layer 0 head 0",
        "layer 0 head 1",
        "layer 0 hard attention k=30 truncated",
    ]


def test_bound_of_trials_left_only_falls_and_is_never_too_low() -> None:
    lefts: list[int] = []
    model = MaskModel(2, 60, 3, 4, 32)
    scorer = mask_scorer(model, metric=lambda plan: 50.0)
    search_robust(anatomy(), scorer, scorer, progress=lambda trial, left: lefts.append(left))
    assert all(left >= len(lefts) - i - 1 for i, left in enumerate(lefts))
    assert lefts == sorted(lefts, reverse=True)
    needed = FakeScorer(lambda plan: np.full(9, 1.0 + 5 * (not plan.is_empty)), 9)
    search_robust(anatomy(), needed, needed, progress=lambda trial, left: lefts.append(left))
    assert lefts[-1] == 0


def test_stages_are_the_accepted_elements_from_the_safest_to_the_riskiest() -> None:
    model = MaskModel(4, 80, 3, 4, 32)
    scorer = mask_scorer(model, lambda plan: 50.0)
    result = search_robust(anatomy(), scorer, scorer)
    names = {element.name: element for element in result.accepted}
    upper = {t.element: t.details["mean"] + t.details["se"] for t in result.trials if t.accepted}
    risk = {name: upper[name] / names[name].parameters for name in upper}
    expected, plan = [Plan()], Plan()
    for name in sorted(risk, key=risk.__getitem__):
        plan = names[name].applied_to(plan)
        expected.append(plan)
    assert list(result.stages) == expected and len(expected) > 4
    assert expected[-1] == [t.plan for t in result.trials if t.accepted][-1]


def stages(count: int) -> list[Plan]:
    return [Plan(heads={0: frozenset(range(i))}) if i else Plan() for i in range(count)]


def removed_heads(plan: Plan) -> int:
    return len(plan.heads.get(0, ()))


@pytest.mark.parametrize("seed", range(10))
def test_chosen_stage_is_the_last_that_holds_by_itself_and_by_the_falling_fit(seed: int) -> None:
    from sklearn.isotonic import IsotonicRegression

    draw = np.random.default_rng(seed)
    values = draw.integers(78, 83, size=8).astype(float)
    losses = np.ones((8, 50)) + draw.normal(draw.normal(0, 0.02, (8, 1)), 0.1, (8, 50))
    select = FakeScorer(lambda plan: losses[removed_heads(plan)], 50, lambda plan: values[removed_heads(plan)])
    chosen, scores = choose_stage(stages(8), select)
    rises = losses - losses[0]
    fine = (values >= values[0]) & (rises.mean(axis=1) <= stats.sem(rises, axis=1))
    fitted = IsotonicRegression(increasing=False).fit_transform(np.arange(8.0), values)
    assert chosen == np.flatnonzero((fine & (fitted >= values[0])) | (np.arange(8) == 0)).max()
    assert all(scores[i].score == values[i] for i in scores)
    assert all(scores[i].rise == pytest.approx(rises[i].mean()) for i in scores)


def test_one_lucky_stage_after_many_bad_ones_is_not_chosen() -> None:
    values = [80.0, 80.2, 79.9, 78.0, 78.1, 77.5, 80.1]
    select = FakeScorer(lambda plan: np.ones(9), 9, lambda plan: values[removed_heads(plan)])
    assert choose_stage(stages(7), select)[0] == 1


@pytest.mark.parametrize(("score_noise", "chosen"), [(0.2, 0), (0.4, 5)])
def test_falling_fit_may_be_one_standard_error_below_a_lucky_stage_0(score_noise: float, chosen: int) -> None:
    values = [80.0, 79.6, 79.7, 79.6, 79.5, 80.0, 79.0]
    select = FakeScorer(lambda plan: np.ones(9), 9, lambda plan: values[removed_heads(plan)])
    select.score_noise = score_noise
    assert choose_stage(stages(7), select)[0] == chosen


def test_of_many_stages_evenly_spaced_ones_are_scored_and_both_ends() -> None:
    select = FakeScorer(lambda plan: np.ones(9), 9, lambda plan: 80.0)
    chosen, scores = choose_stage(stages(101), select)
    assert chosen == 100 and len(scores) == STAGES_SCORED and {0, 100} <= set(scores)


def test_stage_with_the_same_metric_but_a_clear_rise_in_loss_is_not_chosen() -> None:
    rise = [0.0, 0.5, 2.0]  # in standard errors
    select = FakeScorer(
        lambda plan: 2.0 + (noise(99) + rise[removed_heads(plan)]) * 1e-2 * (removed_heads(plan) > 0),
        99,
        lambda plan: 80.0,
    )
    assert choose_stage(stages(3), select)[0] == 1


def test_unpruned_model_is_chosen_where_every_stage_scores_below_it() -> None:
    select = FakeScorer(lambda plan: np.zeros(1), 1, lambda plan: 80.0 - removed_heads(plan))
    chosen, scores = choose_stage(stages(4), select)
    assert chosen == 0 and sorted(scores) == [0, 1, 2, 3]


def test_select_rows_are_not_asked_when_nothing_was_accepted() -> None:
    search = FakeScorer(lambda plan: np.full(9, 1.0 + 5 * (not plan.is_empty)), 9)
    select = FakeScorer(lambda plan: np.zeros(1), 1, lambda plan: 80.0)
    result = search_robust(anatomy(), search, select)
    assert result.plan.is_empty and result.chosen == 0 and not select.scored


@pytest.mark.parametrize("seed", range(5))
def test_search_is_deterministic_for_a_seed(seed: int) -> None:
    model = MaskModel(seed, 80, 3, 4, 32)
    scorer = mask_scorer(model, metric=lambda plan: 50.0)
    first = search_robust(anatomy(), scorer, scorer, seed=seed)
    second = search_robust(anatomy(), scorer, scorer, seed=seed)
    assert first.plan == second.plan and first.stages == second.stages
    assert [t.reason for t in first.trials] == [t.reason for t in second.trials]


def test_interrupt_ends_with_the_best_so_far() -> None:
    model = MaskModel(4, 80, 3, 4, 32)
    whole = search_robust(anatomy(), mask_scorer(model), mask_scorer(model, lambda plan: 50.0))
    search = mask_scorer(model)
    search.interrupt_at = 12
    result = search_robust(anatomy(), search, mask_scorer(model, lambda plan: 50.0))
    assert result.interrupted and not whole.interrupted
    assert 0 < len(result.trials) < len(whole.trials)
    same = zip(result.trials, whole.trials, strict=False)
    assert all((a.element, a.accepted, a.plan) == (b.element, b.accepted, b.plan) for a, b in same)
    assert result.plan == result.stages[-1]
