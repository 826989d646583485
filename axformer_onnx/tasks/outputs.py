"""Which output of a model a task reads, and which of its positions count. B batch, S tokens, D width.

row     [B, D]                          one row of numbers for each sequence
first   [B, S, D] -> x[:, 0]            the token that a classifier reads (CLS); behind left padding the first real one
last    [B, S, D] -> x[:, end]          the last real token
mean    [B, S, D] -> mean over the mask
max     [B, S, D] -> largest over the mask
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from axformer_onnx.errors import DataError

Array = npt.NDArray[Any]
Positions = Literal["row", "first", "last", "mean", "max"]
_FLOATS = {"tensor(float)", "tensor(float16)", "tensor(double)", "tensor(bfloat16)"}


@dataclasses.dataclass(frozen=True)
class Output:
    """What is read of a model.

    name       of the graph's output
    columns    numbers of each sequence, where the graph says so
    positions  which of its tokens count
    note       one sentence for the user; empty where there is nothing to say
    """

    name: str
    columns: int | None
    positions: Positions = "row"
    note: str = ""

    def read(self, values: Array, mask: npt.NDArray[np.bool_]) -> Array:
        """[B, D] of the output's values [B, D] or [B, S, D]; mask bool[B, S]: the real tokens."""
        return np.asarray(values) if self.positions == "row" else pooled(np.asarray(values), mask, self.positions)


def pooled(values: Array, mask: npt.NDArray[np.bool_], positions: Positions) -> Array:
    """[B, D] of values [B, S, D] over the tokens of mask [B, S]."""
    rows = np.arange(len(values))
    if positions == "first":
        return np.asarray(values[rows, mask.argmax(axis=1)])
    if positions == "last":
        return np.asarray(values[rows, mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)])
    if positions == "max":
        return np.asarray(np.where(mask[:, :, None], values, -np.inf).max(axis=1))
    weights = mask[:, :, None].astype(values.dtype)
    return np.asarray((values * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9))


def logits_of(outputs: Sequence[Any]) -> Output:
    """The output called 'logits', else the only float output of shape [batch, classes].

    outputs  as ONNX Runtime describes them: name, type, shape

    Raises: DataError that lists the outputs.
    """
    named = [one for one in outputs if one.name == "logits" and len(one.shape) == 2]
    flat = [one for one in outputs if one.type in _FLOATS and len(one.shape) == 2]
    chosen = named or (flat if len(flat) == 1 else [])
    if not chosen:
        raise DataError(
            f"no output has the shape [batch, classes]; the model has {shown(outputs)}. "
            "Export it with a sequence classification head"
        )
    return Output(chosen[0].name, columns_of(chosen[0]))


def columns_of(output: Any) -> int | None:
    """The last axis of an output, where the graph fixes it."""
    columns = output.shape[-1]
    return columns if isinstance(columns, int) else None


def shown(outputs: Sequence[Any]) -> str:
    """Outputs for a message: name, type and shape of each."""
    return ", ".join(f"{one.name} {one.type} {one.shape}" for one in outputs)
