"""Draws the README's picture, the frontier of a run: `make picture`, or `python docs/picture.py RUN FILE.svg`."""

from __future__ import annotations

import sys
from pathlib import Path

from axformer_onnx.result.page import frontier_picture
from axformer_onnx.result.report import Report

if __name__ == "__main__":
    run, target = map(Path, sys.argv[1:])
    target.write_text(frontier_picture(Report.load(run / "report.json")), encoding="utf-8")
