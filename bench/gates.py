"""How often is a verdict of `compare` wrong, and how often does it miss?

    python bench/gates.py [--json bench/results/gates.json] [--runs 200] [--real 6]

Simulated: answers of two models with a planted drop, and a clock on simulated machines (tests/simulated_machine.py) with a planted
speed. Real: the example model against itself stored anew, against itself with a tenth more to compute, idle and beside busy loops,
and against itself without a head, on drawn rows. Everything is judged by the functions that `compare` calls. A false alarm is a
gate that fails although its figure is exactly what is allowed, which is the worst case; a miss is one that does not fail.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from busy import busy
from planted import slower, stored_anew
from record import stamped, write

from axformer_onnx.commands.comparison import compare
from axformer_onnx.commands.scored import score_models
from axformer_onnx.gates import ERROR_RATE, divergence_gate, drop_gate, share_of, speed_gates
from axformer_onnx.options import CompareOptions, make
from axformer_onnx.runtime.latency import compare_latency
from axformer_onnx.scoring import paired_answers
from axformer_onnx.tasks import Answers, metric_named

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "models" / "nli-mini"
ROWS = 872
sys.path.insert(0, str(ROOT / "tests"))

from simulated_machine import SimulatedMachine, World  # noqa: E402

WORLDS = {
    "free": World(),
    "drift": World(drift=0.15),
    "heavy tail": World(tail=0.1),
    "bursts of load": World(load=0.3, active=0.4, idle=0.8),
    "a neighbour": World(slow=(1.8, 1.8), active=0.6, idle=0.6),
    "a neighbour that slows one of them down more": World(slow=(1.8, 1.5), active=0.6, idle=0.6),
    "all of it": World(drift=0.05, tail=0.05, slow=(1.6, 1.6), load=0.1, active=0.5, idle=1.0),
}
SPEEDS = {"as fast": 1.0, "2 % slower": 1 / 1.02, "5 % slower": 1 / 1.05, "10 % slower": 1 / 1.1}
SESSIONS = 0.005
"""By which a speed moves from one pair of sessions to the next: standard deviation of its logarithm (`runtime/undisturbed`)."""


# -- simulated answers --------------------------------------------------------------------------------------------------


def accuracy(draws: int, rows: int, drop: float, differing: float, allowed: float, error: float) -> dict[str, Any]:
    """drop, differing, allowed in points: of rows, `differing` % are right for one model alone."""
    metric, generator = metric_named("classification", "accuracy"), np.random.default_rng(rows)
    only_a, only_b = (differing + drop) / 200, (differing - drop) / 200
    counts = generator.multinomial(rows, [only_a, only_b, 1 - only_a - only_b], size=draws)
    found = Counter[str]()
    for (a, b, _), times in zip(*np.unique(counts, axis=0, return_counts=True), strict=True):
        labels = np.ones(rows, dtype=np.int64)
        first, second = labels.copy(), labels.copy()
        second[:a], first[a : a + b] = 0, 0
        pair = [Answers(labels, given, np.zeros(rows), 2) for given in (first, second)]
        found[drop_gate(metric, *pair, allowed, error=error).outcome] += int(times)
    return {"rows": rows, "drop": drop, "differing": differing, "allowed": allowed, "error": error, **rates(found)}


def other_metric(draws: int, name: str, rows: int, differing: float, error: float) -> dict[str, Any]:
    """F1 or Matthews' correlation, two thirds of the rows positive; what is allowed is the true drop, by a million rows."""
    metric, generator = metric_named("classification", name), np.random.default_rng(rows)
    first, second = classes(generator, 1_000_000, differing)
    true = metric.value(first) - metric.value(second)
    found = Counter(
        drop_gate(metric, *classes(generator, rows, differing), true, error=error, seed=seed).outcome
        for seed in range(draws)
    )
    return {"metric": name, "rows": rows, "drop": true, "differing": differing, "error": error, **rates(found)}


def classes(generator: np.random.Generator, rows: int, differing: float) -> tuple[Answers, Answers]:
    """Two models, right on 87 % of the rows; `differing` % are right for one alone, four of five for the first."""
    labels = (generator.random(rows) < 2 / 3).astype(np.int64)
    place = generator.random(rows)
    a = place < 0.87
    b = (a & (place >= 0.8 * differing / 100)) | ((place >= 0.87) & (place < 0.87 + 0.2 * differing / 100))
    first, second = (Answers(labels, np.where(ok, labels, 1 - labels), np.zeros(rows), 2) for ok in (a, b))
    return first, second


