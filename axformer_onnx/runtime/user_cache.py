"""The user's cache folder: what is dear to make and may be lost, kept between runs."""

from __future__ import annotations

from pathlib import Path


def cache_folder(kind: str) -> Path:
    """The folder for things of this kind, which need not exist: on Linux ~/.cache/axformer-onnx/<kind>, or below XDG_CACHE_HOME."""
    from platformdirs import user_cache_path

    return Path(user_cache_path("axformer-onnx", appauthor=False)) / kind
