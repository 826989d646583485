"""Static ranges for tests: steps found on a probe, and by numpy what a rounded activation and a stored weight are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from axformer_onnx.runtime import run_once
from axformer_passes.anatomy import Anatomy
from axformer_passes.integers import Reach, read_by_products, with_steps
from axformer_passes.io import detached
from axformer_passes.precision import Activations, Int8
from axformer_passes.probe import probe_feeds, trace
from axformer_passes.recognise import examine, recognise


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


def numpy_answers(floats: ir.Model, int8: Int8, feeds: dict[str, Any]) -> dict[str, Any]:
    """What `floats` answers in NumPy where the projections of these blocks read rounded numbers and multiply with rounded weights.

    Nothing is read off a graph of integers: steps and powers of two are those of `int8`, weights are rounded here.
    """
    places = _places(recognise(floats, run_once), int8)

    def product(x: Any, weight: Any, output: str) -> Any:
        if output not in places:
            return np.matmul(x, weight)
        step, shifts = places[output]
        factor = np.ones(len(weight))
        for channel, k in shifts.items():
            factor[channel] = 2.0**k
        scaled = weight * factor[:, None].astype(np.float32)
        scale = (np.abs(scaled).max(axis=0) / np.float32(63)).astype(np.float64)
        grid = np.rint(scaled.astype(np.float64) / np.where(scale == 0, 1, scale)) * scale
        return np.matmul(rounded(x / factor.astype(np.float32), step), grid).astype(np.float32)

    class MatMul(OpRun):
        op_domain = ""

        def _run(self, a: Any, b: Any) -> tuple[Any]:
            return (product(a, b, self.onnx_node.output[0]),)

    class Gemm(OpRun):
        op_domain = ""

        def _run(self, a: Any, b: Any, c: Any = None, *, alpha: Any, beta: Any, transA: Any, transB: Any) -> tuple[Any]:
            assert (alpha, beta, transA) == (1, 1, 0)
            found = product(a, b.T if transB else b, self.onnx_node.output[0])
            return (found if c is None else found + c,)

    proto = detached(floats).whole()
    names = [output.name for output in proto.graph.output]
    with np.errstate(over="ignore"):  # masks add what is already as low as can be
        found = ReferenceEvaluator(proto, new_ops=[MatMul, Gemm]).run(names, feeds)  # type: ignore[list-item]
    return dict(zip(names, found, strict=True))


def _places(anatomy: Anatomy, int8: Int8) -> dict[str, tuple[float, Any]]:
    """(step, powers of two by channel) of what each projection reads, by its output."""
    found = dict[str, tuple[float, Any]]()
    for layer in anatomy.layers:
        attention, feed_forward, i = layer.attention, layer.feed_forward, layer.index
        if attention is not None and i in int8.attention:
            steps, moved = int8.scales["attention"][i], int8.smooth.get("attention", {}).get(i, {})
            found |= {getattr(attention, name).output: (steps[name], moved) for name in ("query", "key", "value")}
            found[attention.output.output] = steps["output"], {}
        if feed_forward is not None and i in int8.feed_forward:
            steps, moved = int8.scales["feed_forward"][i], int8.smooth.get("feed_forward", {}).get(i, {})
            found[feed_forward.up[0].output] = steps["up"], moved
            found[feed_forward.down.output] = steps["down"], int8.smooth.get("neurons", {}).get(i, {})
    return found
