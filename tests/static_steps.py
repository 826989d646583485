"""Static ranges for tests: steps found on a probe, and by numpy what a rounded activation and a stored weight are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from axformer_onnx.runtime import run_once
from axformer_passes.integers import Reach, read_by_products, with_steps
from axformer_passes.precision import Activations, Int8
from axformer_passes.probe import probe_feeds, trace
from axformer_passes.recognise import examine


def with_static(model: ir.Model, int8: Int8, activations: Activations = "static", seeds: int = 3) -> Int8:
    """`int8` with steps of what its products read on a few probes."""
    examined = examine(model, run_once)
    names, reach = read_by_products(examined, int8), dict[str, Reach]()
    for seed in range(seeds):
        feeds = probe_feeds(examined.labelling.model, 2, 9, seed=seed)
        for name, array in trace(examined.labelling.model, run_once, feeds, names).items():
            if name in names:
                own = Reach.of(array)
                reach[name] = own.joined(reach[name]) if name in reach else own
    return with_steps(examined, dataclasses.replace(int8, activations=activations), reach)


def rounded(x: Any, step: float) -> Any:
    """float64: integers from -128 to 127, times the step."""
    exact = np.asarray(x, np.float32) / np.float32(step)
    return np.clip(np.rint(exact), -128, 127).astype(np.float64) * np.float64(np.float32(step))
