"""Files of a verdict: whole or not at all, by rename."""

from __future__ import annotations

from pathlib import Path

from axformer_onnx.errors import RuntimeFailure
from axformer_passes.io import write_text


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
        write_text(target, before + text)
    except (OSError, UnicodeDecodeError) as error:
        raise RuntimeFailure(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
