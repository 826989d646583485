"""Sets of rows: balanced labels, no row twice, label noise where it is asked for."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from . import agents, quantified

FAMILIES: tuple[tuple[Callable[[random.Random], tuple[str, str, int | None]], int], ...] = (
    (quantified.pair, 6),
    (agents.pair, 3),
)
Row = dict[str, Any]


def generate(seed: int, seen: set[tuple[str, str]]) -> Iterator[Row]:
    """Endless rows {premise, hypothesis, label}; families by weight, labels uniform within each family.

    `seen` holds the (premise, hypothesis) pairs that must not appear again, and grows.
    """
    rng = random.Random(seed)
    families, weights = zip(*FAMILIES, strict=True)
    while True:
        family, wanted = rng.choices(families, weights)[0], rng.randrange(3)
        while True:
            premise, hypothesis, label = family(rng)
            key = (premise.lower(), hypothesis.lower())
            if label == wanted and premise != hypothesis and key not in seen:
                break
        seen.add(key)
        yield {"premise": premise, "hypothesis": hypothesis, "label": label}


def take(rows: Iterator[Row], count: int) -> list[Row]:
    """The next `count` rows, numbered from 0 in the column idx."""
    return [{**next(rows), "idx": index} for index in range(count)]


def with_noise(rows: list[Row], share: float, seed: int) -> list[Row]:
    """A copy in which a random `share` of the rows carries one of the two wrong labels."""
    rng = random.Random(seed)
    wrong = set(rng.sample(range(len(rows)), round(share * len(rows))))
    return [
        {**row, "label": (row["label"] + rng.randint(1, 2)) % 3} if index in wrong else row
        for index, row in enumerate(rows)
    ]
