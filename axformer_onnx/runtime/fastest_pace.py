"""How fast a fixed piece of arithmetic ran here when nothing disturbed it: what a slow machine cannot tell of itself.

A virtual machine whose neighbour is busy for as long as a comparison takes looks like a free one that is slower: CPU time is wall
time, and no time is stolen. So the fastest pace of the last hours is kept, in this process and in the user's cache folder, and a
comparison that ran at a slower one is known for what it is. The arithmetic is that of a small feed-forward block on as many threads
as the models have: one thread alone would share its core with whatever else runs while the others rest, and products that fit
the first cache would not notice who takes the memory's bandwidth.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from axformer_onnx.runtime.hardware import describe_hardware
from axformer_onnx.runtime.sessions import make_session
from axformer_onnx.runtime.user_cache import cache_folder, keep_json

HOURS = 6.0
"""So long a pace counts: power settings and the machine under a container change."""
_TOKENS, _WIDTH, _INNER = 32, 384, 1536


@functools.cache
def make_pace(threads: int) -> Callable[[], None]:
    """A run of the block x[32,384] -> MatMul up[384,1536] -> MatMul down[1536,384] in float32: about a millisecond.

    threads   inside one operator; 0: ONNX Runtime's choice
    """
    session = make_session(_block(), threads=threads or None, what="the block that tells the machine's pace")
    tokens = {"x": np.ones((_TOKENS, _WIDTH), dtype=np.float32)}

    def run() -> None:
        session.run(None, tokens)

    run()
    return run


def _block() -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    weights = {"up": (_WIDTH, _INNER), "down": (_INNER, _WIDTH)}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "up"], ["inner"]), helper.make_node("MatMul", ["inner", "down"], ["y"])],
        "pace",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [_TOKENS, _WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [_TOKENS, _WIDTH])],
        [
            numpy_helper.from_array(random.normal(0, 0.03, shape).astype(np.float32), name)
            for name, shape in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return bytes(model.SerializeToString())


class FastestPace:
    """`fastest(threads, ms)` notes a pace on so many threads and returns the fastest that is known, in milliseconds.

    file   makes the path that it is kept in, from the number of threads; a path that cannot be read or written costs the memory
           between runs alone
    now    seconds since 1970
    """

    def __init__(self, file: Callable[[int], Path], now: Callable[[], float] = time.time) -> None:
        self._file, self._now = file, now
        self._known: dict[int, tuple[float, float] | None] = {}

    def __call__(self, threads: int, ms: float) -> float:
        """`ms` or what was faster within HOURS."""
        if threads not in self._known:
            self._known[threads] = _read(self._file(threads))
        now, known = self._now(), self._known[threads]
        if known is None or ms <= known[0] or not 0 <= now - known[1] < 3600 * HOURS:
            self._known[threads] = known = ms, now
            _write(self._file(threads), ms, now)
        return known[0]


def pace_file(threads: int) -> Path:
    """Of this processor, this ONNX Runtime and so many threads, in the user's cache folder."""
    hardware = describe_hardware()
    name = "".join(c if c.isalnum() else "-" for c in f"{hardware['cpu']}-{hardware['onnxruntime']}")
    return cache_folder("latency") / f"pace-{name}-{threads}.json"


def _read(path: Path) -> tuple[float, float] | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return float(known["ms"]), float(known["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, ms: float, now: float) -> None:
    with contextlib.suppress(OSError):
        keep_json(path, {"ms": ms, "at": now})


__all__ = ["HOURS", "FastestPace", "make_pace", "pace_file"]
