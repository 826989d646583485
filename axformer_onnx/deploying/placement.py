"""The folder of a deployment: built beside its place and named when it is complete; files of others stay."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from axformer_onnx.data import read_json
from axformer_onnx.errors import AxformerError, RuntimeFailure, UsageError

RECORD = "deployed.json"
"""What was deployed, and the files that belong to it."""
FORMAT = "axformer-deployment/1"


def require_free(output: Path, source: Path, *, overwrite: bool) -> None:
    """Raises: UsageError where `output` is a file, holds the graph `source`, or is not empty and may not be written over."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: not a folder; name a folder")
    inside = source.resolve().is_relative_to(output.resolve()) if output.is_dir() else False
    if inside:
        raise UsageError(f"{output}: holds the model to deploy; the input is never modified. Name another folder")
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise UsageError(f"{output}: exists and is not empty. Name another folder, or give --overwrite")


@contextlib.contextmanager
def placed(output: Path) -> Iterator[Path]:
    """A folder to build in. It becomes `output` if the block ends well, and vanishes else.

    In a folder that is there already, the files of an earlier deployment go and the new ones take their place, the graphs last.
    Raises: RuntimeFailure where nothing can be written there.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-writing-"))
    except OSError as error:
        raise RuntimeFailure(f"{output}: cannot be written: {error.strerror}") from None
    try:
        yield building
        building.chmod(0o755)  # mkdtemp's folders are for their owner alone; a server runs as somebody else
        _name(building, output)
    except OSError as error:
        raise RuntimeFailure(f"{output}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)


def files_in(folder: Path) -> list[str]:
    """Paths of its files, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def record(folder: Path, content: dict[str, object]) -> None:
    """Write what was deployed, with the files that are in `folder`."""
    text = json.dumps({"format": FORMAT, **content, "files": sorted([*files_in(folder), RECORD])}, indent=2)
    (folder / RECORD).write_text(text + "\n", encoding="utf-8")


def _name(building: Path, output: Path) -> None:
    if output.is_dir() and not any(output.iterdir()):
        output.rmdir()
    if not output.exists():
        building.rename(output)
        return
    for name in _left_before(output):
        (output / name).unlink(missing_ok=True)
        _prune((output / name).parent, output)
    for folder in sorted(path for path in building.rglob("*") if path.is_dir()):
        (output / folder.relative_to(building)).mkdir(parents=True, exist_ok=True)
    for name in sorted(files_in(building), key=lambda name: (name.endswith(".onnx"), name)):
        (building / name).replace(output / name)


def _prune(folder: Path, output: Path) -> None:
    """Remove folders that are empty now, from `folder` up to `output`."""
    while folder != output and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _left_before(output: Path) -> list[str]:
    """Files of the deployment that is there, as its record names them."""
    try:
        earlier = read_json(output / RECORD)
    except AxformerError:
        return []
    names = earlier.get("files") if earlier.get("format") == FORMAT else None
    inside = [str(name) for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return [name for name in inside if (output / name).resolve().is_relative_to(output.resolve())]
