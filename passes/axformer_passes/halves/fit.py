"""What does not fit into half precision: float16 ends at 65,504; bfloat16 reaches as far as float32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.graph import anchor

TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""By the names that plans and options have for them."""
HEADROOM = 4.0
"""A value on other texts may be so many times larger than on those that were seen."""
_MASK = 1e9
"""What is further from zero is no activation but a mask, which `writing` clips."""


def largest_of(kind: ir.DataType) -> float:
    """The largest finite number of a half-precision type."""
    from ml_dtypes import finfo

    return float(finfo(kind.numpy()).max)  # type: ignore[no-untyped-call]


def outgrown(model: ir.Model, largest: Mapping[str, float], kind: ir.DataType) -> frozenset[str]:
    """The nodes (by their first output) that make or read a value which may not fit.

    largest   of every value, by name: the largest |x| that is no mask (see `seen`), on data
    """
    limit = largest_of(kind) / HEADROOM
    wide = {name for name, value in largest.items() if value > limit}
    return frozenset(
        anchor(node) for node in model.graph
        if node.outputs and wide & {str(v.name) for v in (*node.inputs, *node.outputs) if v is not None}
    )  # fmt: skip


def seen(values: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, float]:
    """By name the largest |x| of float32 values, numbers of masks left out."""
    found = dict[str, float]()
    for name, array in values.items():
        if array.dtype == np.float32 and array.size:
            size = np.abs(array)
            found[name] = float(size[size < _MASK].max(initial=0.0))
    return found


__all__ = ["HEADROOM", "TYPES", "largest_of", "outgrown", "seen"]
