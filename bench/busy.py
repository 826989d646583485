"""Do the speeds that are stated hold on a busy machine?

Pairs of graphs are compared with 0, 1, 2 and 4 endless loops beside them, several times each, with new sessions every time. The
quiet figure of a pair is the median of what is found without loops. Counted are the intervals that hold it: those that are stated;
those by CPU time on one thread, which stand in where a speed cannot be measured, against the median of their own figures without
loops; and, on the same times, those of the estimator that came before: ratio of medians over all rounds, at least 30 and for a
second, with a bootstrap of single rounds, against the median of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from record import stamped, write

from axformer_onnx.runtime import make_feeds, make_session, run_once
from axformer_onnx.runtime.latency import INSTRUMENTS, LatencyRow, compare_latency, judged, runs_of, threads_of
from axformer_onnx.runtime.rounds import Budget, Rounds, make_rounds
from axformer_onnx.runtime.undisturbed import is_enough, slowness

EXAMPLE = Path(__file__).resolve().parents[1] / "models" / "nli-mini" / "model.onnx"
LOOPS = {
    "python": "while True: pass",
    "numpy": "import numpy as np\na = np.ones((256, 256), dtype=np.float32)\nwhile True: a @ a",
}
BUDGET = Budget(rounds=30, warmup=5, min_seconds=1.0, max_seconds=4.0)


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All pairs, one after the other; the loads of a pair in turn, so that slow changes of the machine meet all of them."""
    graphs = a.graphs or [EXAMPLE, halved(EXAMPLE, folder / "half.onnx")]
    pairs, result = dict[str, Any](), dict[str, Any]()
    for source, result in zip(graphs[::2], graphs[1::2], strict=True):
        name = f"{len(pairs) + 1}: {source.parent.name}/{source.name}, {result.parent.name}/{result.name}"
        found: dict[int, list[dict[str, Any]]] = {loops: [] for loops in a.loops}
        for run in range(a.runs):
            for loops in a.loops:
                with busy(loops):
                    found[loops].append(compared(a, source, result, run))
                print(name, loops, "loops", found[loops][-1], file=sys.stderr, flush=True)
        pairs[name] = summary(found)
        result = stamped({"batch": a.batch, "length": a.length, "runs": a.runs, "threads": a.threads, "pairs": pairs})
        write(a.json, result)
    return result


