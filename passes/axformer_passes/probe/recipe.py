"""What the inputs of one graph are made of, where random numbers do not do.

A graph may read its answer at one token (sequence-to-sequence classifiers at the end-of-sequence token), or take nothing but what
belongs together. Whoever knows that, by a tokenizer, a configuration or a sample, tells it once, where the model is opened:

    describe(model, Recipe(ids=TokenSequence(first=(0,), words=(713, 16), last=(2,))))

Everything that probes the model or what is made of it is fed by that from there on: clones keep their graph's recipe.

B rows, S tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]
_KEY = "axformer.recipe"


@dataclasses.dataclass(frozen=True)
class TokenSequence:
    """What a row of token ids looks like: `first` and `last` as they are, and any of `words` between them."""

    first: tuple[int, ...] = ()
    words: Sequence[int] = (2, 3, 4, 5, 6, 7)
    last: tuple[int, ...] = ()

    def rows(self, count: int, length: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """int64[count, length]. Where there is no room for all, the words go first, then what stands at the start."""
        last = self.last[max(0, len(self.last) - length) :]
        first = self.first[: length - len(last)]
        middle = np.asarray(self.words)[rng.integers(len(self.words), size=(count, length - len(first) - len(last)))]
        start, end = (np.tile(np.array(part, np.int64), (count, 1)) for part in (first, last))
        return np.concatenate([start, middle.astype(np.int64), end], axis=1)

    @property
    def largest(self) -> int:
        """The largest id."""
        return max((*self.first, *self.words, *self.last))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a graph's inputs are made of; what it does not say is made of declared shapes, types and names (`inputs`).

    ids           of inputs that hold token ids; None: random numbers
    decoder_ids   the same of those that a decoder reads
    sample        arrays of the graph's own inputs, by name, which come before all else; all of them or none
    fixed         axes of the inputs that had no size, and the only one at which the graph runs
    """

    ids: TokenSequence | None = None
    decoder_ids: TokenSequence | None = None
    sample: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def sequence(self, name: str) -> TokenSequence | None:
        """Of the input that is called so."""
        return self.decoder_ids if "decoder" in name.lower() else self.ids


_NOTHING = Recipe()


def describe(model: ir.Model, recipe: Recipe) -> None:
    """Tell what the inputs of `model` are made of."""
    model.graph.meta[_KEY] = recipe


def recipe_of(model: ir.Model) -> Recipe:
    """What was told of the inputs of `model`, or of the one that it is made of."""
    found = model.graph.meta.get(_KEY, _NOTHING)
    assert isinstance(found, Recipe)
    return found


def resized(sample: Array, shape: tuple[int, ...]) -> Array:
    """`sample` with other sizes: rows in turn; along other axes its beginning and its end, with the middle left out or repeated.

    Where other axes change, all rows are the first one, so that what stands in the middle is alike in all of them.
    """
    if sample.shape[1:] != shape[1:]:
        sample = sample[:1]
    for axis, size in enumerate(shape):
        sample = np.take(sample, _places(sample.shape[axis], size, rows=axis == 0), axis=axis)
    return sample


def _places(count: int, wanted: int, *, rows: bool) -> list[int]:
    """Which of `count` positions stand at `wanted` ones."""
    if rows:
        return [i % count for i in range(wanted)]
    if wanted < count:
        return [*range(wanted - wanted // 2), *range(count - wanted // 2, count)]
    return sorted([*range(count), *[count // 2] * (wanted - count)])


__all__ = ["Recipe", "TokenSequence", "describe", "recipe_of", "resized"]
