"""Is a graph faster with fused attention, packed products, or both, on this machine?

    python bench/runtime_forms.py MODEL [MODEL ..] [--shapes 1x128 8x128] [--seconds 20] [--threads N] [--provider cpu] [--profile]
                                  [--json FILE]

Every form that `--runtime-form measured` tries is written, verified against the file, and timed interleaved with it. A figure is
how many times as fast as the file a form is, with a 95 % bootstrap interval; with --profile, the share of each operator of the
file in its time.
"""

from __future__ import annotations

import argparse
import collections
import json
import tempfile
from pathlib import Path
from typing import Any

from record import stamped, write

from axformer_onnx.probing import open_model
from axformer_onnx.result.form_verification import verify_form
from axformer_onnx.runtime import (
    compare_latency,
    has_integer_products,
    make_feeds,
    make_session,
    run_once,
)
from axformer_passes.io import save_model
from axformer_passes.runtime_forms import RUNTIME_FORMS


def written(path: Path, folder: Path, provider: str) -> dict[str, Path]:
    """The file and its forms, each verified."""
    model, paths = open_model(path), {"as it is": path}
    for name, form in RUNTIME_FORMS.items():
        found = form.of(model, run_once)
        if found.changed:
            paths[name] = folder / f"{name}.onnx"
            save_model(found.model, paths[name])
            worst = verify_form(path, paths[name], provider=provider)
            print(f"{name}: {len(found.changed)} places, largest difference {worst:.1e}")
        for why in found.left:
            print(f"{name}: left {why}")
    return paths


def measured(a: argparse.Namespace, path: Path) -> list[dict[str, Any]]:
    """A row for each form and shape."""
    with tempfile.TemporaryDirectory() as folder:
        paths = written(path, Path(folder), a.provider)
        sessions = {
            name: make_session(one, provider=a.provider, threads=a.threads, what=name) for name, one in paths.items()
        }
        names = [one.name for one in next(iter(sessions.values())).get_inputs()]
        feeds = [(b, s, make_feeds(names, b, s)) for b, s in a.shapes]
        rows = compare_latency(sessions, feeds, rounds=300, min_seconds=a.seconds, max_seconds=a.seconds)
    return [
        {
            "form": row.model,
            "shape": f"{row.batch} x {row.length}",
            "p50_ms": round(row.p50_ms, 3),
            "speedup": row.ratio and [round(n, 3) for n in (row.ratio.value, row.ratio.low, row.ratio.high)],
            "rounds": row.rounds,
        }
        for row in rows
    ]


def shares(a: argparse.Namespace, path: Path) -> dict[str, float]:
    """Operators by their share of the time of 30 runs at the first shape, in percent."""
    with tempfile.TemporaryDirectory() as folder:
        session = make_session(path, provider=a.provider, threads=a.threads, profile=Path(folder) / "profile")
        batch, length = a.shapes[0]
        feeds = make_feeds([one.name for one in session.get_inputs()], batch, length)
        for _ in range(30):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    spent: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return {name: round(100 * n / spent.total(), 1) for name, n in spent.most_common(12)}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--shapes", nargs="+", default=["1x128", "8x128"])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    a.shapes = [tuple(map(int, one.split("x"))) for one in a.shapes]
    found: dict[str, Any] = {}
    for path in a.models:
        print(path)
        found[str(path)] = {"forms": measured(a, path)}
        for row in found[str(path)]["forms"]:
            speedup = "" if row["speedup"] is None else "{:.2f}x [{:.2f}, {:.2f}]".format(*row["speedup"])
            print(f"  {row['shape']:8} {row['form']:14} {row['p50_ms']:9.2f} ms  {speedup}")
        if a.profile:
            found[str(path)]["operators"] = shares(a, path)
            print("  " + ", ".join(f"{name} {n} %" for name, n in found[str(path)]["operators"].items()))
    write(a.json, stamped({"integer products": has_integer_products(), "models": found}))


if __name__ == "__main__":
    main()
