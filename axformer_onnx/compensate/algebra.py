"""Compensation: weights of an output projection that imitate the full block when heads or neurons leave it. Algebra alone.

Shapes: N tokens, R rows (input channels of the projection), D columns, K rows kept. All in float64.

With inputs Z[N,R], W[R,D] and b[D] the block writes Y = Z W + 1 b. What is known of Z are the second moments with a constant 1
appended, H = [Z 1]^T [Z 1], so H holds Z^T Z, the column sums s = Z^T 1 and N. Written as deviations from the mean m = s / N,

    |Z W' + 1 b' - Y|^2  =  |Zc (W' - W)|^2  +  N |b' - b + (W' - W)^T m|^2,      Zc = Z - 1 m

so the best bias is always b' = b + (W - W')^T m, and the weights have the problem of the centred moments C = Zc^T Zc to
themselves. It is the Schur complement of the constant in H: the same answer as carrying the constant along, one row less, and the
block without rows gets exactly its mean output as its bias.

Sources: optimal brain surgeon (Hassibi and Stork, 1993); for structures ZipLM (arXiv 2302.04089).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

DAMPING = 1e-4
"""Of the mean diagonal of the moments: how strongly weights of levels are held at least."""
RIDGE = 1e-2
"""Of the mean diagonal: how strongly `refit` holds weights to the level's at least."""
ROWS_A_TOKEN = 0.5
"""How strongly they are held where tokens are few; a quarter to two do about as well (`bench/held.py`)."""
CHUNK = 8
"""Neurons that leave by one joint update."""


def held_by(given: float | None, rows: int, tokens: float, least: float) -> float:
    """How strongly weights are held, of the mean diagonal of the moments: as given, else so many rows a token, at least `least`.

    A thousand weights fit two thousand tokens well and others badly, and a block behind a narrowed read-out is given one token of
    every text (docs/method.md 2.6).
    """
    if given is not None:
        return given
    return max(least, ROWS_A_TOKEN * rows / tokens) if tokens else least


@dataclasses.dataclass(frozen=True)
class Level:
    """One projection with fewer inputs.

    kept     units (heads or neurons) that stay, ascending
    weight   float64[K, D] over the positions of the kept units, ascending
    bias     float64[D]
    cost     mean over the tokens of |y' - y|^2, y the full block's output
    """

    kept: tuple[int, ...]
    weight: FloatArray
    bias: FloatArray
    cost: float


def levels(
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None,
    moments: npt.ArrayLike,
    groups: Sequence[Sequence[int]],
    keep_counts: Iterable[int],
    *,
    damping: float | None = None,
    chunk: int = CHUNK,
) -> list[Level]:
    """The projection with so many units kept, for every number in `keep_counts`, in descending order of it.

    weight   [R, D]; bias [D] or None for none; moments [R+1, R+1], H of the module's docstring
    groups   per unit its positions among the R rows; units of one position leave `chunk` at a time

    The kept sets are nested: the cheapest unit leaves, the others are scored anew. Weights and bias of a level are the least
    squares solution on its kept rows, |Z W' + 1 b' - Y|^2 + e |W' - W|^2 -> min, e = damping x mean diagonal of Z^T Z;
    damping None: `held_by` R rows, at least DAMPING.
    Time O(R^3 + R^2 D) for the order of leaving and O(K^3 + K R D) for each level; memory: three matrices of R x R.
    """
    target = _Target.of(weight, bias, moments, damping)
    rows = sorted(position for group in groups for position in group)
    assert rows == list(range(len(target.weight))), (
        f"{len(rows)} positions in the groups, expected 0 to {len(target.weight) - 1}"
    )
    wanted = sorted(set(keep_counts), reverse=True)
    assert not wanted or 0 <= wanted[-1] <= wanted[0] <= len(groups), f"keep {wanted}, expected 0 to {len(groups)}"
    order = _order(target, [np.asarray(group, dtype=np.int64) for group in groups], wanted, chunk) if wanted else []
    return [target.level(sorted(order[len(order) - count :]), groups) for count in wanted]


