"""The report: its record survives JSON, and its two forms say what the record says."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from search_fake import anatomy

from axformer_onnx.errors import AxformerError
from axformer_onnx.records import Interval
from axformer_onnx.result.report.build import latency_records
from axformer_onnx.result.report.html_form import html
from axformer_onnx.result.report.layers import bar, head_picture, layer_records
from axformer_onnx.result.report.markdown_form import markdown
from axformer_onnx.result.report.record import (
    ComparisonRecord,
    DataRecord,
    IntervalRecord,
    LatencyRecord,
    ModelRecord,
    Report,
    SearchRecord,
    StageRecord,
    TrialRecord,
)
from axformer_onnx.result.report.terminal import print_report
from axformer_onnx.result.report.words import change, count, headline
from axformer_onnx.runtime import LatencyRow
from axformer_onnx.runtime.foreign_load import Load
from axformer_passes.plan import Hard, Plan

PLAN = Plan(
    heads={0: frozenset({1, 3})},
    neurons={0: frozenset(range(8))},
    attention_blocks=frozenset({2}),
    feed_forward_blocks=frozenset({1}),
    hard_attention={1: Hard(30)},
)


def model(score: float, size: int, macs: int | None = 900_000_000) -> ModelRecord:
    return ModelRecord(
        sha256="ab" * 32,
        size_bytes=size,
        parameters=size // 4,
        macs=macs,
        score=score,
        metrics={"accuracy": score, "f1": score + 1},
        loss=0.61234,
        single_class=None,
    )


def comparison(value: float, p_value: float | None = 0.71, **flags: bool) -> ComparisonRecord:
    interval = IntervalRecord(value=value, low=value - 0.75, high=value + 0.75)
    verdict = {"worse": False, "better": False, **flags}
    return ComparisonRecord(difference=interval, test="exact McNemar", p_value=p_value, **verdict)


def report(plan: Plan = PLAN, **changes: Any) -> Report:
    trials = [
        TrialRecord(
            index=0,
            element="layer 2 attention block",
            loss=0.6,
            best=0.61,
            accepted=True,
            reason="a | b passed",
        ),
        TrialRecord(
            index=1,
            element="layer 2 head 0",
            loss=None,
            best=0.6,
            accepted=False,
            reason="the loss is not a finite number",
        ),
    ]
    search = SearchRecord(
        kind="robust",
        seed=3,
        k=30,
        trials=trials,
        accepted=1,
        chosen_stage=1,
        stage_scores=[
            StageRecord(stage=0, score=80.0, rise=0.0, noise=0.0),
            StageRecord(stage=1, score=80.5, rise=-0.01, noise=0.02),
        ],
        interrupted=False,
        resumed_trials=0,
        seconds=12.5,
    )
    latency = LatencyRecord(
        batch=1,
        length=32,
        source_p50_ms=5.0,
        source_p95_ms=6.0,
        candidate_p50_ms=4.0,
        candidate_p95_ms=5.0,
        speedup=IntervalRecord(value=1.25, low=1.2, high=1.3),
    )
    fields: dict[str, Any] = {
        "created": "2025-01-01T00:00:00+00:00",
        "task": "mrpc",
        "metric": "accuracy",
        "labels": "Labels: not_equivalent = logit 0, equivalent = logit 1.",
        "model": "run/model.onnx",
        "majority_rate": 66.5,
        "source": model(79.25, 90_900_000),
        "candidate": model(79.08, 80_000_000, 700_000_000),
        "comparison": comparison(-0.17),
        "control": model(70.0, 80_000_000),
        "control_comparison": comparison(-9.25, 1e-9, worse=True),
        "control_seed": 3,
        "latency": [latency],
        "macs_shape": "1 x 32",
        "layers": layer_records(anatomy(), plan),
        "search": search,
        "data": [DataRecord(role="report", source="validation.jsonl", rows=1725, sha256="cd" * 32)],
        "notes": ["2 rows were truncated at 128 tokens"],
        "warnings": [],
        "provider": "cpu",
        "threads": None,
        "versions": {"onnxruntime": "1.32.0"},
        "hardware": {"cpu": "a processor"},
    }
    return Report(**{**fields, **changes})


def shown(one: Report, width: int = 140) -> str:
    stream = io.StringIO()
    print_report(one, Console(file=stream, width=width))
    return stream.getvalue()


def test_report_survives_json(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(report().dumps())
    assert Report.load(path) == report()
    assert json.loads(path.read_text())["format"] == "axformer-report/1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a report of format axformer-report/1: the file: Invalid JSON"),
        ("{}", "created: Field required"),
        (report().dumps().replace("axformer-report/1", "axformer-report/9"), "format: Input should be"),
        (report().dumps().replace('"threads": null', '"threads": "many"'), "threads: Input should be"),
    ],
)
def test_file_that_is_no_report_is_refused_by_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(AxformerError, match=message):
        Report.load(path)


def test_loss_that_is_not_finite_stays_valid_json() -> None:
    text = report(source=model(50.0, 1).model_copy(update={"loss": float("nan")})).dumps()
    assert json.loads(text, parse_constant=lambda c: pytest.fail(c))["source"]["loss"] is None


def test_layers_say_what_the_plan_removes() -> None:
    first, second, third = layer_records(anatomy(), PLAN)
    assert (first.heads_removed, first.neurons_removed, first.attention) == ([1, 3], 8, "kept")
    assert (second.feed_forward, second.hard_attention) == ("removed", "k=30 truncated")
    assert third.attention == "removed"
    assert head_picture(first) == "█░█░" and head_picture(third) == "░░░░"


@pytest.mark.parametrize(
    ("kept", "total", "full"), [(0, 100, 0), (1, 100, 1), (50, 100, 6), (99, 100, 11), (100, 100, 12)]
)
def test_bar_is_empty_or_full_only_where_the_part_is(kept: int, total: int, full: int) -> None:
    assert bar(kept, total) == "█" * full + "░" * (12 - full)


@pytest.mark.parametrize("form", [markdown, shown])
def test_both_forms_show_figures_test_interval_control_and_majority_rate(form: Any) -> None:
    text = form(report())
    for words in (
        "79.25",
        "79.08",
        "-0.17 points [-0.92, +0.58], p = 0.71, exact McNemar",
        "1.25x [1.20, 1.30]",
        "-12.0 %",
        "-22.2 %",
        "a random plan of equal size (seed 3) scores 70.00",
        "66.50",
        "2 of 4",
        "block removed",
        "k=30 truncated",
        "truncated at 128",
        "Labels: not_equivalent = logit 0",
        "not significantly different from the source",
    ):
        assert words in text, words


def test_markdown_lists_every_candidate_and_its_tables_are_even() -> None:
    text = markdown(report())
    assert "| 1 | layer 2 head 0 | - | rejected | the loss is not a finite number |" in text
    assert r"a \| b passed" in text
    for block in text.split("\n\n"):
        rows = [line.replace(r"\|", "") for line in block.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1


def test_warnings_are_shown_before_the_figures() -> None:
    text = markdown(report(warnings=["every row was given the class neutral"]))
    assert text.index("**Warning.** every row was given") < text.index("## Before and after")
    assert "Warning: every row was given" in shown(report(warnings=["every row was given the class neutral"]))


def test_report_of_a_search_that_found_nothing_says_so() -> None:
    search = report().search
    none = search.model_copy(update={"accepted": 0, "chosen_stage": 0})
    one = report(Plan(), search=none, control=None, control_comparison=None)
    assert headline(one) == ("Nothing was removed: none of 2 trials was accepted. The graph is the source, cleaned up.")
    assert "Nothing was removed" in shown(one) and "Control" not in markdown(one)
    fell = report(Plan(), search=search.model_copy(update={"chosen_stage": 0}))
    assert "1 of 2 trials were accepted, but no stage held its score on the select rows" in headline(fell)


def test_interrupted_search_is_said() -> None:
    search = report().search.model_copy(update={"interrupted": True})
    assert "interrupted: run the same command again to go on" in markdown(report(search=search))


@pytest.mark.parametrize("flag", ["worse", "better"])
def test_significant_difference_is_said(flag: str) -> None:
    one = report(comparison=comparison(-3.0, 0.001, **{flag: True}))
    assert f"significantly {flag} than the source" in headline(one)


def test_numbers_are_short() -> None:
    assert [count(x) for x in (812, 22_713_216, 1.36e9, None)] == ["812", "22.71 M", "1.36 G", "-"]
    assert [change(100, 87.7), change(5, 5), change(0, 5)] == ["-12.3 %", "unchanged", ""]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (1.2, 1.3, "1.25x [1.20, 1.30] as fast at 1 x 32"),
        (0.6, 2.2, "latency not measurably different"),
        (0.7, 0.9, "slower"),
    ],
)
def test_headline_claims_only_the_speed_that_its_interval_bears_out(low: float, high: float, words: str) -> None:
    latency = report().latency[0].model_copy(update={"speedup": IntervalRecord(value=1.25, low=low, high=high)})
    assert words in headline(report(latency=[latency]))


def lost(why: str, **changes: Any) -> Any:
    """The report's latency, disturbed."""
    return report().latency[0].model_copy(update={"reliable": False, "why": why, **changes})


