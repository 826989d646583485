"""The weights file of a plan: safetensors beside the plan (`axformer_passes/plan.py` says what is in it).

Nothing is read before the header says that it is what the plan expects: names, types and shapes. So a file cannot ask for more
memory than the output projections of the model have.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.errors import PlanError, RuntimeFailure
from axformer_passes.cut import Weights, check_entry

WEIGHTS = "plan.safetensors"
"""The name that this tool gives the file."""
FORMAT = "axformer-weights/1"
_DTYPES = {"F32": "float32", "F64": "float64"}


def weights_path(plan_path: Path, name: str | None) -> Path | None:
    """Where the file that a plan at `plan_path` names lies; None where it names none."""
    return None if name is None else plan_path.parent / name


def save_weights(weights: Weights, path: Path) -> None:
    """Write the file. Equal weights give equal bytes. Raises: RuntimeFailure where it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file({k: np.ascontiguousarray(v) for k, v in weights.items()}, path, metadata={"format": FORMAT})
    except (OSError, SafetensorError) as error:
        raise RuntimeFailure(f"{path}: cannot be written: {error}") from None


def load_weights(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of the file at `path`; `shapes` are what it may hold (`reweight.weight_shapes`).

    Raises: PlanError for a file that is missing, no safetensors file, or holds anything else.
    """
    from safetensors import SafetensorError, safe_open

    _require_regular(path)
    try:
        with safe_open(path, framework="np") as file:
            names = sorted(file.keys())
            for name in names:
                entry = file.get_slice(name)
                dtype, shape = str(entry.get_dtype()), tuple(entry.get_shape())
                check_entry(name, _DTYPES.get(dtype, dtype), shape, shapes)
            return {name: file.get_tensor(name) for name in names}
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise PlanError(
            f"{path}: not a safetensors file, or truncated ({' '.join(str(error).split())[:160]})"
        ) from None


def _require_regular(path: Path) -> None:
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PlanError(f"{path}: the plan's weights cannot be read: {reason}; the file lies beside the plan") from None
    if not stat.S_ISREG(found.st_mode):
        raise PlanError(f"{path}: the plan's weights are no regular file")


__all__ = ["FORMAT", "WEIGHTS", "load_weights", "save_weights", "weights_path"]
