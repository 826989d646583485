"""How every result ends: the machine and the versions that it was measured with, as JSON.

    write(path, stamped({"rows": 872, ...}))

Scripts of this folder import it; run alone it does nothing.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axformer_onnx.runtime import describe_hardware, versions


def stamped(figures: Mapping[str, Any]) -> dict[str, Any]:
    """`figures`, and when, on which machine and with which versions they were measured."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {**figures, "created": now, "hardware": describe_hardware(), "versions": versions()}


def write(path: str | Path | None, result: Mapping[str, Any]) -> None:
    """Into a file, its folder made; nowhere for None."""
    if path is None:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")
