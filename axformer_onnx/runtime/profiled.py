"""Which operators ran on which provider: what a provider does not take, ONNX Runtime leaves to the next one, and copies tensors."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from axformer_onnx.runtime.sessions import make_session, run_session


def placement(
    model: str | Path, feeds: Mapping[str, npt.NDArray[Any]], *, provider: str = "cpu", threads: int | None = None
) -> dict[str, dict[str, int]]:
    """{provider: {operator: nodes}} of one run, by ONNX Runtime's own profile; the most frequent operators first.

    Raises: as `make_session` and `run_session`.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = make_session(model, provider=provider, threads=threads, profile=Path(folder) / "run")
        run_session(session, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found = dict[str, Counter[str]]()
    for event in events:
        told = event.get("args", {})
        if event.get("cat") == "Node" and "provider" in told and str(event.get("name", "")).endswith("_kernel_time"):
            found.setdefault(str(told["provider"]), Counter())[str(told.get("op_name", "?"))] += 1
    return {name: dict(counts.most_common()) for name, counts in sorted(found.items())}


__all__ = ["placement"]
