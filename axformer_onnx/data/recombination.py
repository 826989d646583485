"""Rows from which compensation learns: those that there are, and where they are few, new ones recombined from them.

    own      rows of the search, labels unused
    given    what --calibration brought: half of the tokens, if there are as many
    mixed    made of two others: (a1, a2), (b1, b2) -> (a1, b2); of single texts, the first half of one and the second of another

Least squares on few tokens learn them by heart. A row that was put together of two has activations that the model will hardly see,
but of the right words in the right places, and what counts is that the weights hold for them, too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from axformer_onnx.data.rows import Rows, unlabelled

Lengths = Callable[[Rows], npt.NDArray[np.int64]]
MOST_MIXED = 3
"""Mixed rows, at most, for each row that there is."""


def calibration_rows(own: Rows, given: Rows | None, tokens: int, lengths: Lengths, seed: int) -> tuple[Rows, int]:
    """Rows of about `tokens` tokens, and how many of them are mixed; `lengths(rows)`: tokens of each row."""
    rng = np.random.default_rng(seed)
    own = own.take(rng.permutation(len(own)))
    sources = [own]
    if given is not None:
        half = _fitting(own, tokens // 2, lengths)
        sources = [half, given.take(rng.permutation(len(given))), own.take(np.arange(len(half), len(own)))]
    taken, left = list[Rows](), tokens
    for source in sources:
        taken.append(_fitting(source, left, lengths))
        left -= int(lengths(taken[-1]).sum()) if len(taken[-1]) else 0
    texts = [text for part in taken for text in part.texts]
    mixed = unlabelled([m for _ in range(MOST_MIXED) for m in mix(texts, rng)] if left > 0 else [], own.source)
    mixed = _fitting(mixed, left, lengths)
    return unlabelled([*texts, *mixed.texts], own.source), len(mixed)


def mix(texts: list[tuple[str, ...]], rng: np.random.Generator) -> list[tuple[str, ...]]:
    """As many rows as there are, each the beginning of one and the end of another."""
    others = rng.permutation(len(texts)).tolist()
    return [_mixed(first, texts[other]) for first, other in zip(texts, others, strict=True)]


def _mixed(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    if len(first) > 1:
        return (*first[:-1], second[-1])
    return (_halves(first[0])[0] + _halves(second[0])[1],)


def _halves(text: str) -> tuple[str, str]:
    """A text cut in the middle, between two words where it has spaces."""
    middle = len(text) // 2
    space = text.find(" ", middle)
    middle = space if space >= 0 else text.rfind(" ", 0, middle) if " " in text else middle
    return text[:middle], text[middle:]


def _fitting(rows: Rows, tokens: int, lengths: Lengths) -> Rows:
    """The first rows, as many as it takes to have so many tokens."""
    rows = rows.take(np.arange(min(len(rows), max(tokens, 0))))  # no row is without a token
    if not len(rows):
        return rows
    return rows.take(np.arange(min(len(rows), int(np.searchsorted(np.cumsum(lengths(rows)), tokens)) + 1)))


__all__ = ["calibration_rows", "mix"]
