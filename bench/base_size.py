"""What does a run cost on a model of BERT-base's size? Seconds and peak memory of one `optimize --speedup 2`.

    python bench/base_size.py [--effort medium] [--rows 2000] [--speedup 2] [--json FILE]

The model has random weights (its score means nothing, its cost is that of a real one), the tokenizer and the MNLI rows are those of
../shared. Without ../shared there is nothing to measure.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from record import stamped, write

from axformer_onnx.commands.optimization import OptimizeOptions, Watcher, optimize
from axformer_onnx.tasks.definitions import get_task

SHARED = Path(__file__).resolve().parents[2] / "shared"
REPORT_ROWS = 2000
SOURCE = SHARED / "checkpoints" / "mnli"


def make_checkpoint(folder: Path) -> Path:
    """A random BERT-base with the tokenizer of the MNLI checkpoint."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig.from_pretrained(SOURCE)
    config.update({"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072})
    config.initializer_range = 0.04
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        model.classifier.weight *= 10
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (SOURCE / name).is_file():
            shutil.copyfile(SOURCE / name, folder / name)
    return folder


def _report_rows(folder: Path) -> Path:
    """The first REPORT_ROWS rows of the validation set: what a report costs is a matter of how many rows one has."""
    lines = (SHARED / "data" / "mnli" / "validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path = folder / "validation.jsonl"
    path.write_text("".join(lines[:REPORT_ROWS]), encoding="utf-8")
    return path


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Export, optimize, and say what it took."""
    from axformer_onnx.exporting import export

    path = export(make_checkpoint(folder / "checkpoint"), folder / "model").path
    marks: list[tuple[str, float]] = []
    began = time.perf_counter()

    def note(what: str) -> None:
        if not marks or marks[-1][0] != what:
            marks.append((what, time.perf_counter() - began))
            print(f"{marks[-1][1]:7.1f} s  {what}", file=sys.stderr, flush=True)

    watcher = Watcher(step=note, part=lambda what, done, of: note(what.split(" of ")[0].split(" at ")[0]))
    options = OptimizeOptions(
        model=path, task=get_task("mnli"), output=folder / "out", data=str(_report_rows(folder)),
        search_data=str(SOURCE / "search.jsonl"), speedup=a.speedup, effort=a.effort, length=(128,),
        max_search_rows=a.rows * 3 // 2,
    )  # fmt: skip
    result = optimize(options, watcher)
    seconds, found = time.perf_counter() - began, result.report.compensation
    assert found is not None
    ends = [*[at for _, at in marks[1:]], seconds]
    return stamped({
        "seconds": round(seconds),
        "seconds_without_report": round(next(at for what, at in marks if what.startswith("applying"))),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "steps": [[what, round(end - at, 1)] for (what, at), end in zip(marks, ends, strict=True)],
        "effort": a.effort,
        "report_rows": REPORT_ROWS,
        "search_rows": next(r.rows for r in result.report.data if r.role == "search"),
        "evaluations": found.evaluations,
        "work": found.work,
        "plain_work": found.plain_work,
        "points": len(found.frontier),
        "speedup": result.report.latency[0].speedup.model_dump(),
    })  # fmt: skip


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effort", default="medium")
    parser.add_argument("--rows", type=int, default=2000, help="search rows")
    parser.add_argument("--speedup", type=float, default=2.0)
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    if not SOURCE.is_dir():
        print("the shared checkpoints are absent, nothing to measure")
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(a, Path(folder))
    print(json.dumps(result, indent=2))
    write(a.json, result)


if __name__ == "__main__":
    main()
