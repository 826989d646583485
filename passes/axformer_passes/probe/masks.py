"""Attention masks among the inputs of a graph, and batches whose rows differ in length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]


def mask_inputs(model: ir.Model) -> tuple[ir.Value, ...]:
    """The graph inputs that say which tokens are real: mask[B,S], as they are called everywhere."""
    named = [value for value in model.graph.inputs if "mask" in str(value.name).lower()]
    return tuple(value for value in named if value.shape is not None and len(value.shape) == 2)


def ragged(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """`feeds` with masks of rows that differ: in turn a whole row, a text of half the length, a single token, a text behind
    padding, one with holes. Everything else stays, so that ids under the mask are anything."""
    found = dict(feeds)
    for value in mask_inputs(model):
        array = feeds[str(value.name)]
        rows = np.array([_row(i % 5, array.shape[1]) for i in range(array.shape[0])])
        found[str(value.name)] = rows.reshape(array.shape).astype(array.dtype)
    return found


def _row(kind: int, length: int) -> Array:
    places, half = np.arange(length), (length + 1) // 2
    rows = (places >= 0, places < half, places < 1, places >= length - half, places % 3 != 1)
    return rows[kind]


__all__ = ["mask_inputs", "ragged"]
