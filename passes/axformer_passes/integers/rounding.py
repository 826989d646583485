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
TABLE_BITS = 8
"""Of tables, which no product reads."""


def rounded_columns(weight: Array, bits: int = DEFAULT_BITS) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """(integers [R, C], scale [C]) of a matrix [R, C], each number rounded to the nearest. The scale of zeros is 1."""
    top = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(axis=0, initial=0.0).astype(np.float32) / np.float32(top)
    scale[scale == 0] = 1
    exact = weight.astype(np.float64) / scale.astype(np.float64)  # or a tie ends as the type of the matrix has it
    return np.clip(np.rint(exact), -top, top).astype(np.int8), scale


def nearest(weight: Array, bits: int = DEFAULT_BITS) -> npt.NDArray[np.float64]:
    """float64[R, C]: what the integers of a matrix stand for."""
    integers, scale = rounded_columns(weight, bits)
    return integers.astype(np.float64) * scale.astype(np.float64)


__all__ = ["TABLE_BITS", "Array", "nearest", "rounded_columns"]
