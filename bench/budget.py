"""Compensated pruning against other ways to the same latency, on the report rows.

    python bench/budget.py [MODEL] [--task T] [--data F] [--search-data F] [--speedup 2] [--batch 1] [--length 128]
                           [--effort medium] [--max-search-rows N] [--axformer-rows N | --axformer-graph FILE]
                           [--json FILE] [--keep FOLDER]

    python bench/budget.py --show bench/results/budget-*.json > bench/results/budget.md      tables of earlier runs
    python bench/budget.py MODEL --task T --data F --batch B --again --keep FOLDER --json FILE      score and time its graphs anew

Without arguments: the example model.

    untouched   the same heads and neurons gone, weights as they were (compensation switched off)
    magnitude   the heads and neurons of least norm go, each norm relative to its block's mean
    random      any go
    axformer    the paper's search, at whatever latency it ends with: no budget can be asked of it
    onnxsim     its structured pruning, calibrated on search rows, at three sparsities, where its graph runs

Every graph is scored against the source on the same report rows, and all are timed interleaved in one process.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from record import stamped, write

from axformer_onnx.commands.optimization import OptimizeOptions, Watcher, optimize
from axformer_onnx.commands.scores import resolve_report
from axformer_onnx.options import MAX_SEARCH_ROWS
from axformer_onnx.result.report.build import comparison_record
from axformer_onnx.runtime.sessions import make_session, run_once
from axformer_onnx.scoring.comparison import compare
from axformer_onnx.scoring.evaluation import Machine, latency_of, reading_of, score_file
from axformer_onnx.search.compensated.levels import ladder
from axformer_onnx.tasks.definitions import get_task
from axformer_passes.anatomy import Anatomy
from axformer_passes.apply import apply_plan
from axformer_passes.blocks.projections import projection
from axformer_passes.io.files import load_model, save_model
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import examine

EXAMPLE = Path(__file__).resolve().parents[1] / "models" / "nli-mini" / "model.onnx"


def table_of(folder: Path, anatomy: Anatomy) -> tuple[float, dict[tuple[int, str], tuple[np.ndarray, np.ndarray]]]:
    """(ms without any unit, ms by kept heads or neurons of every block) as the run measured them."""
    lines = [json.loads(line) for line in (folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    table = next(line["value"] for line in lines if line.get("fact") == "latency table")
    blocks = [
        (layer.index, kind, size)
        for layer in anatomy.layers
        for kind, size in (
            ("attention", layer.attention.heads if layer.attention else 0),
            ("feed_forward", layer.feed_forward.neurons if layer.feed_forward else 0),
        )
        if size
    ]
    found = {}
    for (layer, kind, size), ms in zip(blocks, table["unit_ms"], strict=True):
        counts = np.array(ladder(kind, size)[::-1], dtype=float)  # type: ignore[arg-type]
        found[layer, kind] = counts, np.array(ms[::-1])
    return table["model_ms"] - sum(ms[0] for ms in table["unit_ms"]), found


def predicted(plan: Plan, rest: float, table: dict[tuple[int, str], tuple[np.ndarray, np.ndarray]]) -> float:
    """Milliseconds of a plan."""
    total = rest
    for (layer, kind), (counts, ms) in table.items():
        gone = len((plan.heads if kind == "attention" else plan.neurons).get(layer, ()))
        total += float(np.interp(counts[-1] - gone, counts, ms))
    return total


def ranked(model: Any, score: Callable[[str, int, np.ndarray], np.ndarray]) -> list[tuple[float, str, int, int]]:
    """Every head and neuron with what decides who goes first, ascending."""
    examined = examine(model, run_once)
    found = []
    for layer in examined.anatomy.layers:
        for kind in ("attention", "feed_forward"):
            if getattr(layer, kind) is None:
                continue
            place = projection(examined, layer.index, kind)  # type: ignore[arg-type]
            weight = place.weight_matrix()
            norms = np.array([np.linalg.norm(weight[list(rows)]) for rows in place.positions])
            found += [(float(s), kind, layer.index, i) for i, s in enumerate(score(kind, layer.index, norms))]
    return sorted(found)


def at_latency(order: Sequence[tuple[float, str, int, int]], start: Plan, fits: Callable[[Plan], bool]) -> Plan:
    """The first so many of `order` removed, the fewest with which the plan fits."""

    def removed(count: int) -> Plan:
        plan = start
        ids: dict[tuple[str, int], list[int]] = {}
        for _, kind, layer, i in order[:count]:
            ids.setdefault((kind, layer), []).append(i)
        for (kind, layer), some in ids.items():
            plan = plan.without_heads(layer, some) if kind == "attention" else plan.without_neurons(layer, some)
        return plan

    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(removed(middle)) else (middle + 1, high)
    return removed(low)


def onnxsim_graph(source: Path, calibration: list[dict[str, Any]], sparsity: float, target: Path) -> str | None:
    """Write what onnxsim makes of the source; the reason where there is none or it does not run."""
    import onnx
    import onnxsim

    try:
        function = onnxsim.apply_structured_wanda_pruning
        names = inspect.signature(function).parameters
        data = next(name for name in names if "calib" in name or "data" in name)
        found = function(onnx.load(source), **{data: calibration, "sparsity": sparsity})
        model = found[0] if isinstance(found, tuple) else found
        onnx.save(model, target)
        session = make_session(target)
        session.run(None, {i.name: calibration[0][i.name] for i in session.get_inputs()})
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    before, after = source.stat().st_size, target.stat().st_size
    return None if after < 0.995 * before else "nothing was removed"


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=EXAMPLE)
    parser.add_argument("--task", default="mnli")
    parser.add_argument("--data")
    parser.add_argument("--search-data")
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--effort", default="medium")
    parser.add_argument("--max-search-rows", type=int, default=MAX_SEARCH_ROWS)
    parser.add_argument(
        "--axformer-rows", type=int, default=0, help="search rows of the paper's search; 0: leave it out"
    )
    parser.add_argument("--axformer-graph", type=Path, help="what that search found in an earlier run, instead")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep", type=Path, help="a new folder for all graphs; without it they go in the end")
    parser.add_argument(
        "--again", action="store_true", help="the graphs that an earlier run left in --keep, rows of --json replaced"
    )
    parser.add_argument("--show", type=Path, nargs="+", help="print tables of results, measure nothing")
    a = parser.parse_args()
    if a.show:
        print("\n".join(table(json.loads(path.read_text(encoding="utf-8"))) for path in a.show), end="")
        return
    if a.again:
        earlier = json.loads(a.json.read_text(encoding="utf-8"))
        write(a.json, {**earlier, **again(a, earlier)})
        return
    if a.keep:
        a.keep.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(a, a.keep or Path(folder))
    print(json.dumps(result, indent=2))
    write(a.json, result)


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Build all graphs, then score and time them."""
    task, machine = get_task(a.task), Machine(threads=a.threads)
    shape = (a.batch, a.length)
    options = OptimizeOptions(
        model=a.model, task=task, output=folder / "ours", data=a.data, search_data=a.search_data, speedup=a.speedup,
        effort=a.effort, threads=a.threads, batch=a.batch, length=(a.length,), seed=a.seed, max_search_rows=a.max_search_rows,
    )  # fmt: skip
    found = optimize(options, Watcher())
    source = load_model(a.model)
    anatomy = examine(source, run_once).anatomy
    rest, table = table_of(folder / "ours", anatomy)
    bare = dataclasses.replace(found.plan, weights=None)
    wanted = predicted(bare, rest, table)
    start = Plan(readout=found.plan.readout, constants=found.plan.constants, keys_values=found.plan.keys_values)
    rng = np.random.default_rng(a.seed)
    magnitude = ranked(source, lambda kind, layer, norms: norms / norms.mean())
    chance = ranked(source, lambda kind, layer, norms: rng.random(len(norms)))

    def fits(plan: Plan) -> bool:
        return predicted(plan, rest, table) <= wanted

    plans = {
        "untouched": bare,
        "magnitude": at_latency(magnitude, start, fits),
        "random": at_latency(chance, start, fits),
    }
    graphs = {"source": a.model, "compensated": folder / "ours" / "model.onnx"}
    for name, plan in plans.items():
        graphs[name] = folder / f"{name}.onnx"
        save_model(apply_plan(source, plan, run_once), graphs[name])
    notes = others(a, folder, options, graphs, machine, shape)
    paths = ("model", "json", "data", "search_data", "keep", "axformer_graph", "again")
    return stamped({"command": {k: str(v) for k, v in vars(a).items() if k not in paths},
            "rows": table_rows(a, graphs, machine, shape), "notes": notes})  # fmt: skip


