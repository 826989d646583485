"""The options of score, inspect, apply, report and export."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import InstanceOf, field_validator

from axformer_onnx.errors import UsageError
from axformer_onnx.options.base import Location, Options, option
from axformer_onnx.options.shared import ANY_MODEL, RunOptions, SampleOptions, TaskOptions
from axformer_passes.plan import Plan


class ScoreOptions(TaskOptions, RunOptions, SampleOptions):
    """One or two models, and the rows that they are scored on."""

    models: tuple[Path, ...] = option(help=f"One model, or two. {ANY_MODEL}", positional=True, metavar="MODEL [OTHER]")
    changed: int = option(5, "With --metric agreement: how many rows to show whose answer changed.", ge=0)

    @field_validator("models")
    @classmethod
    def _one_or_two(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        if not 1 <= len(value) <= 2:
            raise UsageError(f"{len(value)} models were named; score takes one or two")
        return value


class InspectOptions(SampleOptions):
    """The model to look at."""

    model: Path = option(help=ANY_MODEL, positional=True)
    length: int | None = option(None, "Tokens for counting compute; default: 128.", ge=1)


class ApplyOptions(SampleOptions):
    """A plan, the model that it was made for, and where the graph goes.

    plan   a file, a folder that holds plan.json, or a Plan
    """

    plan: Path | InstanceOf[Plan] = option(help="A plan.json, or a folder that holds one.", positional=True)
    model: Path = option(help=ANY_MODEL, positional=True)
    output: Path = option(help="A folder, or a file that ends in .onnx.", short="-o")
    overwrite: bool = option(False, "Replace what an earlier run left in the output.")


ExporterChoice = Literal["auto", "optimum", "dynamo", "torchscript", "transformers"]


class ReportOptions(Options):
    """A finished run, and where its page goes."""

    run: Path = option(help="The output folder of a run, or its report.json.", positional=True)
    output: Path | None = option(None, "The file to write; default: report.html beside report.json.", short="-o")


class ExportOptions(Options):
    """A checkpoint, and the folder that gets model.onnx."""

    checkpoint: Location = option(help="A Hugging Face checkpoint folder, or a name on the hub.", positional=True)
    out: Path = option(help="The folder to write.", positional=True)
    task: str | None = option(None, "Compare the checkpoint's labels with this task's.")
    exporter: ExporterChoice = option("auto", "Who writes the graph; transformers: version 5 or later.")
    opset: int | None = option(None, "Operator set; default: the exporter's.", ge=7)
    attention: Literal["eager", "sdpa"] | None = option(
        None, "Attention implementation; default: what transformers chooses.", cli=False
    )
    check: bool = option(True, "Compare with torch on random inputs.", cli=False)
