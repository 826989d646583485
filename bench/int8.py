"""Integers together with structure against dynamic quantisation of the source, on the report rows.

    python bench/int8.py [MODEL] [--task T] [--data F] [--search-data F] [--max-drop D] [--embedding-bits 4]
                         [--activations static-uint8] [--effort medium] [--keep FOLDER] [--json FILE]
    python bench/int8.py MODEL --task T --data F --result FOLDER [--json FILE]         of a run that is there already
    python bench/int8.py MODEL --task T --data F --result FOLDER --json FILE --speeds-again      its speeds alone, scores from FILE
    python bench/int8.py --show bench/results/int8-*.json > bench/results/int8.md       tables of earlier runs

Without arguments: the example model. Beside the result stand the forms that `onnxruntime.quantization.quantize_dynamic` makes of
the source: a scale a tensor, a scale a channel, the same with 7-bit weights. Every graph is scored against the source on the same
report rows; all are timed interleaved in one process, at 1 x 128 and 8 x 128, or the longest texts that a model takes. Where the
machine is disturbed, CPU time on one thread stands beside what is not to go by.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from record import stamped, write

from axformer_onnx.commands import optimize
from axformer_onnx.data import Encoder
from axformer_onnx.options import OptimizeOptions
from axformer_onnx.records import Interval
from axformer_onnx.scoring import Machine, compare, latency_of, reading_of, score_file
from axformer_onnx.tasks import get_task

EXAMPLE = Path(__file__).resolve().parents[1] / "models" / "nli-mini" / "model.onnx"
DYNAMIC: dict[str, dict[str, Any]] = {
    "dynamic, a scale a tensor": {},
    "dynamic, a scale a channel": {"per_channel": True},
    "dynamic, a scale a channel, 7 bits": {"per_channel": True, "reduce_range": True},
}
SHAPES = [(1, 128), (8, 128)]


def shapes_for(model: Path) -> list[tuple[int, int]]:
    """SHAPES, no longer than the texts that a model takes."""
    limit = Encoder.from_folder(model.parent).max_length
    return [(batch, min(length, limit)) for batch, length in SHAPES]


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Optimize unless a result is given, quantise, score and time."""
    from onnxruntime.quantization import quantize_dynamic

    task, machine = get_task(a.task), Machine(threads=a.threads)
    result = a.result or folder / "ours"
    options = OptimizeOptions(
        model=a.model, task=task, output=result, data=a.data, search_data=a.search_data, max_drop=a.max_drop,
        effort=a.effort, threads=a.threads, length=(shapes_for(a.model)[0][1],), seed=a.seed, quantize="int8",
        embedding_bits=a.embedding_bits, activations=a.activations, overwrite=True,
    )  # fmt: skip
    if a.result is None:
        optimize(options)
    graphs = {"source": a.model, "ours": result / "model.onnx"}
    for name, choice in DYNAMIC.items():
        graphs[name] = folder / f"{len(graphs)}.onnx"
        quantize_dynamic(a.model, graphs[name], **choice)
    if a.speeds_again:
        before = json.loads(a.json.read_text(encoding="utf-8"))
        found = {
            name: before[name]
            for name in before
            if name in ("task", "max_drop", "embedding_bits", "activations", "rows", "graphs")
        }
        sizes = {name: one["bytes"] for name, one in found["graphs"].items()}
        assert sizes == {name: path.stat().st_size for name, path in graphs.items()}, "these are other graphs"
    else:
        found = {
            "task": task.name,
            "max_drop": a.max_drop,
            "embedding_bits": a.embedding_bits,
            "activations": a.activations,
        }
        found |= scored(a, graphs, machine)
    return stamped({**found, **timed(a, graphs, machine)})


def scored(a: argparse.Namespace, graphs: dict[str, Path], machine: Machine) -> dict[str, Any]:
    """Each graph on the report rows, against the source."""
    from axformer_onnx.data import resolve_report
    from axformer_onnx.result.report import comparison_record

    task = get_task(a.task)
    rows = resolve_report(task, model_dir=a.model.parent, data=a.data)
    reading = reading_of(a.model.parent, machine.session(a.model), task, rows)
    encoded, found, source = reading.encode(rows), dict[str, Any](), None
    for name, path in graphs.items():
        scores = score_file(path, reading, encoded, rows, machine)
        source = source or scores
        compared = compare(source, scores, rows.labels, reading.task, reading.label_map, a.seed)
        record = comparison_record(compared).difference.model_dump(mode="json")
        found[name] = {"score": scores.value, "difference": record, "bytes": path.stat().st_size}
    return {"rows": len(rows), "graphs": found}


