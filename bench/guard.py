"""What this project is worth on this machine: quality, speed, size, cost of a search, start-up, growth. One result, one JSON file.

    python bench/guard.py [--parts search startup growth] [--cases mnli sst2] [--effort low] [--json FILE | --record]
    python bench/moved.py [NEW] [OLD]        what moved since the last result of a like machine

search    the example model (nli-mini on MNLI) and, where ../shared is, its SST-2 checkpoint: score with interval at each operating
          point, size, multiply-accumulates, times as fast as the source with interval, candidates evaluated, rows x stages, calls
          of the costly functions, seconds, peak memory. Speeds are counted, not timed, while it searches: quality and work follow
          from code and seed
startup   `axformer-onnx --help` in seconds, modules and heavy packages that it imports; --imports lists them
growth    recognising, applying, cutting into stages on encoders of 2 to 48 layers, and its exponent

--record writes into bench/results/guard/, where `moved` looks for the last result. Exit code 1 where a limit is broken that follows
from the code: a pass whose calls grow faster than layers^1.15, a heavy package imported by --help, a search that does not find the
same twice. docs/benchmarks.md says how to read it.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guarding import growth, searches, startup
from guarding.figures import Figure
from guarding.moves import table_of_figures
from linear import apart
from record import stamped, write

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
RESULTS = ROOT / "bench" / "results" / "guard"
PARTS = ("search", "startup", "growth")
CASES = ("mnli", "sst2")
EXAMPLE = searches.Case("nli-mini", ROOT / "models" / "nli-mini" / "model.onnx", "mnli", length=32)


def main() -> int:
    """Parse, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--effort", choices=("low", "medium", "high"), default="low")
    parser.add_argument(
        "--wait", type=float, default=60.0, help="seconds to wait for a free machine, for the speeds of a case"
    )
    parser.add_argument("--imports", action="store_true", help="list what --help imports, measure nothing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--record", action="store_true", help="write into bench/results/guard/")
    a = parser.parse_args()
    if a.record and (len(set(a.parts)), len(set(a.cases))) != (len(PARTS), len(CASES)):
        parser.error("--record takes all parts and cases: later results are compared with it")
    if a.imports:
        for package, (modules, spent) in startup.imported((*startup.COMMAND, "--help")).items():
            print(f"{1e3 * spent:7.1f} ms {modules:5} modules  {package}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        figures = measured(a, Path(folder))
    result = stamped({"options": {"effort": a.effort}, "figures": [figure.to_json() for figure in figures]})
    print(table_of_figures(figures))
    write(RESULTS / name_of(result) if a.record else a.json, result)
    broken = limits_broken(figures)
    print("\n".join(broken), file=sys.stderr, end="\n" if broken else "")
    return 1 if any(failure for failure in broken.values()) else 0


def measured(a: argparse.Namespace, folder: Path) -> list[Figure]:
    """The figures of all parts, one after another."""
    found = list[Figure]()
    for part in a.parts:
        if part == "search":
            for case in cases(a, folder):
                print(f"search: {case.name} ...", file=sys.stderr, flush=True)
                found += searches.measured(case)
            continue
        print(f"{part} ...", file=sys.stderr, flush=True)
        found += startup.measured() if part == "startup" else growth.measured()
    return found


def cases(a: argparse.Namespace, folder: Path) -> list[searches.Case]:
    """The example model, and the shared checkpoint where it is."""
    found = [EXAMPLE] if "mnli" in a.cases else []
    checkpoint = SHARED / "checkpoints" / "sst2"
    if "sst2" in a.cases and checkpoint.is_dir():
        model = apart(_exported, checkpoint, folder / "sst2")
        data, rows = str(SHARED / "data" / "sst2"), str(checkpoint / "search.jsonl")
        found.append(searches.Case("sst2", model, "sst2", length=64, data=data, search_data=rows))
    return [dataclasses.replace(case, effort=a.effort, wait=a.wait) for case in found]


def _exported(checkpoint: Path, folder: Path) -> Path:
    from axformer_onnx.exporting import export

    return Path(export(checkpoint, folder).path)


def name_of(result: dict[str, Any]) -> str:
    """2026-11-28-1403-amd-epyc-2-cores.json."""
    when = re.sub(r"[^0-9-]", "", result["created"][:16].replace("T", "-"))
    cpu = re.sub(r"[^a-z0-9]+", "-", result["hardware"]["cpu"].lower()).strip("-")
    return f"{when}-{cpu}-{result['hardware']['cores_usable']}-cores.json"


def limits_broken(figures: Sequence[Figure]) -> dict[str, bool]:
    """{sentence: does it follow from the code?} of every limit that does not hold."""
    found = dict[str, bool]()
    for figure in figures:
        if figure.name.endswith("exponent of calls") and figure.value > growth.MOST:
            found[
                f"{figure.name}: {figure.value:g}, expected at most {growth.MOST:g}: cost must be near linear in the layers"
            ] = True
        if figure.name.endswith("heavy packages") and figure.value:
            found[f"{figure.name}: --help imports {figure.why}; import them inside the functions that need them"] = True
        if figure.name.endswith("found again") and not figure.value:
            found[f"{figure.name}: two searches with one seed found different plans"] = True
        if figure.name == "start-up / --help / wall" and figure.value > startup.LIMIT_S:
            busy = next(f.value for f in figures if f.name == "start-up / --help / processor")
            taken = f"{figure.value:.2f} s ({busy:.2f} s of the processor)"
            found[f"{figure.name}: {taken}, expected under {startup.LIMIT_S:g} s on a free machine"] = False
    return found


if __name__ == "__main__":
    sys.exit(main())
