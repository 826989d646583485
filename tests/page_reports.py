"""Reports for the tests of report.html: one with a frontier, and one whose every text is an attack on the page."""

from __future__ import annotations

import json
from typing import Any

from test_report import report

from axformer_onnx.result.report import IntervalRecord, Report
from axformer_onnx.result.report.build import histogram_record
from axformer_onnx.result.report.record import CompensationRecord, PointRecord

ATTACK = "<img src='http://elsewhere.example/x' onerror=alert(1)><script>alert(2)</script></style>&\"\x1b[2J"


def point(value: float, score: float, **changes: Any) -> PointRecord:
    """A point of the frontier whose source scores 80."""
    fields: dict[str, Any] = {
        "folder": f"frontier/{value:.2f}x", "predicted": value - 0.05, "score": score, "drop": 80.0 - score, "noise": 0.5,
        "speedup": IntervalRecord(value=value, low=value - 0.1, high=value + 0.1), "judged_drop": 80.2 - score,
        "divergence": 0.01, "size_bytes": int(80e6 / value), "chosen": False,
    }  # fmt: skip
    return PointRecord(**{**fields, **changes})


POINTS = (point(1.2, 80.0), point(1.5, 79.9, chosen=True), point(2.5, 77.0))


def frontier_report(*points: PointRecord, **changes: Any) -> Report:
    """A compensated run with these points, and a histogram of its latency."""
    found = CompensationRecord(
        goal="--max-drop 0.5", effort="low", reached=True, shape="1 x 32",
        rows={"calibration": 100, "mixed": 0, "sweep": 50, "races": 80},
        evaluations=40, hard_asked=0, work=1000, plain_work=6000, frontier=list(points or POINTS),
    )  # fmt: skip
    before = report()
    histogram = histogram_record([5.0 + i / 50 for i in range(40)], [4.0 + i / 50 for i in range(40)])
    latency = before.latency[0].model_copy(update={"rounds": 40, "rounds_kept": 38, "histogram": histogram})
    search = before.search.model_copy(update={"kind": "compensated", "trials": [], "stage_scores": [], "accepted": 0})
    fields: dict[str, Any] = {
        "compensation": found,
        "search": search,
        "latency": [latency],
        "options": {"task": "mrpc"},
    }
    return report(**{**fields, **changes})


def hostile_report() -> Report:
    """Every text of a record that has a frontier and trials is ATTACK, but for the few words that the format fixes."""
    whole = frontier_report(
        point(1.5, 79.9, chosen=True, reliable=False), search=report().search, warnings=["w"], options={"data": "x"}
    )
    texts = {"format", "attention", "feed_forward", "created"}

    def struck(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            named = name in ("versions", "hardware", "metrics", "options")
            return {
                f"{key} {ATTACK}" if named and name != "metrics" else key: struck(one, key)
                for key, one in value.items()
            }
        if isinstance(value, list):
            return [struck(one, name) for one in value]
        return ATTACK if isinstance(value, str) and name not in texts else value

    return Report.model_validate(struck(json.loads(whole.dumps())))