def timed(a: argparse.Namespace, graphs: dict[str, Path], machine: Machine) -> dict[str, Any]:
    """Ratios to the source and to ours, each from interleaved rounds of these graphs alone."""
    from axformer_onnx.data import resolve_report

    task = get_task(a.task)
    rows = resolve_report(task, model_dir=a.model.parent, data=a.data)
    tokens = reading_of(a.model.parent, machine.session(a.model), task, rows).tokens
    speeds = dict[str, Any]()
    for shape in shapes_for(a.model):
        lines = latency_of(graphs, [shape], tokens, machine, a.seed, wait_seconds=a.wait, clock="either")
        key = f"{shape[0]} x {shape[1]}"
        found = {row.model: interval(row.ratio) for row in lines if row.ratio}
        best = max(DYNAMIC, key=lambda name: found[name][0])
        two = {best: graphs[best], "ours": graphs["ours"]}
        pair = latency_of(two, [shape], tokens, machine, a.seed, wait_seconds=a.wait, clock="either")[1]
        assert pair.ratio is not None
        every = {row.model: row for row in lines} | {"ours against it": pair}
        speeds[key] = {
            "against the source": found, "best": best, "ours against it": interval(pair.ratio),
            "disturbed": {name: row.why for name, row in every.items() if row.why},
            "cpu time": {name: interval(row.cpu) for name, row in every.items() if row.cpu},
        }  # fmt: skip
    return {"speeds": speeds}


def interval(ratio: Interval) -> list[float]:
    """Value, low, high."""
    return [ratio.value, ratio.low, ratio.high]


def table(result: dict[str, Any]) -> str:
    """One result as Markdown."""
    shapes = list(result["speeds"])
    source = result["graphs"]["source"]["bytes"]
    instructions = result.get("instructions") or result["hardware"]["instructions"]
    lines = [
        f"## {result['task']}: {result['rows']} report rows, --quantize int8 --max-drop {result['max_drop']:g}"
        f"{'' if result.get('embedding_bits', 8) == 8 else ' --embedding-bits 4'}"
        f"{'' if result.get('activations', 'dynamic') == 'dynamic' else ' --activations ' + result['activations']}", "",
        f"{result['hardware']['cpu']}, {result['hardware']['cores_usable']} cores, {', '.join(instructions)}; "
        f"onnxruntime {result['hardware']['onnxruntime']}", "",
        f"| graph | score | difference | {' | '.join(shapes)} | MB | smaller |", f"|---|---|---|{'---|' * len(shapes)}---|---|",
    ]  # fmt: skip
    for name, one in result["graphs"].items():
        d = one["difference"]
        speeds = (result["speeds"][s]["against the source"].get(name) for s in shapes)
        words = [f"{x[0]:.2f}x [{x[1]:.2f}, {x[2]:.2f}]" if x else "1" for x in speeds]
        lines.append(
            f"| {name} | {one['score']:.2f} | {d['value']:+.2f} [{d['low']:+.2f}, {d['high']:+.2f}] | {' | '.join(words)} | "
            f"{one['bytes'] / 1e6:.1f} | {source / one['bytes']:.1f}x |"
        )
    for shape in shapes:
        found = result["speeds"][shape]
        x = found["ours against it"]
        lines.append(
            f"\nOurs against the best of the dynamic forms at {shape} ({found['best']}): {x[0]:.2f}x [{x[1]:.2f}, {x[2]:.2f}]."
        )
        by_cpu = found.get("cpu time", {})
        for what, why in found.get("disturbed", {}).items():
            lines.append(f"Not a figure to go by, {what} at {shape}: {why}.")
            if what in by_cpu:
                lines[-1] += " In CPU time, on one thread, {:.2f}x [{:.2f}, {:.2f}].".format(*by_cpu[what])
    if result.get("note"):
        lines.append(f"\nNote: {result['note']}.")
    return "\n".join(lines) + "\n\n"


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=EXAMPLE)
    parser.add_argument("--task", default="mnli")
    parser.add_argument("--data")
    parser.add_argument("--search-data")
    parser.add_argument("--max-drop", type=float, default=0.5)
    parser.add_argument("--embedding-bits", type=int, default=8)
    parser.add_argument("--activations", default="dynamic", help="dynamic, static or static-uint8")
    parser.add_argument("--effort", default="medium")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, help="the output folder of a run, instead of a new one")
    parser.add_argument("--keep", type=Path, help="a folder for all graphs; without it they go in the end")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--wait", type=float, default=120.0, help="seconds to wait for a free machine, for each comparison"
    )
    parser.add_argument("--speeds-again", action="store_true", help="keep the scores that --json FILE has")
    parser.add_argument("--show", type=Path, nargs="+", help="print tables of results, measure nothing")
    a = parser.parse_args()
    if a.show:
        print("".join(table(json.loads(path.read_text(encoding="utf-8"))) for path in a.show), end="")
        return
    if a.keep:
        a.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(a, a.keep or Path(folder))
    print(table(result), end="")
    write(a.json, result)


if __name__ == "__main__":
    main()
