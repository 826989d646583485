"""What does a run do more than once? Calls and seconds of the costly functions in one `optimize`.

    python bench/work.py [--json FILE] MODEL --task T ...        the arguments of `axformer-onnx optimize`

Counted by cProfile, in the main thread: `examine` (recognition of a graph), models read from disk, plans applied, read-outs
narrowed, sessions made, texts tokenised. Seconds are those within a call, callees included; the profiler itself makes a run a
little slower.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import sys
import time
from pathlib import Path
from typing import Any

from axformer_onnx.cli import main

COUNTED = {
    "examine": "recognise/examination.py",
    "load_model": "io/files.py",
    "prepared": "prepare/walkable.py",
    "apply_plan": "axformer_passes/apply.py",
    "narrow_readout": "readout/narrowing.py",
    "make_session": "runtime/sessions.py",
    "run_session": "runtime/sessions.py",
    "encode": "data/encoding.py",
    "score_file": "scoring/evaluation.py",
    "verify": "result/verification.py",
}
"""Function -> the end of its file's name."""


def counted(profile: cProfile.Profile) -> dict[str, dict[str, float]]:
    """{function: {calls, seconds}}, of those that were called."""
    found: dict[str, dict[str, float]] = {}
    statistics: Any = pstats.Stats(profile)
    for (file, _, name), (_, calls, _, seconds, _) in statistics.stats.items():
        if name in COUNTED and file.endswith(COUNTED[name]):
            found[name] = {"calls": calls, "seconds": round(seconds, 2)}
    return {name: found[name] for name in COUNTED if name in found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], add_help=False)
    parser.add_argument("--json", type=Path)
    own, arguments = parser.parse_known_args()
    profile, started = cProfile.Profile(), time.perf_counter()
    sys.argv = ["axformer-onnx", "optimize", *arguments]
    try:
        profile.runcall(main)
    except SystemExit as stop:
        if stop.code:
            raise
    record = {"seconds": round(time.perf_counter() - started, 1), "functions": counted(profile)}
    for name, figures in record["functions"].items():  # type: ignore[attr-defined]
        print(f"{name:16} {figures['calls']:7} calls {figures['seconds']:9.2f} s")
    print(f"{'the run':16} {'':13} {record['seconds']:9.1f} s")
    if own.json:
        own.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