def divergences(draws: int, spread: float, error: float) -> dict[str, Any]:
    """Log-normal divergences, `spread` the standard deviation of their logarithm; what is allowed is the true mean."""
    generator, true = np.random.default_rng(1), float(np.exp(spread**2 / 2))
    found = Counter(
        divergence_gate(generator.lognormal(0, spread, ROWS), true, error=error, seed=seed).outcome
        for seed in range(draws)
    )
    return {"spread": spread, "rows": ROWS, "error": error, **rates(found)}


# -- simulated machines -------------------------------------------------------------------------------------------------


def clock(world: World, speeds: Sequence[float], seed: int) -> Callable[..., Any]:
    """What measures shape i on such a machine, the candidate `speeds[i]` times as fast, with new sessions each repetition."""
    machine, generator = SimulatedMachine(world, seed), np.random.default_rng(10**6 + seed)

    def measure(shapes: Sequence[tuple[int, int]], number: int) -> Iterator[Any]:
        for shape in shapes:
            moved = float(np.exp(generator.normal(0, SESSIONS)))
            machine.world = replace(world, ms=(5.0, 5.0 * moved / speeds[shape[1]]))
            yield from compare_latency(
                machine.sessions, [(*shape, {})], seed=seed + number, instruments=machine.instruments
            )

    return measure


def speed(runs: int, name: str, true: float, error: float) -> dict[str, Any]:
    """--min-speedup 1 on so many such machines."""
    found, repetitions = Counter[str](), 0
    for seed in range(runs):
        (one,) = speed_gates(1.0, [(1, 0)], clock(WORLDS[name], [true], seed), error=error, repetitions=8)
        assert one.gate is not None
        found[one.gate.outcome] += 1
        repetitions += len(one.pairs)
    return {"machine": name, "speed": round(true, 3), "error": error, "repetitions": repetitions / runs, **rates(found)}


def family(runs: int) -> dict[str, Any]:
    """A drop and two speeds, all of them exactly what is allowed: how often does any fail?"""
    error, metric = share_of(ERROR_RATE, 3), metric_named("classification", "accuracy")
    generator, found = np.random.default_rng(5), Counter[str]()
    for seed in range(runs):
        a, b, _ = generator.multinomial(ROWS, [0.02, 0.01, 0.97])
        labels = np.ones(ROWS, dtype=np.int64)
        first, second = labels.copy(), labels.copy()
        second[:a], first[a : a + b] = 0, 0
        pair = [Answers(labels, given, np.zeros(ROWS), 2) for given in (first, second)]
        outcomes = {drop_gate(metric, *pair, 1.0, error=error).outcome}
        world = WORLDS[list(WORLDS)[seed % len(WORLDS)]]
        measured = speed_gates(1.0, [(1, 0), (1, 1)], clock(world, [1.0, 1.0], seed), error=error, repetitions=8)
        outcomes |= {one.gate.outcome for one in measured if one.gate}
        found["failed" if "failed" in outcomes else "passed" if "passed" in outcomes else "undecided"] += 1
    return {"gates": 3, "any": rates(found)}


# -- real models --------------------------------------------------------------------------------------------------------