@pytest.mark.parametrize("form", [headline, markdown, shown, html])
def test_a_speed_that_could_not_be_measured_is_said_in_the_place_of_the_number(form: Any) -> None:
    text = " ".join(form(report(latency=[lost("other processes kept 1.9 of 2 cores busy")])).split())
    assert "speed not measured: other processes kept 1.9 of 2 cores busy" in text
    assert "1.25x" not in text
    assert form is headline or "5.00 ms, disturbed" in text


def test_shapes_that_were_measured_keep_their_speed_beside_one_that_was_not() -> None:
    one = headline(report(latency=[report().latency[0], lost("a neighbour", batch=8)]))
    assert "1.25x [1.20, 1.30] as fast at 1 x 32; speed at 8 x 32 not measured: a neighbour" in one


@pytest.mark.parametrize("form", [headline, markdown, shown, html])
def test_where_no_speed_was_measured_that_of_cpu_time_is_said_as_such(form: Any) -> None:
    by_cpu = IntervalRecord(value=1.31, low=1.22, high=1.41)
    text = " ".join(form(report(latency=[lost("a neighbour", cpu_speedup=by_cpu)])).split())
    assert "speed not measured: a neighbour; in CPU time, on one thread, 1.31x [1.22, 1.41]" in text


def test_the_record_says_whether_a_latency_holds_and_why_not() -> None:
    (found,) = json.loads(report(latency=[lost("a neighbour")]).dumps())["latency"]
    assert (found["reliable"], found["why"]) == (False, "a neighbour")
    (found,) = json.loads(report().dumps())["latency"]
    assert (found["reliable"], found["why"]) == (True, "")


def test_rows_become_records_with_what_was_seen_of_the_machine() -> None:
    ratio = Interval(2.0, 1.9, 2.1, reliable=False, why="a neighbour")
    load = Load(cores=2, others=0.512)
    rows = [
        LatencyRow("source", 1, 32, 10.0, 12.0, None, 50, 20, False, "a neighbour", load),
        LatencyRow("result", 1, 32, 5.0, 6.0, ratio, 50, 9, False, "a neighbour", load),
    ]
    (found,) = latency_records(rows)
    assert (found.reliable, found.why, found.rounds, found.rounds_kept) == (False, "a neighbour", 50, 9)
    assert (found.others_cores, found.cores) == (0.51, 2)