def refit(
    inputs: npt.ArrayLike, cross: npt.ArrayLike, weight: npt.ArrayLike, bias: npt.ArrayLike, ridge: float | None = None
) -> tuple[FloatArray, FloatArray]:
    """(weight[K, D], bias[D]) that come nearest to the target T[N, D] on the inputs Z[N, K].

    inputs   [K+1, K+1] = [Z 1]^T [Z 1]
    cross    [K+1, D] = [Z 1]^T T
    weight   [K, D] towards which the answer is held; bias [D] is used where there is not one token

    |Z W' + 1 b' - T|^2 + r |W' - W|^2 -> min, r = ridge x mean diagonal of Z^T Z; the bias is free. ridge None: `held_by`
    K rows, at least RIDGE. Centred as above:

        (C + r I) W' = Zc^T Tc + r W        b' = mean(T) - W'^T m

    Time O(K^3 + K^2 D).
    """
    held, given = np.asarray(weight, dtype=np.float64), np.asarray(cross, dtype=np.float64)
    centred, mean, tokens, diagonal = _centred(inputs)
    assert given.shape == (len(held) + 1, held.shape[1]), (
        f"cross {given.shape}, expected {(len(held) + 1, held.shape[1])}"
    )
    if tokens == 0:
        return held.copy(), np.array(bias, dtype=np.float64)
    mean_target = given[-1] / tokens
    if not len(held):
        return held.copy(), mean_target
    r = held_by(ridge, len(held), tokens, RIDGE) * diagonal if diagonal > 0 else 1.0
    right = given[:-1] - np.outer(mean, given[-1]) + r * held
    solved = _solve(_plus_diagonal(centred, r), right)
    return solved, mean_target - solved.T @ mean


def refit_without_bias(
    inputs: npt.ArrayLike, cross: npt.ArrayLike, weight: npt.ArrayLike, ridge: float | None = None
) -> FloatArray:
    """As `refit`, where there is no bias: (Z^T Z + r I) W' = Z^T T + r W.

    inputs   [K+1, K+1] as there
    cross    [K, D] = Z^T T
    """
    held, given = np.asarray(weight, dtype=np.float64), np.asarray(cross, dtype=np.float64)
    moments = np.asarray(inputs, dtype=np.float64)
    inner = moments[:-1, :-1]
    diagonal = float(np.mean(np.diagonal(inner))) if len(held) else 0.0
    if diagonal <= 0:
        return held.copy()
    r = held_by(ridge, len(held), float(moments[-1, -1]), RIDGE) * diagonal
    return _solve(_plus_diagonal(inner, r), given + r * held)


@dataclasses.dataclass(frozen=True)
class _Target:
    """What the levels imitate.

    weight, bias    [R, D], [D]
    centred, mean   C [R, R], m [R]
    damped          C + e I
    """

    weight: FloatArray
    bias: FloatArray
    centred: FloatArray
    damped: FloatArray
    mean: FloatArray
    tokens: float

    @classmethod
    def of(
        cls, weight: npt.ArrayLike, bias: npt.ArrayLike | None, moments: npt.ArrayLike, damping: float | None
    ) -> _Target:
        own = np.array(weight, dtype=np.float64)
        constant = np.zeros(own.shape[1]) if bias is None else np.array(bias, dtype=np.float64)
        centred, mean, tokens, diagonal = _centred(moments)
        assert len(centred) == len(own), f"moments of {len(centred)} rows, expected {len(own)}"
        e = held_by(damping, len(own), tokens, DAMPING) * diagonal if diagonal > 0 else 1.0
        return cls(own, constant, centred, _plus_diagonal(centred, e), mean, tokens)

    def level(self, kept: list[int], groups: Sequence[Sequence[int]]) -> Level:
        """Least squares on the rows of the units `kept`.

        With A = C + e I, K the kept rows and S the removed ones, change d = W' - W: d_S = -W_S is given, and the gradient on K
        vanishes, A_KK d_K + A_KS d_S = 0. It is what the updates of the surgeon add up to, without their rounding.
        """
        rows = np.array(sorted(position for unit in kept for position in groups[unit]), dtype=np.int64)
        gone = np.setdiff1d(np.arange(len(self.weight)), rows)
        change = np.zeros_like(self.weight)
        change[gone] = -self.weight[gone]
        if len(rows) and len(gone):
            inner, across = self.damped[np.ix_(rows, rows)], self.damped[np.ix_(rows, gone)]
            change[rows] = _solve(inner, across @ self.weight[gone])
        cost = float(np.sum(change * (self.centred @ change))) / self.tokens if self.tokens else 0.0
        bias = self.bias - change.T @ self.mean
        return Level(tuple(kept), (self.weight + change)[rows], bias, max(cost, 0.0))


