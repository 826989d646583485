"""SST-2, pruned, in float32 and in integers, for tests of real clients and servers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import axformer_onnx as ax
from axformer_passes.precision import Int8

SHARED = Path(__file__).parents[2] / "shared"
CHECKPOINT, ROWS = SHARED / "checkpoints" / "sst2", SHARED / "data" / "sst2"


def pruned(source: Path, folder: Path) -> dict[str, Path]:
    """Folders of the pruned model, by kind; `source`: of the exported one."""
    plan = ax.Plan().without_heads(0, [0, 5]).without_neurons(2, range(300)).with_hard_attention(1, 8)
    int8 = Int8(frozenset({1, 2, 3}), frozenset({0, 2, 4}), tables=8, stored=True)
    plans = {"float32": plan, "int8": dataclasses.replace(plan, int8=int8)}
    return {kind: ax.apply(one, source, folder / kind).parent for kind, one in plans.items()}


def sentences(count: int) -> list[tuple[str, ...]]:
    """Of the validation rows, the first; each alone in a tuple."""
    (path,) = (path for path in sorted(ROWS.iterdir()) if path.name.startswith("validation"))
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines()[:count])
    return [(row.get("sentence") or row["text"],) for row in rows]
