"""Do the graphs give the same on CUDA as on the CPU, and what is faster there?

    python bench/cuda.py [MODEL] [--task T] [--data F] [--search-data F] [--speedup 1.5] [--effort low] [--batch 32] [--length 128]
                         [--json bench/results/cuda.json]

Without arguments: the example model. Where ONNX Runtime has no CUDA device that works, it says so and measures nothing.

    agreement   outputs on rows of the report set: largest difference between CUDA and the CPU, and rows whose answer differs;
                `tf32` as ONNX Runtime has it by default, `float32` with its option use_tf32 off
    latency     every graph against the source, interleaved, inputs and outputs on the device; "source, float32" is the source
                without TF32, so its ratio is what TF32 is worth
    binding     where the outputs of a timed run lie, and what reading them takes right after it: were the run not waited for,
                that would be the time of a run
    placement   operators that do not run on CUDA, and copies between device and host, in one run
    fallback    `score --provider cuda` with the GPU hidden: exit code and warning
    optimize    one whole run with --provider cuda: its latency table, its search and its report are of that device;
                `seconds_until` the last report of each step

Graphs: the source; `exact`, its read-out narrowed and its constants folded; `pruned`, of those half the heads and two thirds of
the neurons; `hard 8` and `hard 30`, the source with hard attention (truncated) in every layer.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from axformer_onnx.commands.optimization import OptimizeOptions, Watcher, optimize
from axformer_onnx.commands.scores import resolve_report
from axformer_onnx.data.encoding import Encoded, batches
from axformer_onnx.data.rows import Rows
from axformer_onnx.data.tokenizer_files import read_json
from axformer_onnx.errors import AxformerError
from axformer_onnx.records import FloatArray
from axformer_onnx.runtime.hardware import cuda_device, describe_hardware, versions
from axformer_onnx.runtime.latency import Bound, compare_latency, make_feeds
from axformer_onnx.runtime.providers import PROVIDERS
from axformer_onnx.runtime.sessions import make_session, run_once, run_session
from axformer_onnx.scoring.evaluation import reading_of
from axformer_onnx.tasks.definitions import get_task
from axformer_onnx.tasks.outputs import logits_of
from axformer_passes.apply import apply_plan, narrowed
from axformer_passes.io.files import load_model, save_model
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise

EXAMPLE = Path(__file__).resolve().parents[1] / "models" / "nli-mini" / "model.onnx"
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
BATCHES = (1, 8, 32)
WORDS = 300
"""Ids of tokens of timed runs are below: any model has so many."""
ROWS = 512
"""Rows whose outputs are compared."""


def works() -> bool:
    """Does a session run on CUDA here?"""
    try:
        return cuda_device() is not None and make_session(EXAMPLE, provider="cuda").get_providers()[0] == CUDA
    except AxformerError:
        return False


def made_graphs(source: Path, folder: Path) -> dict[str, Path]:
    """Write the graphs; {name: path}, the source first."""
    model = load_model(source)
    anatomy = recognise(model, run_once)
    exact = Plan(readout="narrow" if narrowed(model, run_once)[1].nodes else "whole", constants="folded")
    pruned, hard = exact, {8: Plan(), 30: Plan()}
    for layer in anatomy.layers:
        if layer.attention is not None:
            pruned = pruned.without_heads(layer.index, range(1, layer.attention.heads, 2))
            hard = {k: plan.with_hard_attention(layer.index, k) for k, plan in hard.items()}
        if layer.feed_forward is not None:
            neurons = layer.feed_forward.neurons
            pruned = pruned.without_neurons(layer.index, [i for i in range(neurons) if i % 3])
    graphs = {"source": source}
    for name, plan in {"exact": exact, "pruned": pruned, **{f"hard {k}": plan for k, plan in hard.items()}}.items():
        graphs[name] = folder / f"{name.replace(' ', '-')}.onnx"
        save_model(apply_plan(model, plan, run_once), graphs[name])
    return graphs


# -- one optimize -----------------------------------------------------------------------------------------------------


def optimized(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run on CUDA; the graph is in folder/optimized."""
    options = OptimizeOptions(
        model=a.model, task=get_task(a.task), output=folder / "optimized", data=a.data, search_data=a.search_data,
        speedup=a.speedup, effort=a.effort, provider="cuda", batch=a.batch, length=(a.length,),
        seed=0, overwrite=True,
    )  # fmt: skip
    began, marks = time.perf_counter(), dict[str, float]()

    def step(text: str, done: int = 0, of: int = 0) -> None:
        marks[text] = round(time.perf_counter() - began, 1)
        if done in (0, of):
            print(f"{marks[text]:7.1f} s  {text}", file=sys.stderr, flush=True)

    try:
        report = optimize(options, Watcher(step=step, part=step)).report
    except AxformerError as error:
        return {"error": str(error), "seconds": round(time.perf_counter() - began, 1)}
    seconds = round(time.perf_counter() - began, 1)
    told, graph = report.model_dump(mode="json"), folder / "optimized" / "model.onnx"
    journal = (folder / "optimized" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    table = next(line["value"] for line in map(json.loads, journal) if line.get("fact") == "latency table")
    return {
        "goal": options.goal.words,
        "effort": a.effort,
        "shape": [a.batch, a.length],
        "seconds": seconds,
        "seconds_until": marks,
        "agreement": agreement(a, {"optimized": graph}),
        "latency_by_batch": latency({"source": a.model, "optimized": graph}, a.length),
        "model_ms": table["model_ms"],
        "ms_of_all_blocks": round(sum(ms[0] for ms in table["unit_ms"]), 4),
        **{
            name: told[name]
            for name in ("metric", "source", "candidate", "comparison", "latency", "layers", "warnings")
        },
        "reached": told["compensation"]["reached"],
        "frontier": told["compensation"]["frontier"],
    }


# -- agreement --------------------------------------------------------------------------------------------------------


def full_float32(path: Path) -> Any:
    """A session on CUDA without TF32."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=[(CUDA, {"use_tf32": "0"}), CPU])


def outputs(session: Any, encoded: Encoded) -> FloatArray:
    """float64[rows, classes]."""
    name, names = logits_of(session.get_outputs()).name, [one.name for one in session.get_inputs()]
    found: FloatArray | None = None
    for batch in batches(encoded, names, batch_size=32):
        logits = run_session(session, batch.feeds, [name])[name]
        found = np.empty((len(encoded), logits.shape[-1])) if found is None else found
        found[batch.rows] = logits
    assert found is not None
    return found


def difference(expected: FloatArray, found: FloatArray) -> dict[str, Any]:
    """Largest difference, as it is and of the largest value; rows whose largest logit is another one."""
    apart = float(np.abs(expected - found).max())
    return {
        "largest": float(f"{apart:.2e}"),
        "of_largest_value": float(f"{apart / np.abs(expected).max():.2e}"),
        "answers_changed": int((expected.argmax(axis=1) != found.argmax(axis=1)).sum()),
    }


def agreement(a: argparse.Namespace, graphs: Mapping[str, Path]) -> dict[str, Any]:
    """By graph: CUDA against the CPU."""
    task = get_task(a.task)
    rows: Rows = resolve_report(task, model_dir=a.model.parent, data=a.data)
    rows = rows.take(np.arange(min(ROWS, len(rows))))
    encoded = reading_of(a.model.parent, make_session(a.model), task, rows).encoder.encode(rows)
    found: dict[str, Any] = {"rows": len(rows)}
    for name, path in graphs.items():
        on_cpu = outputs(make_session(path), encoded)
        tf32, float32 = outputs(make_session(path, provider="cuda"), encoded), outputs(full_float32(path), encoded)
        found[name] = {"tf32": difference(on_cpu, tf32), "float32": difference(on_cpu, float32)}
        print(f"{name:10} {found[name]}", file=sys.stderr, flush=True)
    return found


# -- latency ----------------------------------------------------------------------------------------------------------


def latency(graphs: Mapping[str, Path], length: int) -> list[dict[str, Any]]:
    """Rows of all graphs at all shapes, on CUDA."""
    sessions = {name: make_session(path, provider="cuda") for name, path in graphs.items()}
    sessions["source, float32"] = full_float32(graphs["source"])
    names = [one.name for one in sessions["source"].get_inputs()]
    feeds = [(batch, length, make_feeds(names, batch, length, vocab_size=WORDS)) for batch in BATCHES]
    found = []
    for row in compare_latency(sessions, feeds, rounds=200, warmup=20, min_seconds=2.0, max_seconds=10.0):
        ratio = None if row.ratio is None else [round(x, 3) for x in (row.ratio.value, row.ratio.low, row.ratio.high)]
        found.append(
            {
                "graph": row.model, "shape": [row.batch, row.length], "p50_ms": round(row.p50_ms, 4),
                "p95_ms": round(row.p95_ms, 4), "ratio": ratio, "rounds": row.rounds,
            }
        )  # fmt: skip
        print(found[-1], file=sys.stderr, flush=True)
    return found


def bound(path: Path, length: int) -> dict[str, Any]:
    """What a timed run leaves on the device, and whether it was waited for."""
    session = make_session(path, provider="cuda")
    names = [one.name for one in session.get_inputs()]
    run = Bound(
        session, make_feeds(names, 32, length, vocab_size=WORDS), [one.name for one in session.get_outputs()], "cuda"
    )
    times = []
    for _ in range(30):
        begin = time.perf_counter()
        run()
        middle = time.perf_counter()
        run.binding.copy_outputs_to_cpu()
        times.append((middle - begin, time.perf_counter() - middle))
    run_ms, read_ms = np.median(np.array(times[10:]) * 1e3, axis=0)
    devices = [value.device_name() for value in run.binding.get_outputs()]
    return {"outputs_on": devices, "run_ms": round(float(run_ms), 4), "reading_outputs_ms": round(float(read_ms), 4)}


# -- placement --------------------------------------------------------------------------------------------------------


def placement(path: Path, length: int, folder: Path) -> dict[str, Any]:
    """How many nodes run on each provider, which are on the CPU, and how many are copies, of one run of eight rows."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.enable_profiling, options.log_severity_level = True, 3
    options.profile_file_prefix = str(folder / "profile")
    session = ort.InferenceSession(str(path), options, providers=[CUDA, CPU])
    session.run(None, make_feeds([one.name for one in session.get_inputs()], 8, length, vocab_size=WORDS))
    profile = Path(session.end_profiling())
    nodes = dict(_nodes(json.loads(profile.read_text(encoding="utf-8"))))
    profile.unlink()
    on_cpu = collections.Counter(op for op, provider in nodes.values() if provider == CPU)
    copies = collections.Counter(op for op, _ in nodes.values() if op.startswith("Memcpy"))
    return {
        "nodes": len(nodes),
        "on_cuda": sum(provider == CUDA and not op.startswith("Memcpy") for op, provider in nodes.values()),
        "on_cpu": dict(sorted(on_cpu.items())),
        "copies": dict(sorted(copies.items())),
    }


def _nodes(events: list[dict[str, Any]]) -> Iterator[tuple[str, tuple[str, str]]]:
    for event in events:
        told = event.get("args", {})
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            yield event["name"], (told.get("op_name", "?"), told.get("provider", "?"))


# -- fallback ---------------------------------------------------------------------------------------------------------


def fallback(a: argparse.Namespace) -> dict[str, Any]:
    """`score --provider cuda` in a process that sees no GPU."""
    command = [
        sys.executable,
        "-m",
        "axformer_onnx",
        "score",
        str(a.model),
        "--task",
        a.task,
        "--provider",
        "cuda",
        "--json",
    ]
    command += ["--data", a.data] if a.data else []
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=hidden, capture_output=True, text=True, check=False)
    try:
        warnings = json.loads(done.stdout)["warnings"]
    except (ValueError, KeyError) as error:
        warnings = [f"no JSON: {error}: {(done.stdout + done.stderr)[-300:]}"]
    return {"exit_code": done.returncode, "warnings": [text for text in warnings if "could not start" in text]}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=EXAMPLE)
    parser.add_argument("--task", default="mnli")
    parser.add_argument("--data")
    parser.add_argument("--search-data")
    parser.add_argument("--speedup", type=float, default=1.5)
    parser.add_argument("--effort", choices=("low", "medium", "high"), default="low")
    parser.add_argument("--batch", type=int, default=32, help="rows of the optimize run's latencies")
    parser.add_argument("--length", type=int, default=128, help="tokens of all latencies; at most what the model takes")
    parser.add_argument("--json", type=Path, help="write the figures here")
    a = parser.parse_args()
    if not works():
        print(
            f"ONNX Runtime has no CUDA device that works here, nothing was measured. To get one: {PROVIDERS['cuda'][1]}"
        )
        return
    a.length = min(a.length, read_json(a.model.parent / "config.json").get("max_position_embeddings", a.length))
    with tempfile.TemporaryDirectory() as name:
        result = measure(a, Path(name))
    print(json.dumps(result, indent=1))


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All parts; each is written as soon as it is there."""
    graphs = made_graphs(a.model, folder)
    parts: dict[str, Callable[[], Any]] = {
        "fallback": lambda: fallback(a),
        "placement": lambda: {name: placement(path, a.length, folder) for name, path in graphs.items()},
        "agreement": lambda: agreement(a, graphs),
        "binding": lambda: bound(a.model, a.length),
        "latency": lambda: latency(graphs, a.length),
        "optimize": lambda: optimized(a, folder),
    }
    result: dict[str, Any] = {"model": a.model.parent.name, "task": a.task}
    result |= {"hardware": describe_hardware(), "versions": versions()}
    for name, part in parts.items():
        result[name] = part()
        if a.json:
            a.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
