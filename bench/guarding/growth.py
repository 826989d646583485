"""How the passes grow with the graph: encoders of ever more layers, every step counted in function calls and in seconds.

Calls (cProfile) follow from the code and from the versions of what it calls; their exponent is what must stay near 1. Seconds are
of the processor, the quickest of three, without the probe run, which is ONNX Runtime's (bench/linear.py, up to 100,000 nodes).
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from deep_graphs import deep_model
from linear import Probe, apart, prepared

from axformer_onnx.runtime import run_once
from guarding.figures import SINGLE, Figure, count

STEPS = {"examine": "recognise", "apply": "apply", "stages": "cut into stages"}
LAYERS = (2, 4, 8, 16, 32, 48)
FITTED_FROM = 8
"""Layers: below, what every graph costs weighs too much."""
REPEATS = 3
MOST = 1.15
"""An exponent beyond is not near linear."""


def measured(layers: Sequence[int] = LAYERS) -> list[Figure]:
    """Exponents of every step, and what it takes on the deepest graph."""
    found = list[Figure]()
    for step, name in STEPS.items():
        calls, taken = apart(counted, step, layers), apart(timed, step, layers)
        found += [
            count(f"passes / {name} / exponent of calls", exponent(calls), noise=0.03),
            Figure(f"passes / {name} / calls at {layers[-1]} layers", calls[layers[-1]], "", noise=0.02),
            Figure(f"passes / {name} / exponent of seconds", exponent(taken), "", noise=SINGLE),
            Figure(f"passes / {name} / at {layers[-1]} layers", round(taken[layers[-1]], 4), "s", noise=SINGLE),
        ]
    return found


def exponent(by_layers: Mapping[int, float]) -> float:
    """Slope of log(cost) over log(layers), from FITTED_FROM layers on: 1 is linear, 2 quadratic."""
    fitted = {n: x for n, x in by_layers.items() if n >= FITTED_FROM} or by_layers
    return round(float(np.polyfit(np.log(list(fitted)), np.log(list(fitted.values())), 1)[0]), 3)


def counted(step: str, layers: Sequence[int]) -> dict[int, float]:
    """Function calls by layers; the first run of a process, which imports, is not counted."""
    _each(step, layers[:1], run_once, _calls)
    return _each(step, layers, run_once, _calls)


def timed(step: str, layers: Sequence[int]) -> dict[int, float]:
    """Seconds by layers."""
    with Probe() as probe:

        def once(act: Callable[[], Any]) -> float:
            before, probe.waited = time.process_time(), 0.0
            act()
            return time.process_time() - before - probe.waited

        _each(step, layers[:1], probe, once)
        runs = [_each(step, layers, probe, once) for _ in range(REPEATS)]
    return {n: min(run[n] for run in runs) for n in layers}


def _each(
    step: str, layers: Sequence[int], runner: Any, cost: Callable[[Callable[[], Any]], float]
) -> dict[int, float]:
    found = dict[int, float]()
    with tempfile.TemporaryDirectory() as folder:
        for n in layers:
            path = Path(folder) / f"{n}.onnx"
            onnx.save(deep_model(n), path)
            found[n] = cost(prepared(step, str(path), runner))
    return found


def _calls(act: Callable[[], Any]) -> float:
    profile = cProfile.Profile()
    profile.runcall(act)
    statistics: Any = pstats.Stats(profile)
    return float(statistics.total_calls)
