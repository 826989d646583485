"""Which operating point is the answer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from axformer_onnx.records import Interval, Scores
from axformer_onnx.scoring.judgement import Drop, drop_of, together
from axformer_onnx.scoring.outputs import evaluate
from axformer_onnx.search.compensated.levels import Choice
from axformer_onnx.search.compensated.operating_points import (
    Point,
    best_at_speed,
    fastest,
    nearly_as_fast,
    within_drop,
)
from axformer_onnx.searches.compensated import _keep_plans
from axformer_onnx.statistics import best_mixture
from axformer_onnx.tasks import CLASSIFICATION
from axformer_onnx.tasks.definitions import get_task
from axformer_onnx.tasks.labels import LabelMap
from axformer_passes.plan import Plan


def point(
    predicted: float,
    drop: float,
    noise: float = 0.5,
    expected: float | None = None,
    *,
    measured: float | None = None,
    divergence: float = 0.0,
    reliable: bool = True,
) -> Point:
    value = predicted if measured is None else measured
    speed, judged = Interval(value, value, value, reliable=reliable), Drop(drop, noise, expected)
    return Point(Choice(()), Plan(), Path(), predicted, speed, 90 - drop, judged, divergence, 1)


def timed(predicted: float, measured: float, divergence: float = 0.0, *, reliable: bool = True) -> Point:
    return point(predicted, 0.0, measured=measured, divergence=divergence, reliable=reliable)


def passing(drop: float, *points: Point) -> list[float]:
    return [p.predicted for p in within_drop(points, drop)]


def test_points_within_the_drop_pass_and_others_do_not() -> None:
    points = point(1.0, 0.0, 0.0), point(1.5, 0.3), point(2.0, 0.9), point(3.0, 4.0)
    assert passing(1.0, *points) == [1.0, 1.5, 2.0]
    assert passing(0.0, *points) == [1.0]
    assert passing(4.0, *points) == [1.0, 1.5, 2.0, 3.0]


def test_order_of_the_points_does_not_matter() -> None:
    points = point(3.0, 4.0), point(1.0, 0.0, 0.0), point(2.0, 0.9), point(1.5, 0.3)
    assert passing(1.0, *points) == [1.0, 1.5, 2.0]


def test_a_lucky_point_that_is_expected_to_be_worse_does_not_pass() -> None:
    assert passing(0.5, point(3.0, -0.1, 0.8, expected=2.5)) == []
    assert passing(0.5, point(3.0, -0.1, 0.8, expected=0.4)) == [3.0]


def test_an_unlucky_point_that_is_expected_to_hold_passes_where_the_drop_allows_it() -> None:
    assert passing(1.0, point(2.0, 1.2, 0.8, expected=0.4)) == [2.0]
    assert passing(0.0, point(2.0, 1.2, 0.8, expected=0.4)) == []


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_gain_is_no_drop(noise: float) -> None:
    assert passing(0.0, point(1.0, 0.0, 0.0), point(2.0, -1.0, noise)) == [1.0, 2.0]


def test_what_a_point_may_exceed_is_its_error_and_no_more_than_again_what_is_allowed() -> None:
    points = [point(1 + far, 0.0, 2.0, expected=far) for far in (0.05, 0.15, 0.25)]
    assert passing(0.0, *points) == [1.05] and passing(0.1, *points) == [1.05, 1.15]
    assert passing(0.0, point(1.05, 0.0, 0.08, expected=0.05)) == [], "half of its error is 0.04"
    assert passing(0.5, point(2.0, 0.0, 2.0, expected=0.79), point(3.0, 0.0, 2.0, expected=0.81)) == [2.0]


def scores(outputs: np.ndarray, labels: np.ndarray, metric: str) -> Scores:
    task = dataclasses.replace(get_task("sst2"), metric=metric, metrics=(metric,))
    return evaluate(outputs, labels, task, LABELS)


LABELS = LabelMap((1, 0), ("yes", "no"), "")


@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("metric", ["accuracy", "mcc", "f1"])
def test_expected_drop_is_the_mean_over_labels_that_both_models_draw(metric: str, share: float) -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(40_000, 2)) * 2
    worse = logits + rng.normal(size=logits.shape) * 1.5
    both = (1 - share) * logits + share * worse
    chance = 1 / (1 + np.exp(both[:, 0] - both[:, 1]))  # of the class of logit 1, which is label 0 by LABELS

    def drawn() -> np.ndarray:
        return np.where(rng.random(40_000) < chance, 0, 1)

    labels = drawn()
    source, found = scores(logits, labels, metric), scores(worse, labels, metric)
    expected = CLASSIFICATION.expected_drop(source.outputs, found.outputs, labels, metric, LABELS)
    again = [scores(logits, y, metric).value - scores(worse, y, metric).value for y in (drawn() for _ in range(60))]
    assert expected == pytest.approx(np.mean(again), abs=0.6) and (expected > 4) == (share == 0)
    drop = drop_of(
        source, found, labels, dataclasses.replace(get_task("sst2"), metric=metric, metrics=(metric,)), LABELS
    )
    assert drop.judged == drop.expected == expected and drop.judged_noise < drop.noise


def test_the_mixture_of_two_models_is_the_likeliest_one_and_keeps_to_its_prior_where_rows_tell_nothing() -> None:
    rng = np.random.default_rng(5)
    first = rng.normal(size=(3000, 3))
    second = first + rng.normal(size=first.shape)
    labels = (0.6 * first + 0.4 * second + 0.5 * rng.gumbel(size=first.shape)).argmax(axis=1)
    b, w = best_mixture(first, second, labels)

    def unlikely(b: float, w: float) -> float:
        p = np.exp(b * ((1 - w) * first + w * second))
        return -np.log(p[range(3000), labels] / p.sum(axis=1)).sum() + ((w - 0.2) / 0.05) ** 2 / 2

    around = [unlikely(b * (1 + d), w + e) for d in (-0.05, 0, 0.05) for e in (-0.02, 0, 0.02) if d or e]
    assert unlikely(b, w) < min(around) and 0.25 < w < 0.5
    assert best_mixture(first, first, labels)[1] == 0.2


def test_points_are_judged_half_by_what_their_divergence_lets_expect() -> None:
    drops = Drop(-1.0, 2.0, 0.2), Drop(0.0, 1.0, 0.6), Drop(1.0, 1.0, 2.2), Drop(0.4, 0.3)
    judged = [one.judged for one in together(drops, [0.08, 0.02, 0.05, 0.3])]  # 20 points for each unit of divergence
    assert judged == pytest.approx([(0.2 + 1.6) / 2, (0.6 + 0.4) / 2, (2.2 + 1.0) / 2, 0.4])
    points = point(2.0, -1.0, 2.0, expected=0.4, divergence=0.08), point(1.5, 0.5, 1.0, expected=1.4, divergence=0.02)
    assert passing(0.5, points[0]) == [2.0] and passing(0.5, *points) == [], "beside the other it is a lucky one"


def test_points_without_divergence_or_better_than_the_source_are_judged_alone() -> None:
    drops = [Drop(0.0, 1.0, 0.3), Drop(0.0, 1.0, -0.1)]
    assert together(drops, [0.0, 0.0]) == drops and together([], []) == []
    better = together([Drop(0.0, 1.0, -0.4), Drop(0.0, 1.0, 0.2)], [0.02, 0.01])
    assert [one.judged for one in better] == pytest.approx([-0.2, 0.1]), "more divergence is never a gain"


def test_regression_is_judged_by_what_was_measured() -> None:
    assert Drop(1.5, 0.4).judged == 1.5 and Drop(1.5, 0.4).judged_noise == 0.4


def test_noise_lets_a_point_pass_by_no_more_than_the_margin() -> None:
    assert passing(0.8, point(2.0, -3.0, 2.5, expected=1.2)) == []
    assert passing(0.8, point(2.0, 0.0, 2.5, expected=1.0)) == [2.0]
    assert passing(0.8, point(2.0, 0.9, 2.5, expected=1.0)) == [], "not where the measured drop does not hold"


# -- speed ------------------------------------------------------------------------------------------------------------


def test_a_stopwatch_decides_among_points_that_the_table_calls_equal_and_no_others() -> None:
    points = [timed(1.5, 9.0), timed(1.96, 2.3), timed(2.0, 1.9)]
    assert fastest(points, 0.03) is points[1]
    assert fastest(points, 0.01) is points[2], "1.96 is not 2.0 within 1 %"
    assert nearly_as_fast(points, 0.03) == points[1:] and nearly_as_fast(points, 0.4) == points


def test_where_a_speed_is_not_reliable_the_table_decides() -> None:
    points = [timed(1.96, 2.3), timed(2.0, 1.9, reliable=False)]
    assert fastest(points, 0.03) is points[1]
    assert best_at_speed(points[1:], 2.0, 0.03) == (points[1], True), "measured 1.9, but that says nothing"
    assert best_at_speed([timed(1.96, 2.3, reliable=False)], 2.0, 0.03)[1] is False


def test_a_speedup_is_met_by_the_least_divergent_point_that_is_measured_so_fast() -> None:
    slow, enough, faster = timed(2.0, 1.98, 0.1), timed(2.05, 2.01, 0.2), timed(2.1, 2.2, 0.3)
    assert best_at_speed([slow, enough, faster], 2.0, 0.05) == (enough, True)
    lucky = timed(1.5, 7.0, 0.01)
    assert best_at_speed([lucky, slow, enough], 2.0, 0.05) == (enough, True), "the table's error does not allow it"
    below = timed(1.97, 2.02, 0.05)
    assert best_at_speed([below, slow, enough], 2.0, 0.05) == (below, True), "here it does"


def test_what_is_measured_nowhere_is_not_reached_whatever_the_table_says() -> None:
    points = [timed(1.5, 1.4), timed(2.0, 1.7), timed(2.05, 1.8)]
    assert best_at_speed(points, 2.0, 0.05) == (points[2], False)


def test_folders_are_named_by_what_was_measured_and_else_by_the_table_and_say_so(tmp_path: Path) -> None:
    made = [
        dataclasses.replace(timed(1.2, 1.31), folder=tmp_path / "a"),
        dataclasses.replace(point(2.0, 0.0, measured=9.9, reliable=False), folder=tmp_path / "b"),
        dataclasses.replace(point(2.0, 0.0, measured=0.3, reliable=False), folder=tmp_path / "c"),
    ]
    for one in made:
        one.folder.mkdir()
    names = _keep_plans(SimpleNamespace(points=made, chosen=made[0]))  # type: ignore[arg-type]
    assert list(names.values()) == ["frontier/1.31x", "frontier/2.00x-by-table", "frontier/2.00x-by-table-2"]
    assert {path.name for path in tmp_path.iterdir()} == {Path(name).name for name in names.values()}
