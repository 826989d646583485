"""Do recognition and the passes grow in proportion to the nodes of a graph?

    python bench/linear.py [--nodes 1000 10000 30000 100000] [--json FILE]

Graphs of a small transformer with ever more layers (tests/deep_graphs.py), every step in a process of its own:

    load+save   onnx.load and onnx.save, to compare with
    examine     load_model and examine
    apply       apply_plan: heads, neurons, blocks and hard attention, something in every layer
    stages      Staged: cut into stages, every stage extracted with its gates

Seconds are of the processor, so that other work on the machine does not count. The probe run is ONNX Runtime's own time and
memory: it happens in a process beside, and has a column of its own (a model with large weights is probed in the same process,
so there the MiB are of both). MiB is the peak above that of the imports. `exponent` is the slope of log(seconds) over log(nodes)
from 10,000 nodes on: 1 is linear, 2 quadratic.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from deep_graphs import Sizes, deep_model, eager, thinned_everywhere
from record import stamped, write

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.io.files import load_model
from axformer_passes.io.lean_model import Detached
from axformer_passes.recognise.examination import examine
from axformer_passes.stages.stages import Staged

STEPS = ("load+save", "examine", "apply", "stages")
NODES_A_LAYER = 60
BASE = Sizes(width=768, heads=12, neurons=3072)
_FRESH = multiprocessing.get_context("spawn")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1000, 10_000, 30_000, 100_000])
    parser.add_argument("--json", help="write the figures here")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = [_size(Path(folder), count) for count in a.nodes]
        base = Path(folder) / "base.onnx"
        onnx.save(deep_model(12, BASE, (eager,)), base)
        result = stamped({
            "sizes": sizes,
            "exponents": {step: _exponent(sizes, step) for step in STEPS},
            "bert_base_sized": {step: apart(_measure, step, str(base), 3) for step in STEPS},
        })  # fmt: skip
    _print(result)
    write(a.json, result)


def _size(folder: Path, wanted: int) -> dict[str, Any]:
    """Every step on a graph of about `wanted` nodes."""
    model = deep_model(max(1, wanted // NODES_A_LAYER))
    path = folder / f"{wanted}.onnx"
    onnx.save(model, path)
    nodes, layers = len(model.graph.node), wanted // NODES_A_LAYER
    del model
    print(f"{nodes} nodes ...", file=sys.stderr, flush=True)
    figures = {step: apart(_measure, step, str(path), 3 if wanted <= 10_000 else 1) for step in STEPS}
    return {"nodes": nodes, "layers": layers, "file_bytes": path.stat().st_size, **figures}


def _exponent(sizes: list[dict[str, Any]], step: str) -> float | None:
    large = [x for x in sizes if x["nodes"] >= 9000]
    if len(large) < 2:
        return None
    nodes, seconds = [x["nodes"] for x in large], [x[step]["seconds"] for x in large]
    return round(float(np.polyfit(np.log(nodes), np.log(seconds), 1)[0]), 2)


# -- in processes of their own ----------------------------------------------------------------------------------------


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=_FRESH) as pool:
        return pool.submit(function, *arguments).result()


def _measure(step: str, path: str, repeats: int) -> dict[str, float]:
    """{seconds, probe_seconds, peak_mib} of one step: the quickest of `repeats`; memory of the first."""
    idle = resident_kib("VmRSS")
    found = []
    with Probe() as probe:
        for _ in range(repeats):
            act = prepared(step, path, probe)
            before, probe.seconds, probe.waited = time.process_time(), 0.0, 0.0
            act()
            seconds = time.process_time() - before - probe.waited
            peak = (resident_kib("VmHWM") - idle) / 1024
            found.append({"seconds": seconds, "probe_seconds": probe.seconds, "peak_mib": peak})
    best = min(found, key=lambda x: x["seconds"])
    return {name: round(value, 4) for name, value in {**best, "peak_mib": found[0]["peak_mib"]}.items()}


def prepared(step: str, path: str, probe: Probe) -> Callable[[], Any]:
    """What is timed, with what it needs at hand."""
    if step == "load+save":
        return lambda: onnx.save(onnx.load(path), f"{path}.again")
    if step == "examine":
        return lambda: examine(load_model(path), probe)
    model = load_model(path)
    examined = examine(model, probe)
    if step == "apply":
        plan = thinned_everywhere(examined.anatomy)
        return lambda: apply_plan(model, plan, probe, examined=examined)
    return lambda: _all_stages(Staged(examined))


def _all_stages(staged: Staged) -> None:
    for stage in staged.stages:
        staged.detached(stage, "gated")


class Probe:
    """A runner in a process beside: the time and memory of ONNX Runtime are not mixed with our own.

    seconds, waited    of the processor since they were set to 0: over there, and here for talking to it
    """

    def __init__(self) -> None:
        self.seconds = self.waited = 0.0
        self._pool = ProcessPoolExecutor(1, mp_context=_FRESH)

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def __call__(self, model: Detached, feeds: Mapping[str, Any]) -> dict[str, Any]:
        before = time.process_time()
        if model.weights:  # large weights are shared with a session in this process, not sent
            values = run_once(model, feeds)
            self.seconds += time.process_time() - before
        else:
            values, seconds = self._pool.submit(_run, model, dict(feeds)).result()
            self.seconds += seconds
        self.waited += time.process_time() - before
        return values


def _run(model: Detached, feeds: dict[str, Any]) -> tuple[dict[str, Any], float]:
    before = time.process_time()
    return run_once(model, feeds), time.process_time() - before


def resident_kib(field: str) -> int:
    """VmRSS (now) or VmHWM (the most so far) of this process; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


# -- the table --------------------------------------------------------------------------------------------------------


def _print(result: dict[str, Any]) -> None:
    print(f"{'nodes':>14} {'file MiB':>9}" + "".join(f" | {step:>9} s  MiB  probe s" for step in STEPS))
    for row in result["sizes"]:
        cells = "".join(_cell(row[step]) for step in STEPS)
        print(f"{row['nodes']:>14} {row['file_bytes'] / 2**20:>9.1f}{cells}")
    print(f"{'BERT-base size':>14} {'':>9}" + "".join(_cell(result["bert_base_sized"][step]) for step in STEPS))
    print("exponents: " + ", ".join(f"{step} {value}" for step, value in result["exponents"].items()))


def _cell(figures: dict[str, float]) -> str:
    return f" | {figures['seconds']:>9.3f} {figures['peak_mib']:>6.0f} {figures['probe_seconds']:>8.2f}"


if __name__ == "__main__":
    main()
