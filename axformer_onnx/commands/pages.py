"""The page of a finished run, made from its report.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from axformer_onnx.errors import RuntimeFailure, UsageError
from axformer_onnx.result import PAGE, REPORT
from axformer_passes.io import write_text

if TYPE_CHECKING:
    from axformer_onnx.result.report import Report


def read_report(run: Path) -> Report:
    """The report of the run in the folder `run`, or in that file. Raises: UsageError where there is none, AxformerError for another
    format."""
    from axformer_onnx.result.report import Report

    path = _record(run)
    if not path.is_file():
        raise UsageError(f"{run}: holds no {REPORT}; name the output folder of a finished run, or its {REPORT}")
    return Report.load(path)


def write_page(run: Path, output: Path | None = None) -> Path:
    """Write report.html of a finished run, or the file `output`; a file that is there is replaced. Returns its path.

    Raises: as `read_report`; UsageError for an output that is a folder, RuntimeFailure where it cannot be written.
    """
    from axformer_onnx.result.page import html_page

    text, path = html_page(read_report(run)), output or _record(run).with_name(PAGE)
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; name a file, for example {path / PAGE}")
    try:
        write_text(path, text)
    except OSError as error:
        raise RuntimeFailure(f"{path}: cannot be written: {error.strerror}") from None
    return path


def _record(run: Path) -> Path:
    return run / REPORT if run.is_dir() else run
