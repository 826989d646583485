"""The rows whose answer changed most: what people look at first."""

from __future__ import annotations

import dataclasses

import numpy as np

from axformer_onnx.data import Rows
from axformer_onnx.records import FloatArray
from axformer_onnx.tasks import Kind, LabelMap


@dataclasses.dataclass(frozen=True)
class ChangedRow:
    """One row that two models answer differently.

    first, second   their answers in words; empty where a kind has no words for an answer
    divergence      of the second model's outputs from the first's
    """

    texts: tuple[str, ...]
    first: str
    second: str
    divergence: float


def most_changed(
    rows: Rows, kind: Kind, first: FloatArray, second: FloatArray, label_map: LabelMap, count: int
) -> tuple[ChangedRow, ...]:
    """At most `count` rows whose answer is another one, the largest divergence first.

    first, second   outputs of the rows, their columns in the order of `label_map`
    """
    words = [kind.in_words(outputs, label_map) for outputs in (first, second)]
    divergence = kind.divergence(first, second)
    order = np.argsort(-divergence, kind="stable").tolist()
    changed = [i for i in order if (words[0][i] != words[1][i] if any(words[0]) else divergence[i] > 0)]
    return tuple(ChangedRow(rows.texts[i], words[0][i], words[1][i], float(divergence[i])) for i in changed[:count])


__all__ = ["ChangedRow", "most_changed"]
