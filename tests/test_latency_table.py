"""Latency tables from made-up times: what a unit costs, what lies between, what the cache keeps."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from axformer_onnx.scoring import Machine, PlanClock, plan_clock
from axformer_onnx.search.compensated import latency_table
from axformer_onnx.search.compensated.allocation import allocate, price_of
from axformer_onnx.search.compensated.latency_table import LatencyTable, cached_table, from_json, measure_table, to_json
from axformer_onnx.search.compensated.levels import Rung, Unit
from axformer_onnx.search.compensated.table_error import Mixed, believed
from axformer_passes.plan import Plan
from axformer_passes.precision import Half, Int8
from axformer_passes.probe import TokenSequence

REST, HEAD, NEURON, EMPTY = 2.0, 0.25, 0.01, 0.5
SOURCE = Path("source.onnx")
SOURCE_MS = 17.0
TOKENS = TokenSequence(words=range(5, 50))
MIXED = (Mixed(3.0, 2.5), Mixed(5.0, 4.0))


def unit(kind: Any, layer: int, size: int, step: int) -> Unit:
    counts = sorted({*range(0, size + 1, step), size}, reverse=True)
    return Unit(kind, (layer,), size, tuple(Rung(tuple(range(n)), float(size - n)) for n in counts))


UNITS = [u for layer in range(3) for u in (unit("attention", layer, 8, 1), unit("feed_forward", layer, 64, 8))]


def examined(picked: bool) -> Any:
    """Three layers; the last works on one token where `picked`."""

    def linear(name: str, rows: int) -> Any:
        return SimpleNamespace(input=name, rows=rows, columns=16)

    layers = tuple(
        SimpleNamespace(
            attention=SimpleNamespace(output=linear(f"{i}a", 16)),
            feed_forward=SimpleNamespace(down=linear(f"{i}f", 64)),
        )
        for i in range(3)
    )
    values = {
        f"{i}{kind}": np.zeros((2, 1 if picked and i == 2 else 5, width))
        for i in range(3)
        for kind, width in (("a", 16), ("f", 64))
    }
    return SimpleNamespace(anatomy=SimpleNamespace(layers=layers), labelling=SimpleNamespace(values=values))


def true_ms(plan: Plan | Path) -> float:
    """A model whose blocks cost something fixed and something a head (neuron), the last layer a tenth of it; or the source."""
    if isinstance(plan, Path):
        assert plan == SOURCE
        return SOURCE_MS
    total = REST
    for u in UNITS:
        gone = len((plan.heads if u.kind == "attention" else plan.neurons).get(u.layers[0], ()))
        scale = 0.1 if u.layers[0] == 2 else 1.0
        total += scale * (HEAD if u.kind == "attention" else NEURON) * (u.size - gone) + EMPTY
        total += 0.3 * (u.layers[0] in plan.hard_attention) * (u.kind == "attention")
    return total


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_clock, "apply_plan", lambda model, plan, runner, examined: plan)
    monkeypatch.setattr(plan_clock, "detached", lambda one: one)
    monkeypatch.setattr(plan_clock, "make_session", lambda one, **rest: _Session(one))

    def timed(sessions: dict[str, Any], feeds: Any, **rest: Any) -> list[Any]:
        ms = [true_ms(session.plan) for session in sessions.values()]
        return [
            SimpleNamespace(
                p50_ms=x,
                reliable=True,
                ratio=SimpleNamespace(value=ms[0] / x) if i else None,
                log_ratio=SimpleNamespace(error=0.0) if i else None,
            )
            for i, x in enumerate(ms)
        ]

    monkeypatch.setattr(plan_clock, "compare_latency", timed)


class _Session:
    def __init__(self, plan: Any) -> None:
        self.plan = plan

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="input_ids")]


def measured(**more: Any) -> LatencyTable:
    return measure_table(Plan(), examined(picked=True), UNITS, Machine(), (1, 8), source=SOURCE, tokens=TOKENS, **more)  # type: ignore[arg-type]


def bent(plan: Plan | Path) -> float:
    """The same where the first to go save most: three tenths of what a model without any unit saves bend with the cube."""
    if isinstance(plan, Path):
        return straight(plan)
    whole, empty = straight(Plan()), REST + EMPTY * len(UNITS)
    part = (straight(plan) - empty) / (whole - empty)
    return empty + (whole - empty) * (0.7 * part + 0.3 * part**3)


straight = true_ms


def drawn_plans(count: int) -> list[tuple[list[int], Plan]]:
    """(a rung for every unit, the plan of them): choices of dynamic programming with drawn costs, under drawn budgets."""
    rng, found = np.random.default_rng(1), list[tuple[list[int], Plan]]()
    prices = [np.array(u.counts) * (HEAD if u.kind == "attention" else NEURON) for u in UNITS]
    whole = sum(float(p[0]) for p in prices)
    for _ in range(count):
        costs = [rng.lognormal() * (1 - np.array(u.counts) / u.size) ** rng.uniform(1, 3) for u in UNITS]
        rungs, plan = allocate(costs, prices, float(rng.uniform(0.15, 0.85)) * whole), Plan()
        assert rungs is not None
        for u, rung in zip(UNITS, rungs, strict=True):
            without = plan.without_heads if u.kind == "attention" else plan.without_neurons
            plan = without(u.layers[0], range(u.counts[rung], u.size))
        found.append((list(rungs), plan))
    return found


def test_table_gives_back_what_blocks_cost(clock: None) -> None:
    table = measured(hard=(4,))
    assert (table.model_ms, table.source_ms) == (pytest.approx(true_ms(Plan())), pytest.approx(SOURCE_MS))
    for u, prices in zip(UNITS, table.prices, strict=True):
        scale = 0.1 if u.layers[0] == 2 else 1.0
        each = scale * (HEAD if u.kind == "attention" else NEURON)
        assert prices == pytest.approx(each * np.array(u.counts)), u
    assert table.rest_ms == pytest.approx(REST + EMPTY * len(UNITS))
    assert table.hard_ms == {4: pytest.approx(0.3)}


def test_what_is_timed_is_in_the_form_that_is_written(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = list[Plan]()

    def carried_out(model: Any, plan: Plan, runner: Any, examined: Any) -> Plan:
        timed.append(plan)
        return plan

    monkeypatch.setattr(plan_clock, "apply_plan", carried_out)
    half = Half("fp16")
    measured(hard=(4,), rewrites=Plan(constants="folded", keys_values="absorbed", padding="removed", half=half))
    said = {(plan.constants, plan.keys_values, plan.padding, plan.half) for plan in timed}
    assert said == {("folded", "absorbed", "removed", half)} and len(timed) > 20
    assert any(plan.heads and plan.neurons and len(plan.heads) == 3 for plan in timed), "plans of all units among them"


def test_a_table_whose_sums_hold_has_neither_bias_nor_error(clock: None) -> None:
    table = measured()
    assert table.error.plans >= 5
    assert (table.error.bias, table.error.median, table.error.worst) == pytest.approx((0, 0, 0), abs=2e-3)
    for rungs, plan in drawn_plans(20):
        assert table.speedup(price_of(table.prices, rungs)) == pytest.approx(SOURCE_MS / true_ms(plan), rel=2e-3)


def test_sums_that_promise_too_much_or_too_little_are_corrected(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "true_ms", bent)
    table = measured()
    assert table.model_ms == pytest.approx(straight(Plan())) and table.rest_ms == pytest.approx(
        REST + EMPTY * len(UNITS)
    )
    assert sum(ms[0] for ms in table.unit_ms) == pytest.approx(table.model_ms - table.rest_ms)
    plain, wrong, left = dataclasses.replace(table, mixed=()), list[float](), list[float]()
    for rungs, plan in drawn_plans(30):
        units_ms, true = price_of(table.prices, rungs), SOURCE_MS / true_ms(plan)
        wrong.append(plain.speedup(units_ms) / true - 1)
        left.append(abs(table.speedup(units_ms) / true - 1))
    assert np.median(left) < np.median(np.abs(wrong)) / 2
    assert max(np.quantile(left, 0.9), table.error.worst) < abs(table.error.bias) and table.error.median > 0
    assert np.sign(table.error.bias) == np.sign(np.median(wrong))


@pytest.mark.parametrize("seed", range(5))
def test_a_budget_and_the_speedup_that_it_buys_are_each_others_inverse(seed: int) -> None:
    rng, ms = np.random.default_rng(seed), tuple(tuple(float(n) for n in u.counts) for u in UNITS)
    whole = sum(x[0] for x in ms)
    mixed = tuple(Mixed(*rng.uniform(0, 1.1 * whole, 2)) for _ in range(seed))
    table = LatencyTable(1, 8, whole + 12, whole + 10, ms, mixed=mixed)
    assert table.speedup(whole) == pytest.approx((whole + 12) / (whole + 10)), "nothing is removed"
    assert table.speedup(0.0) == pytest.approx((whole + 12) / 10), "no unit is left"
    speeds = np.linspace((whole + 12) / (whole + 15), (whole + 12) / 10, 50)
    budgets = [table.budget_ms(speed) for speed in speeds]
    assert (np.diff(budgets) < 0).all()
    assert [table.speedup(budget) for budget in budgets] == pytest.approx(speeds)
    assert table.budget_ms(1.01 * speeds[-1]) < 0, "out of reach"


def test_what_was_timed_at_another_pace_is_timed_again(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, calls = measured(), 0
    true_comparison = plan_clock.compare_latency

    def disturbed(sessions: dict[str, Any], feeds: Any, **rest: Any) -> list[Any]:
        nonlocal calls
        calls += 1
        rows = true_comparison(sessions, feeds, **rest)
        if calls % 3:
            return rows
        told = calls % 2 == 0  # by the estimator, or by the pace of the unchanged model alone
        for number, row in enumerate(rows):
            row.p50_ms *= 1.5
            row.reliable = not told
            if number:
                row.ratio.value *= 1.0 + 0.5 * number
        return rows

    monkeypatch.setattr(plan_clock, "compare_latency", disturbed)
    assert measured() == quiet
    monkeypatch.setattr(plan_clock, "PASSES", 1)
    monkeypatch.setattr(latency_table, "TRY_CPU_TIME", False)
    assert measured() != quiet, "without timing again the table is wrong"


def test_on_a_machine_that_is_never_free_the_table_is_of_cpu_time_and_is_not_kept_for_others(
    clock: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quiet, true_comparison, threads = measured(), plan_clock.compare_latency, set()
    noise = np.random.default_rng(0)

    def busy(sessions: dict[str, Any], feeds: Any, cpu_time: bool, **rest: Any) -> list[Any]:
        rows = true_comparison(sessions, feeds, **rest)
        for row in () if cpu_time else rows:
            row.reliable = False
            row.p50_ms *= noise.uniform(1, 3)
            if row.ratio:
                row.ratio.value *= noise.uniform(0.3, 3)
        return rows

    def session(one: Any, threads_of_it: set[Any] = threads, **rest: Any) -> _Session:
        threads_of_it.add(rest["threads"])
        return _Session(one)

    monkeypatch.setattr(plan_clock, "compare_latency", busy)
    monkeypatch.setattr(plan_clock, "make_session", session)
    monkeypatch.setattr(latency_table, "_cache_folder", lambda: tmp_path)
    found = latency_table.cached_table({}, UNITS, measured)
    assert found == dataclasses.replace(quiet, cpu_time=True) and threads == {None, 1}
    assert latency_table.from_json(json.loads(json.dumps(latency_table.to_json(found)))) == found
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_a_small_block_costs_what_it_multiplies_where_the_clock_cannot_tell(
    clock: None, monkeypatch: pytest.MonkeyPatch, noise: float
) -> None:
    quiet, rng = measured(), np.random.default_rng(0)
    true_comparison, stated = plan_clock.compare_latency, 0.0

    def noisy(sessions: dict[str, Any], feeds: Any, **rest: Any) -> list[Any]:
        rows = true_comparison(sessions, feeds, **rest)
        for row in rows[1:]:
            row.ratio.value *= np.exp(rng.normal(0.0, noise))
            row.log_ratio.error = stated
        return rows

    def counted(*_: Any) -> list[Any]:
        each = {"attention": HEAD, "feed_forward": NEURON}
        return [
            SimpleNamespace(
                layer=u.layers[0], kind=u.kind, macs=(0.1 if u.layers[0] == 2 else 1.0) * each[u.kind] * u.size
            )
            for u in UNITS
        ]

    monkeypatch.setattr(plan_clock, "compare_latency", noisy)
    monkeypatch.setattr(latency_table, "shares", counted)

    def wrong_by() -> tuple[float, float]:
        """(of the units of the last layer, of the others): ms, root mean square over rungs."""
        tables = [measured() for _ in range(20)]
        off = [[np.mean((p - q) ** 2) for p, q in zip(one.prices, quiet.prices, strict=True)] for one in tables]
        by_unit = np.sqrt(np.mean(off, axis=0))
        return float(by_unit[-2:].mean()), float(by_unit[:-2].mean())

    as_measured = wrong_by()
    stated = noise
    drawn = wrong_by()
    assert drawn[0] < as_measured[0] / 2 and drawn[1] < as_measured[1]


def test_what_costs_otherwise_than_it_multiplies_keeps_what_was_measured() -> None:
    design = np.zeros((8, 4))
    design[:, 0] = np.linspace(10, 1, 8)
    errors = np.full(8, 0.2)
    steps = np.array([9.0, 9.0, 9.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    assert believed(steps, errors, design, 0.0) == pytest.approx(steps, abs=0.15), "steps of a kernel, not noise"
    straight = 0.5 * design[:, 0]
    off = straight + np.array([0.2, -0.2] * 4)
    left = np.abs(believed(off, errors, design, 0.0) - straight)
    assert (left < 0.2).all() and left[-1] < 0.1, "the less a block multiplies, the less noise is left of it"
    assert believed(off, 1e-6 * errors, design, 0.0) == pytest.approx(off, abs=1e-4)


def test_a_machine_that_stays_disturbed_costs_a_few_passes_and_no_more(
    clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds, calls = 0.0, 0
    true_comparison = plan_clock.compare_latency

    def busy(sessions: dict[str, Any], feeds: Any, **rest: Any) -> list[Any]:
        nonlocal seconds, calls
        seconds, calls = seconds + 20.0, calls + 1
        rows = true_comparison(sessions, feeds, **rest)
        for row in rows:
            row.reliable = False
        return rows

    monkeypatch.setattr(plan_clock, "compare_latency", busy)
    source: Any = Plan()
    clock_of_plans = PlanClock(source, source, Plan(), Machine(), (1, 8), TOKENS, 0, lambda: seconds)
    variants = [(number, Plan().without_neurons(0, range(number))) for number in range(10 * 3)]
    found = clock_of_plans.times(variants[: 2 * 3], lambda done, of: None)
    assert not found.holds
    assert calls == 5, "two groups, again until 90 seconds are over"
    assert found.parts == {key: pytest.approx(true_ms(plan) / found.ms) for key, plan in variants[: 2 * 3]}
    calls = 0
    clock_of_plans.times(variants, lambda done, of: None)
    assert calls == 10, "all are timed once, whatever it takes"


def test_units_of_other_tokens_are_another_class() -> None:
    assert len(latency_table.unit_classes(examined(picked=False), UNITS)) == 2
    assert len(latency_table.unit_classes(examined(picked=True), UNITS)) == 4


def test_narrower_block_that_takes_longer_is_priced_as_the_wider_one() -> None:
    saved = {(0, False): 4.0, (1, False): 2.0, (2, False): 2.5, (3, False): 1.0}
    steps = latency_table._by_rung(unit("attention", 0, 4, 1), saved)
    assert list(steps) == sorted(steps, reverse=True), "fewer heads may not be priced higher"
    assert steps[0] == pytest.approx(4.0) and steps[4] == pytest.approx(0.0)
    assert steps[2] == steps[3] == pytest.approx(1.75)


def test_integers_have_prices_of_their_own_against_the_same_full_unit() -> None:
    one = unit("attention", 0, 4, 1)
    both = dataclasses.replace(one, rungs=(*one.rungs, *(dataclasses.replace(rung, int8=True) for rung in one.rungs)))
    saved = {(0, False): 4.0, (2, False): 2.0, (2, True): 3.0, (4, True): 1.0}
    steps = latency_table._by_rung(both, saved)
    assert steps == pytest.approx([4.0, 3.0, 2.0, 1.0, 0.0, 3.0, 2.0, 1.0, 0.5, 0.0])
    assert latency_table._plan([(both, 2, True)], Int8(tables=8, stored=True)).int8 == Int8(attention=frozenset({0}))


def test_table_survives_json_and_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_table, "_cache_folder", lambda: tmp_path)
    ms = tuple(tuple(float(n) for n in u.counts) for u in UNITS)
    table, asked = LatencyTable(1, 8, 11.0, 9.5, ms, {4: 0.25}, MIXED), list[int]()

    def measure() -> LatencyTable:
        asked.append(1)
        return table

    assert from_json(json.loads(json.dumps(to_json(table)))) == table
    assert to_json(table)["error"] == dataclasses.asdict(table.error) and table.error.plans == 2
    assert cached_table({"model": "a"}, UNITS, measure) == table == cached_table({"model": "a"}, UNITS, measure)
    assert len(asked) == 1
    cached_table({"model": "b"}, UNITS, measure)
    cached_table({"model": "a"}, UNITS[:2], lambda: LatencyTable(1, 8, 11.0, 9.5, ms[:2]))
    assert len(asked) == 2 and len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.iterdir():
        path.write_text("{torn")
    cached_table({"model": "a"}, UNITS, measure)
    assert len(asked) == 3


def test_cache_that_cannot_be_written_costs_nothing_but_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(latency_table, "_cache_folder", lambda: blocked / "latency")
    table = LatencyTable(1, 8, 1.0, 1.0, tuple(tuple(map(float, u.counts)) for u in UNITS))
    assert cached_table({}, UNITS, lambda: table) == table


def test_table_of_one_gpu_is_not_taken_for_that_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_table, "_cache_folder", lambda: tmp_path)
    ms = tuple(tuple(float(n) for n in u.counts) for u in UNITS)
    plain = latency_table.describe_hardware()
    for number, gpu in enumerate([None, "a", "b", "a"]):
        told = {**plain, **({"gpu": gpu} if gpu else {})}
        monkeypatch.setattr(latency_table, "describe_hardware", lambda told=told: told)
        found = cached_table({}, UNITS, lambda number=number: LatencyTable(1, 8, 9.0, float(number + 1), ms))  # type: ignore[misc]
        assert found.model_ms == (2.0 if number == 3 else number + 1)