def halved(model: Path, path: Path) -> Path:
    """The model without half of its heads and neurons."""
    from axformer_passes.apply import apply_plan
    from axformer_passes.io import load_model, save_model
    from axformer_passes.plan import Plan
    from axformer_passes.recognise import examine

    whole, plan = load_model(model), Plan()
    found = examine(whole, run_once)
    for layer in found.anatomy.layers:
        if layer.attention:
            plan = plan.without_heads(layer.index, range(layer.attention.heads // 2))
        if layer.feed_forward:
            plan = plan.without_neurons(layer.index, range(layer.feed_forward.neurons // 2))
    save_model(apply_plan(whole, plan, run_once, examined=found), path)
    return path


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """So many endless loops beside this process, every other one in NumPy."""
    codes = [list(LOOPS.values())[i % 2] for i in range(loops)]
    processes = [subprocess.Popen([sys.executable, "-c", code]) for code in codes]
    try:
        if processes:
            INSTRUMENTS.sleep(0.5)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def compared(a: argparse.Namespace, source: Path, result: Path, seed: int) -> dict[str, Any]:
    """One comparison, by both estimators on the same times."""
    paths = {"source": source, "result": result}
    sessions = {name: make_session(path, threads=a.threads) for name, path in paths.items()}
    names = sorted({one.name for session in sessions.values() for one in session.get_inputs()})
    feeds = make_feeds(names, a.batch, a.length, vocab_size=a.vocabulary, seed=seed)
    runs = runs_of(sessions, feeds)
    made = make_rounds(
        list(runs.values()), threads_of(sessions), BUDGET, np.random.default_rng(seed), INSTRUMENTS, is_enough
    )
    row = judged(list(runs), made, threads_of(sessions), seed)[1]
    alone = {name: make_session(path, threads=1) for name, path in paths.items()}
    by_cpu = compare_latency(alone, [(a.batch, a.length, feeds)], seed=seed, cpu_time=True)[1]
    return {
        **told(row),
        "slowness": round(slowness(made, np.ones(row.rounds, dtype=np.bool_)), 3),
        "cpu": told(by_cpu),
        "before": [round(x, 4) for x in before(made, seed)],
    }


def told(row: LatencyRow) -> dict[str, Any]:
    """What is kept of one figure."""
    assert row.ratio is not None
    return {
        "stated": row.reliable,
        "interval": [round(x, 4) for x in (row.ratio.value, row.ratio.low, row.ratio.high)],
        "why": row.why,
        "rounds": row.rounds,
        "kept": row.kept,
    }


def before(made: Rounds, seed: int) -> tuple[float, float, float]:
    """What the estimator before this one says of these times: value, low, high."""
    seconds = np.cumsum(made.wall_ms.sum(axis=0)) / 1e3
    rounds = max(BUDGET.rounds, int(np.searchsorted(seconds, BUDGET.min_seconds)))
    x, y = made.wall_ms[:, :rounds]
    drawn = np.random.default_rng(seed).integers(len(x), size=(10_000, len(x)))
    low, high = np.quantile(np.median(x[drawn], axis=1) / np.median(y[drawn], axis=1), [0.025, 0.975])
    return float(np.median(x) / np.median(y)), float(low), float(high)


def summary(found: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Coverage, share and width by number of loops."""
    old = [run["before"][0] for run in found[0]]
    figures = {
        "quiet": middle(found[0]),
        "quiet cpu": middle([run["cpu"] for run in found[0]]),
        "quiet before": float(np.median(old)),
    }
    return {**figures, "loops": {str(loops): counted(runs, figures) for loops, runs in found.items()}}


def middle(runs: Sequence[dict[str, Any]]) -> float:
    """Median of the figures that are stated; of all where none is."""
    return float(
        np.median([run["interval"][0] for run in runs if run["stated"]] or [run["interval"][0] for run in runs])
    )


def counted(runs: Sequence[dict[str, Any]], figures: dict[str, float]) -> dict[str, Any]:
    """One pair with so many loops."""
    stated = [run["interval"] for run in runs if run["stated"]]
    by_cpu = [run["cpu"]["interval"] for run in runs if run["cpu"]["stated"]]
    return {
        "stated": len(stated) / len(runs),
        "holds": share(stated, figures["quiet"]),
        "width": width(stated),
        "cpu stated": len(by_cpu) / len(runs),
        "cpu holds": share(by_cpu, figures["quiet cpu"]),
        "cpu width": width(by_cpu),
        "before holds": share([run["before"] for run in runs], figures["quiet before"]),
        "before width": width([run["before"] for run in runs]),
        "runs": runs,
    }


def share(intervals: Sequence[Sequence[float]], true: float) -> float | None:
    """Of the intervals that hold it."""
    return sum(low <= true <= high for _, low, high in intervals) / len(intervals) if intervals else None


def width(intervals: Sequence[Sequence[float]]) -> float | None:
    """Median of upper over lower end."""
    return float(np.median([high / low for _, low, high in intervals])) if intervals else None


def table(result: dict[str, Any]) -> str:
    """One result as Markdown."""
    hardware = result["hardware"]
    lines = [
        f"{hardware['cpu']}, {hardware['cores_usable']} cores; onnxruntime {hardware['onnxruntime']}; "
        f"{result['batch']} x {result['length']}, {result['runs']} runs each", "",
        "| pair | loops | stated | hold | width | CPU time: stated | hold | width | before: hold | width |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, pair in result["pairs"].items():
        for loops, x in pair["loops"].items():
            quiet = f"{pair['quiet']:.2f}x; CPU time {pair['quiet cpu']:.2f}x"
            lines.append(
                f"| {name} ({quiet}) | {loops} | {_three(x, '')} | {_three(x, 'cpu ')} | {_percent(x['before holds'])} | "
                f"{_ratio(x['before width'])} |"
            )
    every = [x for pair in result["pairs"].values() for x in pair["loops"].values()]
    old = sum(x["before holds"] * len(x["runs"]) for x in every) / sum(len(x["runs"]) for x in every)
    for what, word in (("were stated", ""), ("were stated by CPU time", "cpu ")):
        count = sum(x[f"{word}stated"] * len(x["runs"]) for x in every)
        held = sum((x[f"{word}holds"] or 0) * x[f"{word}stated"] * len(x["runs"]) for x in every)
        if count:
            lines.append(f"\nOf all {count:.0f} that {what} {100 * held / count:.0f} % hold.")
    lines.append(f"\nBefore: {100 * old:.0f} % of all.")
    return "\n".join(lines) + "\n"


def _three(x: dict[str, Any], word: str) -> str:
    return f"{_percent(x[word + 'stated'])} | {_percent(x[word + 'holds'])} | {_ratio(x[word + 'width'])}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "graphs", type=Path, nargs="*", help="SOURCE RESULT, and so on; default: the example and its half"
    )
    parser.add_argument("--loops", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--vocabulary", type=int, default=500, help="token ids stay below it")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--show", type=Path, help="print the table of a result, measure nothing")
    a = parser.parse_args()
    if 0 not in a.loops or len(a.graphs) % 2:
        parser.error("graphs come in pairs, and --loops needs 0: it gives the quiet figure")
    if a.show:
        print(table(json.loads(a.show.read_text(encoding="utf-8"))), end="")
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(a, Path(folder))
    print(table(result), end="")


if __name__ == "__main__":
    main()
