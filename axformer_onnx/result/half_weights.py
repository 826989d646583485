"""A graph in half precision against the same graph in float32: each weight the nearest half, then the same answers given these.

This shares no code with `axformer_passes.halves`: weights are read off the written graph and put in the place of the floats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common

from axformer_onnx.errors import VerifyError
from axformer_passes.graph import constant

_STEP = {"fp16": 2.0**-11, "bf16": 2.0**-8}
"""Half of the distance of two neighbours, relative to the smaller one."""
_LEAST = {"fp16": 2.0**-25, "bf16": 0.0}
"""Half of the smallest number above zero."""
_LARGEST = {"fp16": 65504.0, "bf16": 3.3895313892515355e38}


def put_halves(floats: ir.Model, result: ir.Model, kind: str) -> int:
    """Write the halves of `result` into `floats`, in place; returns how many tensors they are.

    Raises: VerifyError where one is not the nearest half, or stands for nothing.
    """
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(floats)
    own = {str(name): value for name, value in floats.graph.initializers.items()}
    count = 0
    for name, value in result.graph.initializers.items():
        array = constant(value)
        if array is None or array.dtype.itemsize != 2 or array.dtype.kind in "iu":
            continue
        meant = own.get(str(name)) or own.get(str(name).removesuffix("_half"))
        before = constant(meant)
        if meant is None or before is None or before.shape != array.shape:
            raise VerifyError(f"{name!r} is in half precision and stands for no weight of the graph in float32")
        _require_near(str(name), before, array.astype(np.float64), kind)
        meant.const_value = ir.tensor(np.ascontiguousarray(array.astype(np.float32)), name=meant.name)
        count += 1
    return count


def _require_near(name: str, before: npt.NDArray[Any], after: npt.NDArray[np.float64], kind: str) -> None:
    bounded = np.clip(before.astype(np.float64), -_LARGEST[kind], _LARGEST[kind])
    near = np.abs(bounded - after) <= np.maximum(_STEP[kind] * np.abs(bounded), _LEAST[kind]) * (1 + 1e-6)
    if not np.where(np.isfinite(before), near, before == after).all():
        raise VerifyError(f"{name!r}: its numbers are not the halves nearest to the weights that they stand for")


__all__ = ["put_halves"]
