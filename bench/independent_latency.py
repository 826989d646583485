"""Do our latency figures agree with a clock that is not ours? The same two graphs under MLPerf's LoadGen.

    python bench/independent_latency.py [SOURCE RESULT] [--length 32] [--batch 8] [--repetitions 10] [--seconds 2] [--threads N]
                                        [--json FILE]

Without graphs: the example model and its half. In every repetition LoadGen (`pip install --group bench`) drives sessions of
its own, SingleStream (the median of one row) and Offline (rows a second, in batches); the graph that comes first in one repetition
comes second in the next. Right after it our estimator times both graphs, as `score` and `optimize` do. Each runs in a fresh
process; they share no code, not even the tokens.

Printed of both: times as fast, with the interval over repetitions (Student's t on logarithms); what ours is of LoadGen's, paired
by repetition; how many of the intervals that ours stated reach that of LoadGen. They agree where the interval of their quotient
holds 1.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from busy import EXAMPLE, halved
from linear import apart
from record import stamped, write

SCENARIOS = ("SingleStream", "Offline")
LEVEL = 0.95


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("graphs", type=Path, nargs="*", help="SOURCE RESULT; default: the example and its half")
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch in Offline")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each of LoadGen's tests")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--vocabulary", type=int, default=500, help="token ids stay below it")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    if len(a.graphs) not in (0, 2) or a.repetitions < 2:
        parser.error("name two graphs or none, and at least 2 --repetitions")
    try:
        import mlperf_loadgen  # noqa: F401
    except ImportError:
        print(
            "LoadGen is not installed, nothing was measured: pip install mlcommons-loadgen (wheels up to Python 3.13)"
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        graphs = a.graphs or [EXAMPLE, halved(EXAMPLE, Path(folder) / "half.onnx")]
        runs = [
            repeated(a, dict(zip(("source", "result"), graphs, strict=True)), number) for number in range(a.repetitions)
        ]
    result = stamped({"command": " ".join(sys.argv[1:]), "loadgen": _version(), **summary(runs), "runs": runs})
    print(table(result))
    write(a.json, result)


def repeated(a: argparse.Namespace, graphs: dict[str, Path], number: int) -> dict[str, Any]:
    """One repetition: {"loadgen": {scenario: {graph: ms}}, "ours": {scenario: {...}}}."""
    order = list(graphs) if number % 2 == 0 else list(graphs)[::-1]
    paths = {name: str(graphs[name]) for name in order}
    theirs = apart(_loadgen, paths, a.length, a.batch, a.vocabulary, a.threads, a.seconds, number)
    found = {"loadgen": theirs, "ours": apart(_ours, graphs, a.length, a.batch, a.vocabulary, a.threads, number)}
    print(f"repetition {number + 1}: {found}", file=sys.stderr, flush=True)
    return found


def _loadgen(*arguments: Any) -> dict[str, dict[str, float]]:
    from guarding.loadgen import measured

    return measured(*arguments)


def _ours(
    graphs: dict[str, Path], length: int, batch: int, vocabulary: int, threads: int | None, seed: int
) -> dict[str, Any]:
    from axformer_onnx.runtime import compare_latency, make_feeds, make_session

    sessions = {name: make_session(path, threads=threads) for name, path in graphs.items()}
    names = [one.name for one in sessions["source"].get_inputs()]
    shapes = dict(zip(SCENARIOS, (1, batch), strict=True))
    feeds = [
        (rows, length, make_feeds(names, rows, length, vocab_size=vocabulary, seed=seed)) for rows in shapes.values()
    ]
    lines = compare_latency(sessions, feeds, seed=seed)
    found = dict[str, Any]()
    for scenario, rows in shapes.items():
        ms = {line.model: line.p50_ms for line in lines if line.batch == rows}
        last = next(line for line in lines if line.batch == rows and line.ratio is not None)
        assert last.ratio is not None
        ratio = [last.ratio.value, last.ratio.low, last.ratio.high]
        found[scenario] = {**ms, "faster": ratio, "stated": last.reliable, "why": last.why}
    return found


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By scenario: both ratios, their quotient, milliseconds of ours as parts of LoadGen's, intervals that reach."""
    found = dict[str, Any]()
    for scenario in SCENARIOS:
        theirs = [run["loadgen"][scenario] for run in runs]
        ours = [run["ours"][scenario] for run in runs]
        stated = [one["stated"] for one in ours]
        by_them = [one["source"] / one["result"] for one in theirs]
        by_us = [one["faster"][0] for one in ours]
        loadgen = interval(by_them)
        assert loadgen is not None  # at least two repetitions
        kept = [(x, y) for x, y, holds in zip(by_us, by_them, stated, strict=True) if holds]
        quotient = interval([x / y for x, y in kept])
        reach = [one["faster"][1] <= loadgen[2] and loadgen[1] <= one["faster"][2] for one in ours if one["stated"]]
        found[scenario] = {
            "loadgen": loadgen,
            "ours": interval([x for x, _ in kept]),
            "ours / loadgen": quotient,
            "agree": None if quotient is None else quotient[1] <= 1 <= quotient[2],
            "repetitions": len(runs),
            "stated": len(kept),
            "reach": sum(reach),
            "ms, ours / loadgen": {
                name: interval([x[name] / y[name] for x, y, holds in zip(ours, theirs, stated, strict=True) if holds])
                for name in ("source", "result")
            },
        }
    return {"scenarios": found}


def interval(ratios: Sequence[float]) -> list[float] | None:
    """[geometric mean, low, high]: Student's t on logarithms; None where there are less than two."""
    if len(ratios) < 2:
        return None
    from scipy.stats import t

    logs = np.log(ratios)
    half = float(t.ppf((1 + LEVEL) / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
    mean = float(logs.mean())
    return [round(math.exp(x), 4) for x in (mean, mean - half, mean + half)]


def table(result: dict[str, Any]) -> str:
    """As Markdown."""
    hardware = result["hardware"]
    lines = [
        f"{hardware['cpu']}, {hardware['cores_usable']} cores; onnxruntime {hardware['onnxruntime']}, LoadGen {result['loadgen']}",
        "", "| scenario | LoadGen | ours | ours / LoadGen | agree | stated | of these reach LoadGen's interval |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, x in result["scenarios"].items():
        agree = {True: "yes", False: "no", None: "undecided"}[x["agree"]]
        counts = f"{x['stated']} of {x['repetitions']} | {x['reach']}"
        lines.append(
            f"| {name} | {_words(x['loadgen'])} | {_words(x['ours'])} | {_words(x['ours / loadgen'])} | {agree} | {counts} |"
        )
    for name, x in result["scenarios"].items():
        parts = ", ".join(f"{graph} {_words(one)}" for graph, one in x["ms, ours / loadgen"].items())
        lines.append(f"\n{name}, milliseconds of ours as parts of LoadGen's: {parts}.")
    return "\n".join(lines)


def _words(x: Sequence[float] | None) -> str:
    return "-" if x is None else f"{x[0]:.3f} [{x[1]:.3f}, {x[2]:.3f}]"


def _version() -> str:
    from importlib.metadata import version

    return version("mlcommons-loadgen")


if __name__ == "__main__":
    main()
