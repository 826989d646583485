"""The user's cache folder: what is dear to make and may be lost, kept between runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axformer_passes.io import write_text


def cache_folder(kind: str) -> Path:
    """The folder for things of this kind, which need not exist: on Linux ~/.cache/axformer-onnx/<kind>, or below XDG_CACHE_HOME."""
    from platformdirs import user_cache_path

    return Path(user_cache_path("axformer-onnx", appauthor=False)) / kind


def keep_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of the cache, whole or not at all, whoever else writes it. Raises: OSError."""
    write_text(path, json.dumps(content))
