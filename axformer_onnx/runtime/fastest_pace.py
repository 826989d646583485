"""How fast a fixed piece of arithmetic ran here when nothing disturbed it: what a slow machine cannot tell of itself.

A virtual machine whose neighbour is busy for as long as a comparison takes looks like a free one that is slower: CPU time is wall
time, and no time is stolen. So the fastest pace of the last hours is kept, in this process and in the user's cache folder, and a
comparison that ran at a slower one is known for what it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from axformer_onnx.runtime.hardware import describe_hardware
from axformer_onnx.runtime.user_cache import cache_folder

HOURS = 6.0
"""So long a pace counts: power settings and the machine under a container change."""


def pace() -> None:
    """Single-threaded float32 arithmetic that lives in the first cache, a tenth of a millisecond of it."""
    for _ in range(_PRODUCTS):
        np.matmul(_MATRIX, _MATRIX, out=_RESULT)


_PRODUCTS = 24
_MATRIX = np.full((48, 48), 1 / 48, dtype=np.float32)
_RESULT = np.empty_like(_MATRIX)


class FastestPace:
    """`fastest(ms)` notes a pace and returns the fastest that is known, in milliseconds.

    file   makes the path that it is kept in, when it is first asked; a path that cannot be read or written costs the memory between
           runs alone
    now    seconds since 1970
    """

    def __init__(self, file: Callable[[], Path], now: Callable[[], float] = time.time) -> None:
        self._file, self._now = file, now
        self._path: Path | None = None
        self._known: tuple[float, float] | None = None

    def __call__(self, ms: float) -> float:
        """`ms` or what was faster within HOURS."""
        if self._path is None:
            self._path = self._file()
            self._known = _read(self._path)
        now = self._now()
        if self._known is None or ms <= self._known[0] or not 0 <= now - self._known[1] < 3600 * HOURS:
            self._known = ms, now
            _write(self._path, ms, now)
        return self._known[0]


def pace_file() -> Path:
    """Of this processor and this NumPy, in the user's cache folder."""
    cpu = "".join(c if c.isalnum() else "-" for c in str(describe_hardware()["cpu"]))
    return cache_folder("latency") / f"pace-{cpu}-{np.__version__}.json"


def _read(path: Path) -> tuple[float, float] | None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return float(known["ms"]), float(known["at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, ms: float, now: float) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps({"ms": ms, "at": now}), encoding="utf-8")
        beside.replace(path)


__all__ = ["HOURS", "FastestPace", "pace", "pace_file"]
