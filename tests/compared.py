"""A verdict made by hand, and a workflow's steps: for tests of compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from axformer_onnx.gates import Gate, Ratio, Verdict
from axformer_onnx.records import Interval

WORKFLOW = Path(__file__).parents[1] / "docs" / "ci" / "model-gate.yml"


def gate(outcome: str, name: str = "max-drop", **changes: Any) -> Gate:
    """One with an interval of any sort."""
    given = {
        "what": "drop of accuracy",
        "at": "",
        "allowed": 0.5,
        "measured": Interval(1.0, 0.25, 1.75, 0.9),
        "why": "so it is",
    }
    return Gate(name=name, outcome=outcome, error=0.05, **{**given, **changes})  # type: ignore[arg-type]


def verdict(*gates: Gate, **changes: Any) -> Verdict:
    """Of these gates."""
    given: dict[str, Any] = {
        "task": "mnli", "metric": "accuracy", "rows": 872, "baseline": "old/model.onnx", "candidate": "new/model.onnx",
        "figures": (("", "old", "new"), ("accuracy", "90.00", "89.00")), "error_rate": 0.05, "strict": False,
        "ratios": (
            Ratio("accuracy", "score", 0.99, extra="90.00 -> 89.00"),
            Ratio("speed, 1 x 32", "speed", 1.25, 1.2, 1.3),
            Ratio("file size", "size", 0.5, bigger_is_better=False),
        ),
    }  # fmt: skip
    return Verdict(gates=gates, **{**given, **changes})


def workflow() -> dict[str, Any]:
    """The workflow of docs/ci, parsed."""
    parsed: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    return parsed
