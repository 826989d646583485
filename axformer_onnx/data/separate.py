"""Sets of rows kept apart by content: rows with the same texts always go the same way. Seeded."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from axformer_onnx.data.rows import Rows
from axformer_onnx.errors import DataError

MOST_SEARCH = 2000
"""Contents that are search rows."""


def groups(rows: Rows) -> npt.NDArray[np.int64]:
    """int64[rows]: number of each row's content, counted by first appearance."""
    numbers: dict[tuple[str, ...], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in rows.content_keys()], dtype=np.int64)


def without(rows: Rows, others: Rows, *, apart: bool = False) -> tuple[Rows, int]:
    """`rows` less those whose texts `others` has too, and how many that were.

    apart  texts are fed one by one: a row goes if `others` has any one of its texts

    Raises: DataError where nothing is left.
    """
    if apart:
        texts = {text for key in others.content_keys() for text in key}
        kept = [i for i, key in enumerate(rows.content_keys()) if texts.isdisjoint(key)]
    else:
        taken = set(others.content_keys())
        kept = [i for i, key in enumerate(rows.content_keys()) if key not in taken]
    dropped = len(rows) - len(kept)
    if not kept:
        raise DataError(
            f"{rows.source}: all {dropped} rows are among the report rows too; give search rows of their own "
            "with --search-data"
        )
    return (rows.take(kept), dropped) if dropped else (rows, 0)


def part(rows: Rows, count: int, seed: int) -> Rows:
    """A seeded choice of `count` rows."""
    chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
    return rows.take(np.sort(chosen))


def split(rows: Rows, seed: int) -> tuple[Rows, Rows]:
    """Search and select rows: two thirds and one third of the contents; no more than `MOST_SEARCH` for the search, which looks at
    some hundreds of them, so that the rest makes the decision between its points a finer one.

    Raises: DataError for fewer than 3 rows with different texts.
    """
    number = groups(rows)
    count = int(number.max()) + 1
    if count < 3:
        raise DataError(f"{rows.source}: {count} rows with different texts; search and select need 3 or more")
    order = np.random.default_rng(seed).permutation(count)
    first = np.isin(number, order[: min(-(-2 * count // 3), MOST_SEARCH)] if count > 3 else order[:2])
    return (
        rows.take(np.flatnonzero(first), f"{rows.source} (search part)"),
        rows.take(np.flatnonzero(~first), f"{rows.source} (select part)"),
    )


def hold_out(rows: Rows, seed: int, most: int) -> tuple[Rows, Rows]:
    """(the rest, report rows): a seeded third of the contents, at most `most`, is kept for the report.

    Raises: DataError for fewer than 5 rows with different texts.
    """
    number = groups(rows)
    count = int(number.max()) + 1
    if count < 5:
        raise DataError(f"{rows.source}: {count} rows with different texts, too few to hold report rows out; give more")
    order = np.random.default_rng((seed, 1)).permutation(count)
    held = np.isin(number, order[: min(count // 3, most)])
    return rows.take(np.flatnonzero(~held)), rows.take(np.flatnonzero(held), f"{rows.source} (held-out part)")
