"""`--sample FILE.npz`: arrays for the inputs of a graph, checked against what it declares."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_onnx.errors import UsageError

Array = npt.NDArray[Any]


def read_sample(path: Path, model: ir.Model) -> dict[str, Array]:
    """The arrays of an .npz file by name, in the types that the graph declares.

    Raises: UsageError for what is no such file, and for arrays that are not the graph's inputs in name, type or shape.
    """
    found = _arrays(path)
    declared = {str(value.name): value for value in model.graph.inputs}
    missing, surplus = [n for n in declared if n not in found], [n for n in found if n not in declared]
    if missing or surplus:
        wrong = f"no array for input {missing[0]!r}" if missing else f"{surplus[0]!r} is no input of the graph"
        raise UsageError(
            f"--sample {path}: {wrong}; found {', '.join(map(repr, found)) or 'no arrays'}, expected "
            f"{', '.join(f'{name} {_declared(value)}' for name, value in declared.items())}"
        )
    return {name: _fitting(found[name], value, path) for name, value in declared.items()}


def _arrays(path: Path) -> dict[str, Array]:
    hint = "write it with numpy.savez(FILE, input_ids=..., ...), an array for each input"
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UsageError(f"--sample {path}: one array, expected an .npz file; {hint}")
        with archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UsageError(f"--sample {path}: no such file; {hint}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0][:160]
        raise UsageError(f"--sample {path}: not an .npz file that can be read ({reason}); {hint}") from None


def _fitting(array: Array, value: ir.Value, path: Path) -> Array:
    """In the type of the input. Raises: UsageError."""
    dims, wrong = list(value.shape or ()), ""
    dtype = value.dtype.numpy() if value.dtype is not None else array.dtype
    alike = array.dtype == dtype or (array.dtype.kind == dtype.kind and dtype.kind in "iuf")
    if value.dtype == ir.DataType.BFLOAT16:
        alike = array.dtype.kind == "f"
    if not alike or (value.shape is not None and array.ndim != len(dims)) or 0 in array.shape:
        wrong = "an empty array" if 0 in array.shape else f"{array.dtype}{list(array.shape)}"
    elif any(isinstance(size, int) and size != n for size, n in zip(dims, array.shape, strict=False)):
        wrong = f"{array.dtype}{list(array.shape)}"
    if wrong:
        raise UsageError(f"--sample {path}: {str(value.name)!r} is {wrong}, expected {_declared(value)}")
    return array.astype(dtype, copy=False)


def _declared(value: ir.Value) -> str:
    """For example "int64[batch, 128]"."""
    dims = [str(size) if isinstance(size, int) else size.value or "?" for size in value.shape or ()]
    return f"{value.dtype.name.lower() if value.dtype is not None else '?'}[{', '.join(dims)}]"


__all__ = ["read_sample"]
