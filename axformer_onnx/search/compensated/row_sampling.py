"""Rows that candidates are evaluated on: more often those that the source is unsure about, with weights that make up for it.

Most of a divergence comes from few rows. To second order it is a quadratic form in the change of the logits, with the matrix
diag(p) - p p^T of the source's own probabilities, whose trace is 1 - |p|^2 (Gini impurity): a row of which the source is sure
hardly counts. So rows are drawn without replacement with probabilities in proportion to a size,

    size = 1 - |p|^2 + FLOOR         inclusion = min(1, c size), c so that they sum to n         weight = n / (N inclusion)

and the mean of weight x divergence over the n rows drawn is the Horvitz-Thompson estimate of the mean over all N, with the noise of
about twice as many rows drawn evenly (`tests/test_drawing.py`). Where there are far more rows than are wanted, N of them are drawn
evenly first: the source need not be run on all. Kinds of task for which no such size is known draw evenly
(`tasks.Kind.weighs_rows`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from axformer_onnx.records import FloatArray
from axformer_onnx.tasks import Kind

FLOOR = 0.02
"""Size of a row of which the source is certain: such rows move, too, if rarely."""
MOST = 2 / 3
"""Part of the rows that is drawn at most: the last third hardly counts."""
POOL = 3
"""Rows that the source is run on for each that is wanted."""
IntArray = npt.NDArray[np.int64]


def sizes_of(outputs: FloatArray, kind: Kind) -> FloatArray:
    """float64[rows] from the outputs of rows; 1 for a row whose outputs are not finite."""
    finite = np.isfinite(outputs).all(axis=1)
    found = np.ones(len(outputs))
    found[finite] = kind.uncertainty(outputs[finite]) + FLOOR
    return found


def inclusion(sizes: FloatArray, count: int) -> FloatArray:
    """float64[rows]: probabilities in proportion to positive sizes, at most 1, that sum to `count` <= rows."""
    chances = np.ones(len(sizes))
    sure = np.zeros(len(sizes), dtype=bool)
    while count > sure.sum():
        scaled = sizes[~sure] * (count - sure.sum()) / sizes[~sure].sum()
        chances[~sure] = np.minimum(scaled, 1.0)
        if (scaled <= 1.0).all():
            break
        sure[np.flatnonzero(~sure)[scaled >= 1.0]] = True
    return chances


def drawn_rows(sizes: FloatArray, count: int, seed: int) -> tuple[IntArray, FloatArray]:
    """(which rows int64[count], in random order; their weights float64[count]): systematic sampling of shuffled rows."""
    generator, rows = np.random.default_rng(seed), len(sizes)
    if count >= rows:
        return generator.permutation(rows), np.ones(rows)
    chances, order = inclusion(sizes, count), generator.permutation(rows)
    ends = np.cumsum(chances[order])
    points = (generator.random() + np.arange(count)) * ends[-1] / count
    chosen = order[np.searchsorted(ends, points, side="right").clip(max=rows - 1)]
    chosen = generator.permutation(chosen)
    return chosen, count / (rows * chances[chosen])


def drawn_from_pool(
    rows: int, count: int, least: int, seed: int, sizes_at: Callable[[IntArray], FloatArray]
) -> tuple[IntArray, FloatArray]:
    """(which of so many rows int64[n], their weights float64[n]): `count` of them, or `least`, or MOST of a pool drawn evenly.

    sizes_at   the sizes of the rows at int64[pool], ascending
    """
    pool = np.sort(np.random.default_rng(seed).permutation(rows)[: POOL * count])
    found, weights = drawn_rows(sizes_at(pool), min(count, max(least, int(MOST * len(pool)))), seed)
    return pool[found], weights


__all__ = ["FLOOR", "MOST", "POOL", "drawn_from_pool", "drawn_rows", "inclusion", "sizes_of"]