def _order(target: _Target, groups: list[IntArray], wanted: list[int], chunk: int) -> list[int]:
    """All units in the order in which they leave; those that are never asked to leave come last, as they stand.

    With G = inv(C + e I), removing the rows S and moving the others as well as can be costs tr(W_S^T inv(G_SS) W_S) and makes

        W -= G_:S inv(G_SS) W_S        G -= G_:S inv(G_SS) G_S:

    so that W holds the best weights and G the inverse of what is left. Both are updated in place; rows that went stay, as zeros,
    until they are a quarter of all.
    """
    surgeon = _Surgeon(target.weight, _inverse(target.damped))
    left, order, single = list(range(len(groups))), list[int](), all(len(group) == 1 for group in groups)
    stops = [*wanted, 0]
    while len(left) > wanted[-1]:
        costs = surgeon.costs([groups[unit] for unit in left], single)
        step = min(chunk, len(left) - next(s for s in stops if s < len(left))) if single else 1
        chosen = sorted(np.argsort(costs, kind="stable")[:step].tolist())
        surgeon.remove(np.concatenate([groups[left[i]] for i in chosen]))
        order += [left[i] for i in chosen]
        left = [unit for i, unit in enumerate(left) if i not in set(chosen)]
    return order + left


class _Surgeon:
    """W and G while rows leave; positions are those of the whole block."""

    def __init__(self, weight: FloatArray, inverse: FloatArray) -> None:
        self._weight = np.array(weight, order="F")
        self._inverse = np.array(inverse, order="F")
        self._place = np.arange(len(weight))  # row -> position
        self._at = np.arange(len(weight))  # position -> row
        self._dead = np.zeros(len(weight), dtype=bool)

    def costs(self, groups: list[IntArray], single: bool) -> FloatArray:
        """What it costs to remove each of these groups of positions."""
        return _costs(self._weight, self._inverse, [self._at[group] for group in groups], single)

    def remove(self, positions: IntArray) -> None:
        """Take rows out and move the others as well as can be."""
        from scipy.linalg.blas import dgemm

        gone = np.sort(self._at[positions])
        columns = self._weight.shape[1]
        right = np.hstack([self._weight[gone], self._inverse[gone]])
        pulls = np.asfortranarray(_solve(self._inverse[np.ix_(gone, gone)], right))
        across = np.asfortranarray(self._inverse[:, gone])
        self._weight = dgemm(-1.0, across, pulls[:, :columns], beta=1.0, c=self._weight, overwrite_c=1)
        self._inverse = dgemm(-1.0, across, pulls[:, columns:], beta=1.0, c=self._inverse, overwrite_c=1)
        self._dead[gone] = True
        if 4 * self._dead.sum() >= len(self._dead):
            self._compact()

    def _compact(self) -> None:
        stay = np.flatnonzero(~self._dead)
        self._weight = np.asfortranarray(self._weight[stay])
        self._inverse = np.asfortranarray(self._inverse[np.ix_(stay, stay)])
        self._place, self._dead = self._place[stay], np.zeros(len(stay), dtype=bool)
        self._at[self._place] = np.arange(len(stay))


def _costs(weight: FloatArray, inverse: FloatArray, rows: list[IntArray], single: bool) -> FloatArray:
    """float64[units]: tr(W_S^T inv(G_SS) W_S) for the rows S of each unit."""
    if single:
        at = np.concatenate(rows)
        return np.asarray(np.sum(weight[at] ** 2, axis=1) / np.diagonal(inverse)[at])
    return np.array([np.sum(weight[at] * _solve(inverse[np.ix_(at, at)], weight[at])) for at in rows])


def _centred(moments: npt.ArrayLike) -> tuple[FloatArray, FloatArray, float, float]:
    """(C [R, R], m [R], N, mean diagonal of Z^T Z) of the moments [R+1, R+1]."""
    whole = np.asarray(moments, dtype=np.float64)
    assert whole.ndim == 2 and whole.shape[0] == whole.shape[1] > 0, f"moments {whole.shape}, expected a square"
    tokens, inner = float(whole[-1, -1]), whole[:-1, :-1]
    mean = whole[:-1, -1] / tokens if tokens else np.zeros(len(inner))
    diagonal = float(np.mean(np.diagonal(inner))) if len(inner) else 0.0
    return inner - tokens * np.outer(mean, mean), mean, tokens, diagonal


def _plus_diagonal(matrix: FloatArray, value: float) -> FloatArray:
    """matrix + value x I."""
    result = matrix.copy()
    result[np.diag_indices_from(result)] += value
    return result


def _solve(matrix: FloatArray, right: FloatArray) -> FloatArray:
    """inv(matrix) @ right for a symmetric positive definite matrix; where rounding has made it less than that, in least squares."""
    import scipy.linalg

    try:
        factor = scipy.linalg.cho_factor(matrix, lower=True, check_finite=False)
        return np.asarray(scipy.linalg.cho_solve(factor, right, check_finite=False))
    except scipy.linalg.LinAlgError:
        return np.asarray(scipy.linalg.lstsq(matrix, right, check_finite=False)[0])


def _inverse(matrix: FloatArray) -> FloatArray:
    return _solve(matrix, np.eye(len(matrix)))
