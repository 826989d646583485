"""Is a graph faster with its padding removed, on batches of real texts?

    python bench/padding.py [FOLDER] [--task T] [--data F] [--plan PLAN] [--batches 1 8 32] [--rounds 60] [--threads N]
                            [--json FILE]

FOLDER holds an exported model with its tokenizer; without arguments: the example model. PLAN is carried out in both graphs;
without one they are the whole model, its read-out narrowed, constants folded, keys and values absorbed. One graph keeps its
padding, the other has it removed. In every round one batch of rows, drawn anew and padded to its longest, runs through both, in an
order drawn anew.

`faster` is the time of all rounds with padding kept over that with padding removed, with a 95 % bootstrap interval over rounds;
`computed` the part of all tokens that are real. Besides batches as drawn, batches of rows of one length ("sorted": served by length
buckets) say what is lost where there is nothing to gain.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from record import stamped, write

from axformer_onnx.commands.replay import apply, read_plan
from axformer_onnx.data import Encoded, feeds, resolve_report
from axformer_onnx.runtime import run_session
from axformer_onnx.scoring import Machine, reading_of
from axformer_onnx.tasks import get_task
from axformer_passes.plan import Plan

EXAMPLE = Path(__file__).resolve().parents[1] / "models" / "nli-mini"
EXACT = Plan(readout="narrow", constants="folded", keys_values="absorbed")
FORMS = ("kept", "removed")
"""First what the other is compared with."""


def built(a: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Both graphs of the plan, verified."""
    plan, paths = read_plan(a.plan) if a.plan else EXACT, dict[str, Path]()
    for padding in FORMS:
        place = folder / padding
        place.mkdir()
        (place / "plan.json").write_text(dataclasses.replace(plan, padding=padding).dumps(), encoding="utf-8")
        if a.plan and plan.weights:
            shutil.copyfile(a.plan.parent / plan.weights, place / plan.weights)
        paths[padding] = apply(place, a.folder / "model.onnx", place / "model.onnx")
    return paths


def drawn(encoded: Encoded, size: int, rng: np.random.Generator, alike: bool) -> list[int]:
    """A batch of rows; `alike`: of neighbours in the order of their lengths."""
    if not alike:
        return [int(i) for i in rng.choice(len(encoded), size, replace=False)]
    order = np.argsort(encoded.lengths, kind="stable")
    start = int(rng.integers(len(order) - size + 1))
    return [int(i) for i in order[start : start + size]]


def timed(sessions: dict[str, Any], encoded: Encoded, size: int, a: argparse.Namespace, alike: bool) -> dict[str, Any]:
    """One line of the table."""
    rng, names = np.random.default_rng(a.seed), [one.name for one in sessions["kept"].get_inputs()]
    seconds: npt.NDArray[np.float64] = np.zeros((a.rounds, len(FORMS)))
    tokens = np.zeros((a.rounds, 2))
    for i in range(-a.warmup, a.rounds):
        rows = drawn(encoded, size, rng, alike)
        batch, lengths = feeds(encoded, rows, names), encoded.lengths[rows]
        for form in rng.permutation(len(FORMS)):
            before = time.perf_counter()
            run_session(sessions[FORMS[form]], batch)
            if i >= 0:
                seconds[i, form] = time.perf_counter() - before
        if i >= 0:
            tokens[i] = lengths.sum(), lengths.max() * size
    again = rng.integers(a.rounds, size=(2000, a.rounds))
    kept, removed = (seconds[again, form].sum(axis=1) for form in range(2))
    low, high = np.quantile(kept / removed, (0.025, 0.975))
    total = seconds.sum(axis=0)
    return {
        "batch": size, "rows": "sorted" if alike else "as drawn", "computed": tokens[:, 0].sum() / tokens[:, 1].sum(),
        "longest": float(np.median(tokens[:, 1] / size)), "kept_ms": 1e3 * float(np.median(seconds[:, 0])),
        "faster": [float(total[0] / total[1]), float(low), float(high)],
    }  # fmt: skip


def measure(a: argparse.Namespace) -> dict[str, Any]:
    """All lines, from one pair of sessions."""
    task, machine = get_task(a.task), Machine(threads=a.threads)
    rows = resolve_report(task, model_dir=a.folder, data=a.data)
    with tempfile.TemporaryDirectory() as folder:
        sessions = {form: machine.session(path) for form, path in built(a, Path(folder)).items()}
    encoded = reading_of(a.folder, sessions["kept"], task, rows).encode(rows)
    lines = [
        timed(sessions, encoded, size, a, alike)
        for size in a.batches
        for alike in ((False, True) if size > 1 else (False,))
    ]
    return stamped({
        "folder": a.folder.name, "task": task.name, "plan": bool(a.plan), "rounds": a.rounds, "lines": lines,
    })  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """As Markdown."""
    hardware, runtime = result["hardware"], result["hardware"]["onnxruntime"]
    lines = [
        f"{result['folder']}, {'a plan' if result['plan'] else 'whole'}, {result['rounds']} rounds; {hardware['cpu']}, "
        f"{hardware['cores_usable']} cores; onnxruntime {runtime}", "",
        "| batch | rows | longest | computed | ms, kept | faster |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in result["lines"]:
        value, low, high = one["faster"]
        lines.append(
            f"| {one['batch']} | {one['rows']} | {one['longest']:.0f} | {one['computed']:.0%} | {one['kept_ms']:.1f} | "
            f"{value:.2f}x [{low:.2f}, {high:.2f}] |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=EXAMPLE)
    parser.add_argument("--task", default="mnli")
    parser.add_argument("--data")
    parser.add_argument("--plan", type=Path, help="a plan.json, with its plan.safetensors beside it where it names one")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    result = measure(a)
    print(table(result), end="")
    write(a.json, result)


if __name__ == "__main__":
    main()
