"""Weights in few bits: symmetric, a scale an output channel (a row of a table).

    weight[R, C] ~ integers[R, C] * scale[C],  |integers| <= 2^(bits - 1) - 1

7 bits are the default of products: without VNNI an x86 CPU adds pairs of products of unsigned and signed 8-bit numbers in
16 bits, and saturates beyond 2 * 255 * 64. With 7 bits it never does, so a file gives the same answers on every CPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_passes.precision import DEFAULT_BITS

Array = npt.NDArray[Any]
BLOCK = 32
"""Columns of a table in 4 bits that share a scale."""


def rounded_columns(weight: Array, bits: int = DEFAULT_BITS) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """(integers [R, C], scale [C]) of a matrix [R, C], each number rounded to the nearest. The scale of zeros is 1."""
    top = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(axis=0, initial=0.0).astype(np.float32) / np.float32(top)
    scale[scale == 0] = 1
    exact = weight.astype(np.float64) / scale.astype(np.float64)  # or a tie ends as the type of the matrix has it
    return np.clip(np.rint(exact), -top, top).astype(np.int8), scale


def nearest(
    weight: Array, bits: int = DEFAULT_BITS, shifts: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.float64]:
    """float64[R, C]: what the integers of a matrix stand for. shifts[R]: its rows are rounded 2^k times as large (`smoothing`)."""
    factor = np.ones((1, 1)) if shifts is None else np.exp2(shifts.astype(np.float64))[:, None]
    integers, scale = rounded_columns((weight * factor).astype(weight.dtype), bits)
    return integers.astype(np.float64) * scale.astype(np.float64) / factor


def scaled_down(shifts: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """float32[R]: what an activation is multiplied with before it is rounded; shifts: int64[R], powers of two (`smoothing`)."""
    return np.exp2(-shifts.astype(np.float64)).astype(np.float32)


def rounded_table(table: Array, bits: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """(integers [V, D], scale [V, N]) of a table [V, D]: N = 1 in 8 bits; in fewer a scale a block, N = D / `BLOCK`."""
    rows, width = table.shape
    integers, scale = rounded_columns(table.reshape(-1, width if bits == 8 else BLOCK).T, bits)
    return integers.T.reshape(rows, width), scale.reshape(rows, -1)


def nearest_table(table: Array, bits: int) -> npt.NDArray[np.float64]:
    """float64[V, D]: what the integers of a table stand for."""
    integers, scale = rounded_table(table, bits)
    return integers.astype(np.float64) * np.repeat(scale.astype(np.float64), table.shape[1] // scale.shape[1], axis=1)


__all__ = ["BLOCK", "Array", "nearest", "nearest_table", "rounded_columns", "rounded_table", "scaled_down"]
