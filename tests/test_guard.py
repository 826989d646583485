"""The comparing part of bench/: planted changes are found, noise is not, and only what follows from code and seed fails."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))

from guard import EXAMPLE, limits_broken
from guarding import growth, searches, startup
from guarding.counted import CountedClock, counted_speeds
from guarding.figures import Figure, count, packed, seconds, unpacked
from guarding.moves import Move, is_alike, moves, table

from axformer_onnx.runtime import run_once
from axformer_onnx.scoring import Machine
from axformer_passes.apply import apply_plan
from axformer_passes.blocks import macs
from axformer_passes.io import load_model
from axformer_passes.plan import Plan
from axformer_passes.probe import TokenSequence
from axformer_passes.recognise import examine

BENCH = Path(__file__).resolve().parents[1] / "bench"
ROWS = 872
HARDWARE = {"cpu": "A CPU", "cores_usable": 2, "instructions": ["avx2"], "onnxruntime": "1.32.0"}


def only(before: Figure, now: Figure) -> Move:
    """The one move."""
    (found,) = moves([before], [now])
    return found


def answered(right: Any, name: str = "accuracy") -> Figure:
    """A quality."""
    value = 100 * float(np.mean(right))
    return Figure(name, value, "points", "higher", decisive=True, rows="abc", right=packed(np.asarray(right)))


def ratio(value: float, half: float, **rest: Any) -> Figure:
    """Times as fast, with an interval of `half` to either side, as parts."""
    return Figure("faster", value, "x", "higher", low=value * (1 - half), high=value * (1 + half), **rest)


def result(created: str, figures: list[Figure], **hardware: Any) -> dict[str, Any]:
    """What bench/guard.py writes."""
    about = {"hardware": {**HARDWARE, **hardware}, "options": {"effort": "low"}, "versions": {}}
    return {**about, "created": created, "figures": [one.to_json() for one in figures]}


@pytest.mark.parametrize("name", ["candidates evaluated", "size"])
def test_one_more_of_what_is_counted_is_worse_and_fails(name: str) -> None:
    found = only(count(name, 1000), count(name, 1001))
    assert (found.verdict, found.is_failure) == ("worse", True)
    better = only(count(name, 1001), count(name, 1000))
    assert (better.verdict, better.is_failure) == ("better", False)


def test_a_count_may_move_within_its_own_tolerance() -> None:
    assert only(count("modules", 100, noise=0.05), count("modules", 104, noise=0.05)).verdict == "as before"
    assert only(count("modules", 100, noise=0.05), count("modules", 120, noise=0.05)).is_failure


def test_what_was_not_there_and_now_is_counts_as_worse() -> None:
    assert only(count("heavy packages", 0), count("heavy packages", 1)).is_failure
    assert only(count("heavy packages", 0), count("heavy packages", 0)).verdict == "as before"


def test_a_planted_drop_in_quality_fails() -> None:
    generator = np.random.default_rng(0)
    right = generator.random(ROWS) < 0.9
    worse = right.copy()
    worse[np.flatnonzero(right)[:20]] = False
    found = only(answered(right), answered(worse))
    assert (found.verdict, found.is_failure, found.note) == ("worse", True, "20 rows answered otherwise")
    assert only(answered(worse), answered(right)).verdict == "better"


def test_other_answers_of_equal_quality_do_not_fail() -> None:
    """As many repaired as broken, up to chance: 100 pairs of results with 12 qualities each, 5 % may be called different."""
    generator, alarms = np.random.default_rng(1), 0
    for _ in range(100):
        before, now = [], []
        for point in range(12):
            right = generator.random(ROWS) < 0.9
            other = np.where(generator.random(ROWS) < 0.05, generator.random(ROWS) < 0.9, right)
            before.append(answered(right, str(point)))
            now.append(answered(other, str(point)))
        alarms += any(move.verdict != "as before" for move in moves(before, now))
    assert alarms <= 5, f"{alarms} of 100"


def test_quality_on_other_rows_is_not_compared() -> None:
    right = np.ones(ROWS, dtype=bool)
    found = only(answered(right), dataclasses.replace(answered(~right), rows="def"))
    assert (found.verdict, found.is_failure) == ("not comparable", False)


def test_which_rows_were_right_survives_being_written() -> None:
    right = np.random.default_rng(2).random(ROWS) < 0.5
    read = unpacked(json.loads(json.dumps(packed(right))))
    assert (read[:ROWS] == right).all() and not read[ROWS:].any()


def test_a_ratio_moves_when_its_intervals_say_so_and_never_fails() -> None:
    assert only(ratio(2.0, 0.03), ratio(1.95, 0.03)).verdict == "as before"
    slower = only(ratio(2.0, 0.03), ratio(1.8, 0.03))
    assert (slower.verdict, slower.is_failure) == ("worse", False)


def test_ratios_that_differ_by_chance_alone_are_as_before() -> None:
    generator, sigma = np.random.default_rng(3), 0.02
    drawn = 2.0 * np.exp(generator.normal(0, sigma, (1000, 2)))
    said = [only(ratio(a, 1.96 * sigma), ratio(b, 1.96 * sigma)).verdict != "as before" for a, b in drawn.tolist()]
    assert 0.02 < np.mean(said) < 0.08  # half widths of 95 %, squared and added: 5 % of pairs


def test_a_disturbed_figure_is_compared_with_nothing() -> None:
    found = only(ratio(2.0, 0.01), ratio(1.0, 0.01, reliable=False))
    assert (found.verdict, found.is_failure) == ("not comparable", False)
    assert found.note == "disturbed now"


def test_times_that_are_taken_often_move_beyond_their_interval_and_the_days_noise() -> None:
    generator = np.random.default_rng(4)
    taken = 0.08 * np.exp(generator.normal(0, 0.1, (3, 21)))
    before, again, slower = (seconds("--help", list(x)) for x in (taken[0], taken[1], 1.5 * taken[2]))
    assert only(before, again).verdict == "as before"
    found = only(before, slower)
    assert (found.verdict, found.is_failure) == ("worse", False)


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    made = [seconds("x", list(generator.exponential(1.0, 21))) for _ in range(2000)]
    held = np.mean([(one.low or 0) <= np.log(2) <= (one.high or 0) for one in made])
    assert 0.94 < held < 0.99


def test_what_is_gone_fails_if_it_was_counted_and_what_is_new_does_not() -> None:
    gone, new = moves([count("a / work", 3)], [count("a / other", 3)])[::-1]
    assert (gone.verdict, gone.is_failure) == ("gone", True)
    assert (new.verdict, new.is_failure) == ("new", False)
    faster = dataclasses.replace(ratio(2.0, 0.1), name="a / faster")
    assert not moves([faster], [count("a / other", 3)])[-1].is_failure


def test_what_only_one_result_measured_is_left_out() -> None:
    before = [count("sst2 / size", 3), count("start-up / modules", 3)]
    assert [move.name for move in moves(before, [count("start-up / modules", 3)])] == ["start-up / modules"]
    assert moves(before, [count("passes / exponent", 1)]) == []


@pytest.mark.parametrize(
    "change", [{"cpu": "B"}, {"cores_usable": 4}, {"instructions": ["avx2", "avx512f"]}, {"onnxruntime": "1.33.0"}]
)
def test_another_machine_is_not_alike(change: dict[str, Any]) -> None:
    assert not is_alike(result("1", []), result("2", [], **change))
    assert is_alike(result("1", []), result("2", [], onnxruntime="1.32.1", memory_bytes=7))


def test_a_search_of_another_effort_is_not_alike() -> None:
    assert not is_alike(result("1", []), {**result("2", []), "options": {"effort": "high"}})


def test_the_table_names_what_fails() -> None:
    text = table(moves([count("work", 100), ratio(2.0, 0.01)], [count("work", 110), ratio(1.0, 0.01)]))
    lines = text.splitlines()
    assert lines[1].split() == ["work", "100", "110", "+10.0", "%", "worse", "(fails)"]
    assert lines[2].endswith("-50.0 %  worse")


def moved(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """bench/moved.py as a process."""
    command = [sys.executable, str(BENCH / "moved.py"), "--results", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_moved_takes_the_last_result_of_a_like_machine_and_fails_by_its_exit_code(tmp_path: Path) -> None:
    folder = tmp_path / "guard"
    folder.mkdir()
    for created, work, cpu in (("2026-01", 90, "A CPU"), ("2026-02", 100, "A CPU"), ("2026-03", 5, "B")):
        written = json.dumps(result(created, [count("work", work)], cpu=cpu))
        (folder / f"{created}.json").write_text(written, encoding="utf-8")
    new = tmp_path / "new.json"
    for work, code in ((100, 0), (101, 1), (99, 0)):
        new.write_text(json.dumps(result("2026-04", [count("work", work)])), encoding="utf-8")
        done = moved(folder, str(new))
        assert done.returncode == code, done
        assert "2026-02 -> 2026-04" in done.stdout
    assert "nothing that follows from code and seed got worse" in done.stdout


def test_moved_says_so_where_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    done = moved(tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("nothing to compare with")
    (tmp_path / "broken.json").write_text("{}", encoding="utf-8")
    done = moved(tmp_path)
    assert done.returncode == 1 and "expected a result of `python bench/guard.py --json FILE`" in done.stderr


# -- what is measured -------------------------------------------------------------------------------------------------


def test_prices_are_the_multiply_accumulates_of_the_graphs() -> None:
    model = load_model(EXAMPLE.model)
    examined = examine(model, run_once)
    plan = Plan().without_heads(0, [0]).without_neurons(1, range(64))
    clock = CountedClock(model, examined, Plan(), Machine(), (1, 16), TokenSequence(words=range(5, 50)), 0)
    hard = Plan().with_hard_attention(2, 4)
    found = clock.times([("source", EXAMPLE.model), ("less", plan), ("hard", hard)], lambda done, of: None)
    counted = macs(model, run_once, 1, 16), macs(apply_plan(model, plan, run_once), run_once, 1, 16)
    assert found.holds and found.ms * 1e6 == counted[0] and found.parts["source"] == 1.0
    assert found.parts["less"] == counted[1] / counted[0] < 1 < found.parts["hard"]
    assert not any(found.errors.values())


def test_a_guarded_search_measures_no_time_and_scores_its_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_folder = pytest.importorskip("tiny_folder", reason="needs the [export] extra (torch, transformers)")

    def timed(*_: Any, **__: Any) -> Any:
        raise AssertionError("a latency was measured")

    monkeypatch.setattr("axformer_onnx.scoring.evaluation.compare_latency", timed)
    monkeypatch.setattr("axformer_onnx.scoring.plan_clock.compare_latency", timed)
    case = searches.Case("tiny", tiny_folder.make_folder(tmp_path / "model") / "model.onnx", "mnli", length=8)
    found = searches.searched(case, tmp_path / "out", profiled=False)
    assert found["points"] > 1 and found["work"] > found["evaluations"] > 0 and not found["calls"]
    monkeypatch.setattr(searches, "LADDER", (1.5,))
    graphs = searches.built(case, tmp_path / "out", tmp_path / "graphs")
    figures = {figure.name: figure for figure in searches.scored(case, graphs)}
    assert set(graphs) == {"source", "1.5x"} and len(figures) == 3 * len(graphs)
    for name, path in graphs.items():
        quality = figures[f"tiny / {name} / accuracy"]
        assert quality.right is not None and quality.low is not None and quality.high is not None
        assert quality.value == pytest.approx(100 * unpacked(quality.right).sum() / 60, abs=0.001)
        assert quality.low <= quality.value - figures["tiny / source / accuracy"].value <= quality.high
        assert figures[f"tiny / {name} / size"].value == path.stat().st_size
    most = "tiny / source / multiply-accumulates"
    assert figures["tiny / 1.5x / multiply-accumulates"].value <= figures[most].value / 1.5


def test_counting_leaves_nothing_behind() -> None:
    from axformer_onnx.search.compensated import latency_table, preparation

    before = latency_table.PlanClock, preparation.cached_table
    with counted_speeds():
        assert latency_table.PlanClock is CountedClock
    assert (latency_table.PlanClock, preparation.cached_table) == before


def test_import_times_are_added_up_by_package() -> None:
    text = "\n".join(
        [
            "import time: self [us] | cumulative | imported package",
            "import time:       100 |        100 |     numpy.core",
            "import time:       400 |        500 |   numpy",
            "import time:       250 |        750 | click",
        ]
    )
    assert startup.by_package(text) == {"numpy": (2, 0.0005), "click": (1, 0.00025)}


def test_help_imports_nothing_heavy() -> None:
    assert not startup.HEAVY.intersection(startup.imported((*startup.COMMAND, "--help")))


def test_a_process_that_fails_has_no_time() -> None:
    with pytest.raises(RuntimeError, match="exit code 3"):
        startup.started((sys.executable, "-c", "raise SystemExit(3)"))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_the_exponent_is_that_of_the_cost(power: float) -> None:
    assert growth.exponent({n: 7.0 * n**power for n in growth.LAYERS}) == pytest.approx(power)
    flat_at_first = {n: float(max(n, 8)) for n in growth.LAYERS}
    assert growth.exponent(flat_at_first) == pytest.approx(1.0)


def test_calls_are_the_same_in_two_runs() -> None:
    once, again = (growth.counted("examine", (1, 2)) for _ in range(2))
    assert once == pytest.approx(again, rel=0.02) and once[2] > once[1]


def test_limits_that_follow_from_the_code_fail_and_a_slow_start_is_only_said() -> None:
    broken = limits_broken(
        [
            count("passes / apply / exponent of calls", 1.4),
            Figure("start-up / --help / heavy packages", 1, "", why="numpy"),
            Figure("x / search / found again", 0.0, "", "higher"),
            Figure("start-up / --help / wall", 0.3, "s"),
            Figure("start-up / --help / processor", 0.1, "s"),
        ]
    )
    assert list(broken.values()) == [True, True, True, False]
    assert "--help imports numpy" in list(broken)[1] and "0.10 s of the processor" in list(broken)[3]
    assert not limits_broken([count("passes / apply / exponent of calls", 1.0)])
