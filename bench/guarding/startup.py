"""How long `axformer-onnx --help` takes, and what is heavy in it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence

from guarding.figures import Figure, count, seconds

LIMIT_S = 0.2
"""Of `--help`, on a free machine."""
HEAVY = frozenset(
    (
        *("joblib", "numpy", "onnx", "onnx_ir", "onnxruntime", "psutil", "pyarrow", "pydantic", "rich", "safetensors"),
        *("scipy", "tokenizers", "torch", "transformers"),
    )
)
"""Packages that nobody needs to read help."""
STARTS = 21
COMMAND = (sys.executable, "-m", "axformer_onnx")


def measured(starts: int = STARTS) -> list[Figure]:
    """Times of so many starts of two kinds of help and of Python alone, in turns; what is imported."""
    kinds = {
        "python alone": (sys.executable, "-c", "pass"),
        "--help": (*COMMAND, "--help"),
        "optimize --help": (*COMMAND, "optimize", "--help"),
    }
    wall: dict[str, list[float]] = {name: [] for name in kinds}
    busy: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(starts):
        for name, command in kinds.items():
            taken = started(command)
            wall[name].append(taken[0])
            busy[name].append(taken[1])
    found = [seconds(f"start-up / {name} / wall", taken) for name, taken in wall.items()]
    found += [seconds(f"start-up / {name} / processor", taken) for name, taken in busy.items()]
    own = imported((*COMMAND, "--help"))
    heavy = sorted(HEAVY.intersection(own))
    total = sum(modules for modules, _ in own.values())
    return [
        *found,
        count("start-up / --help / modules imported", total, noise=0.05),
        Figure("start-up / --help / heavy packages", len(heavy), "", decisive=True, why=", ".join(heavy)),
    ]


def started(command: Sequence[str]) -> tuple[float, float]:
    """(wall seconds, seconds of the processor) of a process. Raises: RuntimeError where it fails."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
    return wall, used.ru_utime + used.ru_stime


def imported(command: Sequence[str]) -> dict[str, tuple[int, float]]:
    """{top-level package: (modules, seconds of their own)}, the slowest first."""
    python, *rest = command
    done = subprocess.run([python, "-X", "importtime", *rest], capture_output=True, text=True, check=True)
    return by_package(done.stderr)


def by_package(text: str) -> dict[str, tuple[int, float]]:
    """The same of what `-X importtime` prints."""
    modules, spent = Counter[str](), Counter[str]()
    for line in text.splitlines():
        own, bar, rest = line.removeprefix("import time:").partition("|")
        if bar and own.strip().isdigit():
            package = rest.rpartition("|")[2].strip().partition(".")[0]
            modules[package] += 1
            spent[package] += int(own)
    return {name: (modules[name], spent[name] / 1e6) for name, _ in spent.most_common()}