def real_speeds(runs: int, folder: Path) -> list[dict[str, Any]]:
    """--min-speedup 1 of the example against itself and against itself with a tenth more to compute, idle and beside two loops."""
    rows = (EXAMPLE / "data" / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    graphs = {"stored anew": stored_anew(EXAMPLE / "model.onnx", folder / "again.onnx")}
    slow, times = slower(EXAMPLE / "model.onnx", folder / "slow.onnx", 1.1)
    graphs[f"{times:.3f} times as slow"] = slow
    found = []
    for loops in (0, 2):
        for name, graph in graphs.items():
            counts, begin = Counter[str](), time.monotonic()
            with busy(loops):
                for seed in range(runs):
                    counts[real_gate(graph, folder / "rows.jsonl", seed)] += 1
            seconds = (time.monotonic() - begin) / runs
            found.append({"candidate": name, "loops": loops, "seconds": round(seconds, 1), **rates(counts)})
            print(found[-1], file=sys.stderr, flush=True)
    return found


def real_gate(graph: Path, rows: Path, seed: int) -> str:
    """The outcome of one whole comparison."""
    given = {
        "baseline": EXAMPLE, "candidate": graph, "task": "mnli", "data": str(rows), "min_speedup": 1.0, "length": 32,
        "threads": 1, "wait_for_quiet": 0, "seed": seed,
    }  # fmt: skip
    return compare(make(CompareOptions, given)).outcome


def real_drop(draws: int, folder: Path) -> list[dict[str, Any]]:
    """The example without a head, on rows drawn from all that it has: what it loses on all of them is its true drop."""
    from axformer_onnx.api import apply
    from axformer_passes.plan import Plan

    every = folder / "every.jsonl"
    texts = [(EXAMPLE / "data" / name).read_text(encoding="utf-8") for name in ("search.jsonl", "validation.jsonl")]
    every.write_text("".join(texts), encoding="utf-8")
    graph = apply(Plan().without_heads(3, [0]), EXAMPLE, folder / "head.onnx")
    given = {"baseline": EXAMPLE, "candidate": graph, "task": "mnli", "data": str(every), "max_drop": 0}
    rows, (a, b) = score_models((EXAMPLE, graph), make(CompareOptions, given), lambda text: None)
    metric, first, second = paired_answers(
        a.scores, b.scores, rows.labels, a.reading.task, a.reading.label_map, b.reading.label_map
    )
    true, generator, found = metric.value(first) - metric.value(second), np.random.default_rng(3), []
    for allowed in (true, true / 2, 0.0):
        for error in (ERROR_RATE, ERROR_RATE / 4):
            counts = Counter[str]()
            for _ in range(draws):
                some = generator.integers(len(rows), size=ROWS)
                pair = [
                    replace(x, labels=x.labels[some], given=x.given[some], losses=x.losses[some])
                    for x in (first, second)
                ]
                counts[drop_gate(metric, *pair, allowed, error=error).outcome] += 1
            found.append({"rows": ROWS, "drop": true, "allowed": allowed, "error": error, **rates(counts)})
    return found


# -- all of it ----------------------------------------------------------------------------------------------------------


def rates(found: Counter[str]) -> dict[str, float]:
    """Shares of the outcomes."""
    total = sum(found.values())
    return {name: round(found[name] / total, 4) for name in ("passed", "failed", "undecided")}


def parts(a: argparse.Namespace, folder: Path) -> dict[str, Callable[[], Any]]:
    """What can be asked for with --parts, in the order in which it is made."""
    quarter, draws = ERROR_RATE / 4, 100 * a.runs
    return {
        "accuracy, the drop is what is allowed": lambda: [
            accuracy(draws, ROWS, drop, differing, drop, error)
            for error in (ERROR_RATE, quarter)
            for differing in (1.0, 3.0, 8.0)
            for drop in (0.0, 0.5, 1.0)
        ],
        "accuracy, a planted drop of 1 point": lambda: [
            accuracy(draws, rows, 1.0, 3.0, allowed, error)
            for error in (ERROR_RATE, quarter)
            for allowed in (0.0, 0.5)
            for rows in (ROWS, 2000, 5000, 10_000)
        ],
        "other metrics, the drop is what is allowed": lambda: [
            other_metric(2 * a.runs, name, rows, 5.0, ERROR_RATE) for name in ("f1", "mcc") for rows in (408, 1043)
        ],
        "divergence, the mean is what is allowed": lambda: [
            divergences(a.runs, spread, ERROR_RATE) for spread in (0.7, 1.0, 1.5)
        ],
        "speed": lambda: [speed(a.runs, name, true, ERROR_RATE) for name in WORLDS for true in SPEEDS.values()],
        "all gates together": lambda: [family(a.runs)],
        "real drops": lambda: real_drop(10 * a.runs, folder),
        "real speeds": lambda: real_speeds(a.real, folder),
    }


def table(result: dict[str, Any]) -> str:
    """The figures as lines."""
    lines = []
    for part, rows in result["parts"].items():
        lines += [part, *(f"  {row}" for row in rows)]
    return "\n".join(lines)


def main() -> None:
    """Simulate, measure, print; the file is written after every part, and keeps those that were not asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=int, default=200, help="simulated comparisons a case; a hundred times that of answers"
    )
    parser.add_argument(
        "--real", type=int, default=6, help="real comparisons a case, on a machine with nothing else to do"
    )
    parser.add_argument(
        "--parts", nargs="+", metavar="PART", help="of all parts those whose names begin so: speed real"
    )
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    result: dict[str, Any] = {"runs": {}, "parts": {}}
    if a.json and a.json.exists():
        result = json.loads(a.json.read_text(encoding="utf-8"))
    result |= stamped({})
    with tempfile.TemporaryDirectory() as folder:
        for name, make_part in parts(a, Path(folder)).items():
            if a.parts is None or name.startswith(tuple(a.parts)):
                result["parts"][name] = make_part()
                result["runs"][name] = a.real if name == "real speeds" else a.runs
                write(a.json, result)
    print(table(result))


if __name__ == "__main__":
    main()