def again(a: argparse.Namespace, earlier: dict[str, Any]) -> dict[str, Any]:
    """The graphs of an earlier run, scored and timed."""
    places = {
        "source": a.model,
        "compensated": a.keep / "ours" / "model.onnx",
        "axformer": a.axformer_graph or a.keep / "axformer" / "model.onnx",
    }
    names = [row["graph"] for row in earlier["rows"]]
    graphs = {name: places.get(name, a.keep / f"{name.replace(' ', '-')}.onnx") for name in names}
    rows = table_rows(a, graphs, Machine(threads=a.threads), (a.batch, a.length))
    return stamped({"rows": rows})


def others(
    a: argparse.Namespace, folder: Path, options: OptimizeOptions, graphs: dict[str, Path], machine: Machine, shape: Any
) -> dict[str, str]:
    """The paper's search and onnxsim, where they can be had; what stands in the way of those that cannot."""
    notes = {}
    if a.axformer_rows:
        changes = {
            "output": folder / "axformer",
            "search": "axformer",
            "max_search_rows": a.axformer_rows,
            "speedup": None,
        }
        paper = options.model_copy(update=changes)
        optimize(paper, Watcher())
        graphs["axformer"] = folder / "axformer" / "model.onnx"
    elif a.axformer_graph:
        graphs["axformer"] = a.axformer_graph
    task = get_task(a.task)
    rows = resolve_report(task, model_dir=a.model.parent, data=a.search_data or a.data)
    reading = reading_of(a.model.parent, make_session(a.model), task, rows)
    from axformer_onnx.data.encoding import batches

    names = [one.name for one in make_session(a.model).get_inputs()]
    encoded = reading.encoder.encode(rows.take(np.arange(min(256, len(rows)))))
    calibration = [dict(batch.feeds) for batch in batches(encoded, names, batch_size=8)]
    for sparsity in (0.25, 0.5, 0.75):
        path = folder / f"onnxsim-{sparsity}.onnx"
        reason = onnxsim_graph(a.model, calibration, sparsity, path)
        if reason is None:
            graphs[f"onnxsim {sparsity:g}"] = path
        else:
            notes[f"onnxsim {sparsity:g}"] = reason
    return notes


