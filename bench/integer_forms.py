"""What does each form of integer products cost, and what does it gain, on this machine and provider? Nothing is removed.

    python bench/integer_forms.py [MODEL] [--task T] [--data F] [--search-data F] [--provider cpu] [--forms F ..]
                                  [--threads N] [--json FILE]
    python bench/integer_forms.py --show bench/results/integer-forms-*.json        tables of earlier runs

Without arguments: the example model. Every form is written by `optimize --quantize int8 --structure whole`, scored against the
source on the report rows and timed, interleaved with it, at 1 x 128 and 8 x 128. A form that the provider does not run is left out,
with the reason. `elsewhere`: nodes that another provider ran.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from int8 import EXAMPLE, interval, scored, shapes_for
from record import stamped, write

import axformer_onnx as ax
from axformer_onnx.data import resolve_report
from axformer_onnx.scoring import Machine, latency_of, placement_of, reading_of
from axformer_onnx.tasks import get_task

QUICK = 600
"""Search rows: what is integers is nearly everything, with however many rows."""
FORMS: dict[str, dict[str, Any]] = {
    "dynamic, 7 bits": {"activations": "dynamic"},
    "dynamic, 8 bits": {"activations": "dynamic", "weight_bits": 8},
    "static, 7 bits": {"activations": "static"},
    "static, 8 bits": {"activations": "static", "weight_bits": 8},
    "static-uint8, 7 bits": {"activations": "static-uint8"},
    "static-uint8, 8 bits": {"activations": "static-uint8", "weight_bits": 8},
}


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write, score and time the forms."""
    graphs, left, shapes = {"source": a.model}, dict[str, str](), shapes_for(a.model)
    for number, (name, choice) in enumerate((name, FORMS[name]) for name in a.forms):
        try:
            graphs[name] = ax.optimize(
                a.model, task=a.task, data=a.data, search_data=a.search_data, threads=a.threads, provider=a.provider,
                seed=a.seed, structure="whole", quantize="int8", length=(shapes[0][1],), effort="low",
                max_search_rows=QUICK, wait_for_quiet=0, output=folder / str(number), **choice,
            ).path  # fmt: skip
        except ax.AxformerError as error:
            left[name] = str(error)
    machine = Machine(provider=a.provider, threads=a.threads)
    rows = resolve_report(get_task(a.task), model_dir=a.model.parent, data=a.data)
    tokens = reading_of(a.model.parent, machine.session(a.model), get_task(a.task), rows).tokens
    found = {
        "task": a.task,
        "provider": a.provider,
        "left": left,
        **scored(a, graphs, machine),
        "speeds": {},
        "elsewhere": {},
    }
    for name, path in graphs.items():
        placed = placement_of(path, shapes[0], tokens, machine, a.seed)
        own = next(iter(placed), None)
        found["elsewhere"][name] = {of: count for of, count in placed.items() if of != own} if own else {}
    for shape in shapes:
        lines = latency_of(graphs, [shape], tokens, machine, a.seed, wait_seconds=a.wait, clock="either")
        found["speeds"][f"{shape[0]} x {shape[1]}"] = {
            row.model: {"ratio": interval(row.ratio), "why": row.why, "cpu": interval(row.cpu) if row.cpu else None}
            for row in lines
            if row.ratio
        }
    return stamped(found)


def table(result: dict[str, Any]) -> str:
    """One result as Markdown."""
    shapes, hardware = list(result["speeds"]), result["hardware"]
    lines = [
        f"## {result['task']}: {result['rows']} report rows, provider {result['provider']}", "",
        f"{hardware['cpu']}, {hardware['cores_usable']} cores, {', '.join(hardware['instructions'])}; "
        f"onnxruntime {hardware['onnxruntime']}", "",
        f"| form | score | difference | {' | '.join(shapes)} | MB |", f"|---|---|---|{'---|' * len(shapes)}---|",
    ]  # fmt: skip
    for name, one in result["graphs"].items():
        d, words = one["difference"], [_said(result["speeds"][shape].get(name)) for shape in shapes]
        lines.append(
            f"| {name} | {one['score']:.2f} | {d['value']:+.2f} [{d['low']:+.2f}, {d['high']:+.2f}] | {' | '.join(words)} | "
            f"{one['bytes'] / 1e6:.1f} |"
        )
    for shape, speeds in result["speeds"].items():
        lines += [
            f"\nNot a figure to go by, {name} at {shape}: {one['why']}." for name, one in speeds.items() if one["why"]
        ]
    lines += [f"\nLeft out, {name}: {why}" for name, why in result["left"].items()]
    return "\n".join(lines) + "\n\n"


def _said(speed: dict[str, Any] | None) -> str:
    if speed is None:
        return "1"
    word = "{:.2f}x [{:.2f}, {:.2f}]".format(*speed["ratio"])
    return f"{word}; CPU time {speed['cpu'][0]:.2f}x" if speed["why"] and speed["cpu"] else word


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=EXAMPLE)
    parser.add_argument("--task", default="mnli")
    parser.add_argument("--data")
    parser.add_argument("--search-data")
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), metavar="FORM", help=", ".join(FORMS))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--wait", type=float, default=60.0, help="seconds to wait for a free machine, for each comparison"
    )
    parser.add_argument("--show", type=Path, nargs="+", help="print tables of results, measure nothing")
    a = parser.parse_args()
    if a.show:
        print("".join(table(json.loads(path.read_text(encoding="utf-8"))) for path in a.show), end="")
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(a, Path(folder))
    print(table(result), end="")
    write(a.json, result)


if __name__ == "__main__":
    main()
