"""Gates: what is failed, passed and undecided, and how often each is wrong, on planted drops and planted speeds."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from simulated_machine import SimulatedMachine, World

from axformer_onnx.gates import divergence_gate, drop_gate, same_speed, size_gate, speed_gates
from axformer_onnx.gates.error_rates import look_error, looks, share_of
from axformer_onnx.gates.quality import rounded_up
from axformer_onnx.gates.records import judged, times_more
from axformer_onnx.records import Interval, LogRatio
from axformer_onnx.runtime import LatencyRow
from axformer_onnx.runtime.latency import compare_latency
from axformer_onnx.statistics import paired_shares, studentised_mean
from axformer_onnx.tasks import Answers, metric_named

ACCURACY = metric_named("classification", "accuracy")


def answers(only_a: int, only_b: int, rows: int) -> tuple[Answers, Answers]:
    """Two models of which one alone is right on so many rows."""
    labels = np.ones(rows, dtype=np.int64)
    first, second = labels.copy(), labels.copy()
    second[:only_a], first[only_a : only_a + only_b] = 0, 0
    return Answers(labels, first, np.zeros(rows), 2), Answers(labels, second, np.zeros(rows), 2)


def rows_of(logs: Sequence[float], error: float = 0.01, *, reliable: bool = True) -> list[list[LatencyRow]]:
    """A repetition each, with this logarithm of the speed."""
    return [
        [
            LatencyRow("a", 1, 8, 1.0, 1.0, None, 30, 30, reliable=reliable, why="" if reliable else "a neighbour"),
            LatencyRow(
                "b", 1, 8, 1.0, 1.0, Interval(1, 1, 1), 30, 30, reliable=reliable, why="" if reliable else "a neighbour",
                log_ratio=LogRatio(log, error, 30.0),
            ),
        ]
        for log in logs
    ]  # fmt: skip


# -- outcomes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "at_most", "at_least"),
    [
        (1.0, 2.0, "failed", "passed"),
        (0.1, 0.4, "passed", "failed"),
        (0.1, 1.0, "undecided", "undecided"),
        (0.5, 0.9, "undecided", "passed"),
        (0.1, 0.5, "passed", "undecided"),
    ],
)
def test_an_interval_fails_that_excludes_what_is_allowed_and_passes_that_lies_within(
    low: float, high: float, at_most: str, at_least: str
) -> None:
    found = Interval((low + high) / 2, low, high)
    assert judged(found, 0.5, at_least=False) == at_most
    assert judged(found, 0.5, at_least=True) == at_least


def test_a_large_drop_fails_none_passes_and_one_between_asks_for_rows() -> None:
    assert drop_gate(ACCURACY, *answers(60, 5, 872), 0.5, error=0.05).outcome == "failed"
    assert drop_gate(ACCURACY, *answers(0, 0, 872), 0.5, error=0.05).outcome == "passed"
    between = drop_gate(ACCURACY, *answers(14, 5, 872), 0.5, error=0.05)
    assert between.outcome == "undecided" and between.needs.startswith("about ")
    wanted = int(between.needs.split()[1].replace(",", ""))
    often = wanted / 872
    more = drop_gate(ACCURACY, *answers(round(14 * often), round(5 * often), wanted), 0.5, error=0.05)
    assert more.outcome == "failed"
    fewer = drop_gate(
        ACCURACY, *answers(round(14 * often * 0.7), round(5 * often * 0.7), round(wanted * 0.7)), 0.5, error=0.05
    )
    assert fewer.outcome == "undecided"


def test_what_is_measured_exactly_at_what_is_allowed_asks_for_no_number_of_rows() -> None:
    found = drop_gate(ACCURACY, *answers(20, 10, 1000), 1.0, error=0.05)
    assert found.outcome == "undecided" and found.needs.startswith("no number of rows")


def test_a_graph_against_itself_passes_every_gate_and_nothing_is_measured() -> None:
    same = answers(0, 0, 5)
    assert drop_gate(ACCURACY, *same, 0.0, error=0.05, same=True).outcome == "passed"
    assert divergence_gate(np.zeros(5), 0.0, error=0.05, same=True).outcome == "passed"
    assert [gate.outcome for gate in same_speed(1.0, [(1, 8), (8, 128)])] == ["passed", "passed"]
    assert [gate.outcome for gate in same_speed(1.1, [(1, 8)])] == ["failed"]


def test_sizes_are_exact() -> None:
    assert size_gate(1000, 1000, 1.0).outcome == "passed" and size_gate(1000, 1001, 1.0).outcome == "failed"
    assert size_gate(1000, 1001, 1.0).error == 0


def test_answers_that_never_differ_do_not_pass_a_gate_that_few_rows_cannot_show() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    same = Answers(labels, labels.copy(), np.zeros(100), 2)
    for name in ("accuracy", "f1", "mcc"):
        metric = metric_named("classification", name)
        assert drop_gate(metric, same, same, 1.0, error=0.05).outcome == "undecided", name
        assert drop_gate(metric, same, same, 60.0, error=0.05).outcome == "passed", name
    sets = Answers(np.eye(3)[labels], np.eye(3)[labels], np.zeros(100))
    assert drop_gate(metric_named("multilabel", "micro-f1"), sets, sets, 1.0, error=0.05).outcome == "undecided"


def test_how_many_times_more_would_decide_is_the_square_of_reach_over_distance() -> None:
    assert times_more(Interval(0.25, 0.0, 0.75), 0.5) == pytest.approx(4)
    assert times_more(Interval(1.0, 0.0, 5.0), 0.5) == pytest.approx(4)
    assert times_more(Interval(0.5, 0.0, 1.0), 0.5) == float("inf")
    assert [rounded_up(x) for x in (0.2, 7.1, 99.0, 3461.2)] == [1, 8, 99, 3500]


# -- how often answers are judged wrongly -------------------------------------------------------------------------------


def outcomes(
    rows: int, drop: float, differing: float, allowed: float, error: float, draws: int = 4000
) -> dict[str, float]:
    """Shares of the outcomes over draws of rows, of which a share `differing` is right for one model alone."""
    share = [(differing + drop) / 2, (differing - drop) / 2]
    counts = np.random.default_rng(rows).multinomial(rows, [*share, 1 - sum(share)], size=draws)
    found = Counter[str]()
    for (a, b, _), times in zip(*np.unique(counts, axis=0, return_counts=True), strict=True):
        found[drop_gate(ACCURACY, *answers(a, b, rows), 100 * allowed, error=error).outcome] += int(times)
    return {name: found[name] / draws for name in ("failed", "passed", "undecided")}


@pytest.mark.parametrize(("drop", "differing"), list(itertools.product((0.0, 0.005, 0.01), (0.01, 0.03))))
def test_a_drop_that_is_allowed_fails_and_one_that_is_not_passes_in_fewer_than_five_of_a_hundred(
    drop: float, differing: float
) -> None:
    found = outcomes(872, drop, differing, drop, 0.05)
    assert found["failed"] < 0.05 and found["passed"] < 0.055


def test_a_planted_drop_of_a_point_is_missed_by_half_of_872_rows_and_found_by_5_000() -> None:
    few, many = (outcomes(rows, 0.01, 0.03, 0.0, 0.05, draws=1000)["failed"] for rows in (872, 5000))
    assert 0.3 < few < 0.6 and many > 0.95


def test_bounds_of_a_difference_of_shares_agree_with_exact_tests_where_those_exist() -> None:
    for only_a, only_b in ((12, 1), (30, 9), (6, 0), (200, 150)):
        exact = binomtest(only_b, only_a + only_b, 0.5, alternative="less").pvalue
        assert (
            paired_shares(only_a, only_b, 872, 2 * exact).high
            <= 0
            < paired_shares(only_a, only_b, 872, exact / 1.1).high
        )
    alone = paired_shares(0, 0, 872, 0.05)
    assert -0.0045 < alone.low < -0.0034 and alone.high == pytest.approx(
        -alone.low
    )  # exact, of one share: 1 - 0.05^(1/872)
    mirrored = paired_shares(9, 30, 872, 0.02)
    found = paired_shares(30, 9, 872, 0.02)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_a_bound_of_a_difference_of_shares_is_where_the_score_statistic_is_its_quantile() -> None:
    """The share of rows for a alone by maximising the likelihood numerically, not by the root of its derivative."""
    from scipy.optimize import minimize_scalar
    from scipy.stats import norm

    only_a, only_b, rows, error = 17, 6, 400, 0.03
    low = paired_shares(only_a, only_b, rows, error).low

    def unlikely(q: float) -> float:
        shares = np.array([q, q + low, 1 - 2 * q - low])
        return -float(np.array([only_a, only_b, rows - only_a - only_b]) @ np.log(shares))

    q = minimize_scalar(
        unlikely, bounds=(-low + 1e-9, (1 - low) / 2 - 1e-9), method="bounded", options={"xatol": 1e-12}
    ).x
    statistic = (only_b - only_a - rows * low - 0.5) / np.sqrt(rows * (2 * q + low - low**2))
    assert statistic == pytest.approx(norm.isf(error), abs=1e-3)


def test_bounds_of_a_skewed_mean_hold_where_those_of_percentiles_are_too_low() -> None:
    draw, missed = np.random.default_rng(0), 0
    for seed in range(200):
        missed += studentised_mean(draw.lognormal(0, 1, 300), 0.05, draws=1000, seed=seed).high < np.exp(0.5)
    assert missed < 0.09 * 200
    alone = studentised_mean(np.full(4, 0.5), 0.05)
    assert (alone.low, alone.value, alone.high) == (0.5, 0.5, 0.5)


# -- speed: looks and repetitions ---------------------------------------------------------------------------------------


def test_looks_double_and_what_they_spend_adds_up_to_what_the_gate_has() -> None:
    assert [looks(n) for n in (1, 2, 3, 8, 12)] == [(1,), (1, 2), (1, 2, 3), (1, 2, 4, 8), (1, 2, 4, 8, 12)]
    for repetitions in range(1, 40):
        assert look_error(0.05, repetitions) * len(looks(repetitions)) == pytest.approx(0.05)
    assert share_of(0.05, 4) == 0.0125 and share_of(0.05, 0) == 0.05


def decide(repetitions: list[list[LatencyRow]], least: float) -> tuple[str, int]:
    """(outcome, how many repetitions were made)."""
    made = []

    def measure(shapes: Any, number: int) -> list[LatencyRow]:
        made.append(number)
        return repetitions[number]

    (one,) = speed_gates(least, [(1, 8)], measure, error=0.05, repetitions=len(repetitions))
    assert one.gate is not None
    return one.gate.outcome, len(made)


def test_measuring_ends_with_the_first_look_that_decides() -> None:
    assert decide(rows_of([np.log(1.3)] * 8), 1.0) == ("passed", 1)
    assert decide(rows_of([np.log(0.9)] * 8), 1.0) == ("failed", 1)
    assert decide(rows_of([0.014] * 8), 1.0) == ("passed", 4)
    assert decide(rows_of([0.0] * 8), 1.0) == ("undecided", 8)


def test_between_looks_nothing_is_decided() -> None:
    assert decide(rows_of([0.0, 0.0, 3.0, 3.0, 3.0, 3.0], error=0.5), 1.0)[1] == 6


def test_a_disturbed_repetition_counts_for_nothing_and_disturbed_ones_alone_decide_nothing() -> None:
    disturbed, good = rows_of([-1.0] * 3, reliable=False), rows_of([np.log(1.3)])
    assert decide([*disturbed, *good], 1.0) == ("passed", 4)
    found = speed_gates(1.0, [(1, 8)], lambda shapes, number: disturbed[number], error=0.05, repetitions=3)
    gate = found[0].gate
    assert gate is not None and gate.outcome == "undecided" and gate.measured is None
    assert "a neighbour" in gate.why and "--wait-for-quiet" in gate.needs


def test_a_shape_that_is_decided_is_not_measured_again() -> None:
    asked = []

    def measure(shapes: Sequence[tuple[int, int]], number: int) -> list[LatencyRow]:
        asked.append(list(shapes))
        speeds = {8: np.log(2.0), 16: 0.014}
        return [row for shape in shapes for row in rows_of([speeds[shape[1]]])[0]]

    found = speed_gates(1.0, [(1, 8), (1, 16)], measure, error=0.05, repetitions=8)
    assert asked[0] == [(1, 8), (1, 16)] and asked[1:] == [[(1, 16)]] * 3
    assert [one.gate.at for one in found if one.gate] == ["1 x 8", "1 x 16"]
    assert [len(one.rows()) for one in found] == [2, 2] and found[1].rows()[1].rounds == 4 * 30


def simulated(world: World, speed: float, seed: int) -> str:
    """--min-speedup 1 on such a machine; sessions differ as on real ones."""
    machine, draw = SimulatedMachine(world, seed), np.random.default_rng(1000 + seed)

    def measure(shapes: Any, number: int) -> list[LatencyRow]:
        machine.world = dataclasses.replace(world, ms=(5.0, 5.0 * float(np.exp(draw.normal(0, 0.005))) / speed))
        return compare_latency(machine.sessions, [(1, 8, {})], seed=number, instruments=machine.instruments)

    (one,) = speed_gates(1.0, [(1, 8)], measure, error=0.05, repetitions=8)
    assert one.gate is not None
    return one.gate.outcome


@pytest.mark.parametrize(
    "world",
    [World(drift=0.1, tail=0.1), World(load=0.3, active=0.4, idle=0.8), World(slow=(1.8, 1.5), active=0.6, idle=0.6)],
    ids=["drift and tail", "bursts of load", "a neighbour"],
)
def test_on_a_noisy_machine_a_planted_tenth_is_found_and_no_difference_is_no_failure(world: World) -> None:
    slower = Counter(simulated(world, 1 / 1.1, seed) for seed in range(20))
    alike = Counter(simulated(world, 1.0, seed) for seed in range(20))
    assert slower["failed"] >= 18 and slower["passed"] == 0
    assert alike["failed"] <= 2 and alike["passed"] <= 2  # two of twenty: with 5 % each in 1 of 13 cases more
