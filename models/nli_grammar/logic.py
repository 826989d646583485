"""What a sentence says, and what follows from it.

A statement is a conjunction of linear constraints over non-negative integer variables: how many individuals
there are of each kind, or whether one person did something to another (0 or 1). Premise and hypothesis are compared in every world
that the background (word meanings, presuppositions) allows:

    contradiction   no world satisfies background, premise and hypothesis
    entailment      no world satisfies background, premise and the negation of the hypothesis
    neutral         both kinds of world exist

Each question is the feasibility of a small integer programme, which scipy's HiGHS decides exactly.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np

ENTAILMENT, NEUTRAL, CONTRADICTION = 0, 1, 2
LABELS = ("entailment", "neutral", "contradiction")


@dataclasses.dataclass(frozen=True, order=True)
class Constraint:
    """sum(coefficient * variable) >= bound."""

    terms: tuple[tuple[str, int], ...]
    bound: int

    def negated(self) -> Constraint:
        """not (a x >= b)  =  -a x >= 1 - b, over the integers."""
        return Constraint(tuple((name, -value) for name, value in self.terms), 1 - self.bound)


Statement = tuple[Constraint, ...]


def at_least(bound: int, variables: Iterable[str]) -> Constraint:
    """The sum of the variables is `bound` or more."""
    return Constraint(tuple((name, 1) for name in sorted(variables)), bound)


def at_most(bound: int, variables: Iterable[str]) -> Constraint:
    """The sum of the variables is `bound` or less."""
    return Constraint(tuple((name, -1) for name in sorted(variables)), -bound)


@functools.cache
def possible(statement: frozenset[Constraint], largest: int) -> bool:
    """Whether some assignment of 0..largest to every variable satisfies all constraints."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    rows = sorted(statement)
    names = sorted({name for row in rows for name, _ in row.terms})
    if not names:
        return all(row.bound <= 0 for row in rows)
    column = {name: index for index, name in enumerate(names)}
    matrix = np.zeros((len(rows), len(names)))
    for index, row in enumerate(rows):
        for name, value in row.terms:
            matrix[index, column[name]] += value
    solved = milp(
        np.zeros(len(names)),
        constraints=LinearConstraint(matrix, lb=[row.bound for row in rows]),
        integrality=np.ones(len(names)),
        bounds=Bounds(0, largest),
    )
    if solved.status not in (0, 2):  # 0 solved, 2 infeasible
        raise RuntimeError(f"the solver gave up on {len(rows)} constraints: {solved.message}")
    return bool(solved.status == 0)


@functools.cache
def judge(premise: Statement, hypothesis: Statement, background: Statement, largest: int) -> int | None:
    """The label of a pair; None if the premise is absurd or the hypothesis is decided without it."""
    base = frozenset(background)
    refutations = [frozenset([part.negated()]) for part in hypothesis]
    if not possible(base | set(premise), largest):
        return None
    if not possible(base | set(hypothesis), largest) or not _any(base, refutations, largest):
        return None
    if not possible(base | set(premise) | set(hypothesis), largest):
        return CONTRADICTION
    return NEUTRAL if _any(base | set(premise), refutations, largest) else ENTAILMENT


def _any(base: frozenset[Constraint], alternatives: list[frozenset[Constraint]], largest: int) -> bool:
    return any(possible(base | alternative, largest) for alternative in alternatives)
