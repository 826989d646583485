"""The options of compare: the gates, how often they may be wrong, and where the verdict is written."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from axformer_onnx.errors import UsageError
from axformer_onnx.options.base import flag, option
from axformer_onnx.options.shared import ANY_MODEL, RunOptions, SampleOptions, TaskOptions

GATES = ("max_drop", "max_divergence", "min_speedup", "max_size_ratio")


class CompareOptions(TaskOptions, RunOptions, SampleOptions):
    """Two models, and what the second may not fall short of. A gate that is None is not asked for."""

    baseline: Path = option(help=f"What the candidate is held against. {ANY_MODEL}", positional=True)
    candidate: Path = option(help=f"The model in question. {ANY_MODEL}", positional=True)
    max_drop: float | None = option(
        None, "Gate: CANDIDATE scores within this many points of BASELINE, in the task's metric.", ge=0
    )
    max_divergence: float | None = option(
        None,
        "Gate: mean divergence of CANDIDATE's outputs from BASELINE's, a row (classification: KL in nats).",
        ge=0,
    )
    min_speedup: float | None = option(
        None,
        "Gate: CANDIDATE is at least this many times as fast as BASELINE, at every shape. 0.95 lets a slowdown of 5 % pass.",
        gt=0,
    )
    max_size_ratio: float | None = option(
        None, "Gate: CANDIDATE's file is at most this many times as large as BASELINE's.", gt=0
    )
    strict: bool = option(False, "A gate that is undecided fails, too.")
    error_rate: float = option(
        0.05, "Chance that any gate fails that holds, and likewise that any passes that does not.", gt=0, lt=0.5
    )
    repetitions: int = option(
        8, "At most so many measurements of speed, each with new sessions; fewer where fewer decide it.", ge=1, le=1024
    )
    clock: Literal["wall", "cpu"] = option(
        "wall",
        "cpu: speeds are of CPU time on one thread, which other processes hardly move: for CI machines that are never free.",
    )
    junit: Path | None = option(None, "Write JUnit XML: a test case a gate.")
    markdown: Path | None = option(None, "Add the verdict to this file as Markdown, as $GITHUB_STEP_SUMMARY wants it.")
    benchmark: Path | None = option(
        None, "Write ratios for github-action-benchmark (tool: customBiggerIsBetter); never absolute times."
    )
    bmf: Path | None = option(None, "Write ratios in Bencher Metric Format (bencher run --adapter json).")

    @model_validator(mode="after")
    def _asked(self) -> CompareOptions:
        if all(getattr(self, name) is None for name in GATES):
            said = ", ".join(map(flag, GATES))
            raise UsageError(f"no gate was named; give one of {said}. To look at two models without a gate: score")
        if self.clock == "cpu" and self.provider != "cpu":
            raise UsageError(f"--clock cpu is for --provider cpu; what {self.provider} computes takes no CPU time")
        return self
