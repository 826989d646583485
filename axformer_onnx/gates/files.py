"""Files of a verdict: whole or not at all, by rename."""

from __future__ import annotations

import os
from pathlib import Path

from axformer_onnx.errors import RuntimeFailure


def write(path: Path, text: str, *, append: bool = False) -> None:
    """Write `text`; append: behind what the file holds already, as a job's summary does.

    A link is followed. A pipe, or /dev/stdout whatever that is, is written to as it is. Raises: RuntimeFailure.
    """
    try:
        target = path.resolve()
        if path.absolute().parts[1:2] in (("dev",), ("proc",)) or (target.exists() and not target.is_file()):
            with path.open("a", encoding="utf-8") as stream:
                stream.write(text)
            return
        before = target.read_text(encoding="utf-8") if append and target.exists() else ""
        _replace(target, before + text)
    except (OSError, UnicodeDecodeError) as error:
        raise RuntimeFailure(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None


def _replace(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        if target.exists():
            beside.chmod(target.stat().st_mode)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