def table_rows(a: argparse.Namespace, graphs: dict[str, Path], machine: Machine, shape: Any) -> list[dict[str, Any]]:
    """One row a graph: score on the report rows against the source, and latency at batch 1 and 8."""
    task = get_task(a.task)
    rows = resolve_report(task, model_dir=a.model.parent, data=a.data)
    reading = reading_of(a.model.parent, make_session(a.model), task, rows)
    encoded = reading.encoder.encode(rows)
    shapes = list(dict.fromkeys([shape, (1, a.length), (8, a.length)]))
    latency = latency_of(graphs, shapes, reading.tokens, machine, a.seed)
    base = score_file(a.model, reading, encoded, rows, machine)
    found = []
    for name, path in graphs.items():
        scores = score_file(path, reading, encoded, rows, machine)
        compared = comparison_record(compare(base, scores, rows.labels, reading.task, reading.label_map, a.seed))
        difference = compared.difference
        found.append(
            {
                "graph": name,
                reading.task.metric: round(scores.value, 2),
                "difference": [round(x, 2) for x in (difference.value, difference.low, difference.high)],
                "size_bytes": path.stat().st_size,
                "speedup": {
                    f"{row.batch} x {row.length}": [
                        round(x, 2) for x in (row.ratio.value, row.ratio.low, row.ratio.high)
                    ]
                    for row in latency
                    if row.model == name and row.ratio is not None
                },
            }
        )
    return found


def table(result: dict[str, Any]) -> str:
    """Markdown of one result: score on the report rows, difference from the source, speed."""
    command, rows = result["command"], result["rows"]
    metric = next(name for name in rows[0] if name not in ("graph", "difference", "size_bytes", "speedup"))
    shapes = list(rows[1]["speedup"])
    asked = f"--speedup {command['speedup']} --effort {command['effort']}, {command['batch']} x {command['length']}"
    lines = [f"## {command['task']}, {asked}", ""]
    lines += [
        f"| graph | {metric} | difference, points | {' | '.join(shapes)} | MB |",
        "|---|---|---|" + "---|" * (len(shapes) + 1),
    ]
    for row in rows:
        value, low, high = row["difference"]
        speeds = [_speed(row["speedup"].get(shape)) for shape in shapes]
        difference = f"{value:+.2f} [{low:+.2f}, {high:+.2f}]" if row is not rows[0] else ""
        lines.append(
            f"| {row['graph']} | {row[metric]:.2f} | {difference} | {' | '.join(speeds)} | {row['size_bytes'] / 1e6:.1f} |"
        )
    lines += ["", *(f"{name}: {why}." for name, why in result["notes"].items())]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return "\n".join(
        [*lines, "", f"{result['hardware']['cpu']}, {result['hardware']['cores_usable']} cores; {versions}.", "", ""]
    )


def _speed(found: list[float] | None) -> str:
    return "1" if found is None else f"{found[0]:.2f}x [{found[1]:.2f}, {found[2]:.2f}]"


if __name__ == "__main__":
    main()
