"""Every operating point of a finished run on the report rows: how much accuracy is paid for how much speed?

    python bench/frontier.py [RUN MODEL] [--task T] [--data F] [--batch 1] [--length 128] [--threads N] [--json FILE]

Without arguments: what `make demo` made. RUN is the output of `optimize MODEL --search compensated`, whose `frontier/` holds the
plans. No decision of the run saw the report rows, and all graphs are timed interleaved in one process; to pick a point by what is
printed here would be a decision.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from budget import EXAMPLE, table_rows
from record import stamped, write

from axformer_onnx.commands.replay import apply
from axformer_onnx.scoring.evaluation import Machine

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Build, score and time all points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=ROOT / "run" / "nli-mini")
    parser.add_argument("model", type=Path, nargs="?", default=EXAMPLE)
    parser.add_argument("--task", default="mnli")
    parser.add_argument("--data")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    if not (a.run / "frontier").is_dir():
        print(f"{a.run} has no frontier: run `make demo` first, or name the output of a run")
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(a, Path(folder))
    print(text_of(result))
    write(a.json, result)


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row a point, the source first."""
    graphs = {"source": a.model}
    for plan in sorted((a.run / "frontier").glob("*/plan.json"), key=lambda p: float(p.parent.name.split("x")[0])):
        graphs[plan.parent.name] = folder / plan.parent.name / "model.onnx"
        apply(plan, a.model, graphs[plan.parent.name].parent)
    rows = table_rows(a, graphs, Machine(threads=a.threads), (a.batch, a.length))
    return stamped({"task": a.task, "rows": rows})


def text_of(result: dict[str, Any]) -> str:
    """A line a point."""
    lines = []
    for row in result["rows"]:
        metric = next(name for name in row if name not in ("graph", "difference", "size_bytes", "speedup"))
        value, low, high = row["difference"]
        speeds = "  ".join(f"{shape}: {v[0]:.2f}x [{v[1]:.2f}, {v[2]:.2f}]" for shape, v in row["speedup"].items())
        lines.append(f"{row['graph']:10} {row[metric]:6.2f}  {value:+.2f} [{low:+.2f}, {high:+.2f}]  {speeds}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
