"""Seeds of the fuzzers, made by code: small whole models, and the corpus of hostile files and plans."""

from __future__ import annotations

import functools
import itertools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

PLANS = (
    {"format": "axformer-plan/1"},
    {"format": "axformer-plan/1", "heads": {"0": [1, 3]}, "neurons": {"0": [5, 6]}, "source_sha256": "00"},
    {"format": "axformer-plan/1", "attention_blocks": [2], "feed_forward_blocks": [3], "weights": "plan.safetensors"},
    {"format": "axformer-plan/1", "hard_attention": {"1": {"k": 30, "mode": "renormalised"}, "2": {"k": 1}}},
)


def write_plans(folder: Path) -> None:
    """One file a plan."""
    for number, plan in enumerate(PLANS):
        (folder / f"plan{number}").write_text(json.dumps(plan))


def _attention(heads: Any, attend: Any, g: Any, w: Any, x: str) -> str:
    return str(attend(g, w, heads(g, w, x)))


def write_models(folder: Path, most: int) -> None:
    """One file a model, those above `most` bytes left out."""
    import hostile_graphs  # noqa: F401  (adds its cases)
    import hostile_names  # noqa: F401
    import small_graphs as draw
    from hostile_files import CANARY, CASES

    ways = (draw.separate, draw.fused_split, draw.fused_slice, draw.fused_stack, draw.fused_interleaved)
    feeds = (draw.plain, draw.in_two_parts, draw.pieces, draw.interleaved)
    for heads, attend, feed in itertools.product(ways, (draw.attend, draw.batched), feeds):
        proto = draw.layer(functools.partial(_attention, heads, attend), feed, draw.weights())
        (folder / f"{heads.__name__}_{attend.__name__}_{feed.__name__}").write_bytes(proto.SerializeToString())
    for case in CASES:
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / CANARY).write_bytes(b"secret" * 100)
            (Path(name) / "inner").mkdir()
            path = case.build(Path(name) / "inner")
            if os.path.isfile(path) and path.stat().st_size <= most:
                (folder / case.name).write_bytes(path.read_bytes())
