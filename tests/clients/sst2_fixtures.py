"""SST-2, pruned, in float32 and in integers, for tests of real clients. Skips without the data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import axformer_onnx as ax
from axformer_passes.precision import Int8

SHARED = Path(__file__).parents[3] / "shared"
CHECKPOINT, ROWS = SHARED / "checkpoints" / "sst2", SHARED / "data" / "sst2"
WITHIN = {"float32": 2e-5, "int8": 0.1}
"""Of logits that reach about 4; see clients_fixtures for the integers."""


@pytest.fixture(scope="session")
def sst2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the pruned model, by kind."""
    if not CHECKPOINT.is_dir():
        pytest.skip("needs the shared checkpoints")
    folder = tmp_path_factory.mktemp("sst2")
    source = ax.export(CHECKPOINT, folder / "source", task="sst2").path
    plan = ax.Plan().without_heads(0, [0, 5]).without_neurons(2, range(300)).with_hard_attention(1, 8)
    int8 = Int8(frozenset({1, 2, 3}), frozenset({0, 2, 4}), tables=8, stored=True)
    plans = {"float32": plan, "int8": dataclasses.replace(plan, int8=int8)}
    return {kind: ax.apply(one, source, folder / kind).parent for kind, one in plans.items()}


def sentences(count: int) -> list[tuple[str, ...]]:
    """Of the validation rows, the first."""
    (path,) = (path for path in sorted(ROWS.iterdir()) if path.name.startswith("validation"))
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    return [(row.get("sentence") or row["text"],) for row in map(json.loads, lines)]
