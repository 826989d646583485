"""Tokens in length buckets: rows of text to the integer tensors that a graph asks for.

B rows of a batch, S tokens of its longest row. Padding is done here, per batch, so that a batch is as long as
its longest row; truncation is at the model's limit, the longest text of a pair first.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.data.rows import Rows
from axformer_onnx.data.tokenizer_files import Padding, length_limit, load_tokenizer, padding_of, read_json
from axformer_onnx.errors import DataError, UsageError

IntArray = npt.NDArray[np.int64]
BatchSizes = tuple[int | None, int | None]
"""(sequences, tokens) of a batch; None: any number."""

# How graphs call their inputs; the names on the left are those of old TensorFlow-born exports.
_SAME_INPUT = {"input_mask": "attention_mask", "segment_ids": "token_type_ids"}


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Sequences of rows as tokens, one after the other. A row is one sequence unless its task feeds the texts apart.

    ids, types   int64[tokens]: token ids and token type ids of all sequences
    offsets      int64[sequences + 1]: sequence i is ids[offsets[i]:offsets[i + 1]]
    truncated    number of sequences that were longer than `max_length` tokens
    owners       int64[sequences]: the row of each, in order; None: every row is one sequence
    sizes        (sequences, tokens) of every batch, where the graph takes no others; None: any number
    """

    ids: IntArray
    types: IntArray
    offsets: IntArray
    truncated: int
    max_length: int
    padding: Padding
    owners: IntArray | None = None
    sizes: BatchSizes = (None, None)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def owner(self) -> IntArray:
        """int64[sequences]: the row of each sequence."""
        return np.arange(len(self)) if self.owners is None else self.owners

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self) if self.owners is None else int(self.owners.max(initial=-1)) + 1

    @property
    def row_lengths(self) -> IntArray:
        """int64[rows]: tokens of all sequences of each row."""
        return self.lengths if self.owners is None else np.bincount(self.owners, weights=self.lengths).astype(np.int64)

    @property
    def lengths(self) -> IntArray:
        """int64[sequences]: tokens of each sequence, special tokens included."""
        return np.diff(self.offsets)

    @cached_property
    def firsts(self) -> IntArray:
        """int64[rows + 1]: the first sequence of each row."""
        found: IntArray = np.searchsorted(self.owner, np.arange(self.rows + 1)).astype(np.int64)
        return found

    def take(self, indices: Sequence[int] | IntArray) -> Encoded:
        """The rows at `indices`, in that order; `truncated` is 0, since it is not known of single rows."""
        chosen = np.asarray(indices, dtype=np.int64)
        counts = self.firsts[chosen + 1] - self.firsts[chosen]
        sequences = _spread(self.firsts[chosen], counts)
        lengths = self.lengths[sequences]
        tokens = _spread(self.offsets[sequences], lengths)
        return dataclasses.replace(
            self,
            ids=self.ids[tokens],
            types=self.types[tokens],
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            truncated=0,
            owners=None if self.owners is None else np.repeat(np.arange(len(chosen)), counts),
        )


def _spread(starts: IntArray, counts: IntArray) -> IntArray:
    """int64[sum of counts]: counts[i] numbers from starts[i] on, for one i after the other."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    found: IntArray = np.arange(total) + np.repeat(starts - (ends - counts), counts)
    return found


def joined(parts: Sequence[Encoded]) -> Encoded:
    """The rows of all parts, one part after the other; limit and padding are those of the first."""
    lengths = np.concatenate([part.lengths for part in parts])
    starts = np.cumsum([0, *(part.rows for part in parts)])
    apart = any(part.owners is not None for part in parts)
    owners = [part.owner + start for part, start in zip(parts, starts, strict=False)]
    return dataclasses.replace(
        parts[0],
        ids=np.concatenate([part.ids for part in parts]),
        types=np.concatenate([part.types for part in parts]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        truncated=sum(part.truncated for part in parts),
        owners=np.concatenate(owners) if apart else None,
    )


@dataclasses.dataclass(frozen=True)
class Batch:
    """rows: int64[B], which sequences these are; feeds: int64[B, S] by input name; mask: bool[B, S], the real tokens."""

    rows: IntArray
    feeds: dict[str, IntArray]
    mask: npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A tokenizer with the model's limit and padding. `sizes`: of batches, as `Encoded` has them."""

    tokenizer: Any
    max_length: int
    padding: Padding
    truncation_side: str = "right"
    sizes: BatchSizes = (None, None)

    def at(self, sizes: BatchSizes) -> Encoder:
        """The same for a graph that takes batches of these sizes alone. Raises: DataError where it cannot fill them up."""
        if sizes[1] is not None and self.padding.id is None:
            raise DataError(
                f"the graph takes {sizes[1]} tokens alone, and the model knows no padding to fill shorter rows up with; export it "
                "with a dynamic sequence axis, or give pad_token_id in config.json"
            )
        limit = self.max_length if sizes[1] is None else min(self.max_length, sizes[1])
        return dataclasses.replace(self, max_length=limit, sizes=sizes)

    @classmethod
    def from_folder(cls, folder: str | Path, max_length: int | None = None) -> Encoder:
        """The tokenizer of a model folder: tokenizer.json, tokenizer_config.json and config.json.

        max_length  truncate at so many tokens; without it at the model's limit (`length_limit`)

        Raises: DataError for a folder without a tokenizer or with a broken one, RuntimeFailure where a slow
        tokenizer needs the [export] extra to be converted, UsageError for a max_length beyond the limit.
        """
        folder = Path(folder)
        settings = read_json(folder / "tokenizer_config.json")
        config = read_json(folder / "config.json")
        tokenizer = load_tokenizer(folder, settings)
        limit = min(length_limit(settings, config), _sentence_limit(folder))
        if max_length is not None and not 3 <= max_length <= limit:
            raise UsageError(f"--max-length is {max_length}; {folder} takes 3 to {limit} tokens")
        tokenizer.no_padding()
        side = "left" if settings.get("truncation_side") == "left" else "right"
        return cls(tokenizer, max_length or limit, padding_of(tokenizer, settings, config), side)

    def encode(self, rows: Rows, passages: Passages | None = None) -> Encoded:
        """Tokens of every row, special tokens included, cut at `max_length`.

        passages  the sequences that a row is fed as (`tasks.Kind.passages`); None: one, of its text or its pair
        """
        sequences = [(row,) if passages is None else passages(row) for row in rows.texts]
        texts = [one if len(one) == 2 else one[0] for row in sequences for one in row]
        self.tokenizer.no_truncation()
        encodings = self.tokenizer.encode_batch_fast(texts)
        long = [i for i, encoding in enumerate(encodings) if len(encoding) > self.max_length]
        if long:
            self.tokenizer.enable_truncation(self.max_length, strategy="longest_first", direction=self.truncation_side)
            cut = self.tokenizer.encode_batch_fast([texts[i] for i in long])
            for i, encoding in zip(long, cut, strict=True):
                encodings[i] = encoding
        lengths = np.array([len(encoding) for encoding in encodings], dtype=np.int64)
        return Encoded(
            ids=np.array([i for encoding in encodings for i in encoding.ids], dtype=np.int64),
            types=np.array([i for encoding in encodings for i in encoding.type_ids], dtype=np.int64),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            truncated=len(long),
            max_length=self.max_length,
            padding=self.padding,
            owners=_owners([len(row) for row in sequences]),
            sizes=self.sizes,
        )


Passages = Callable[[tuple[str, ...]], Sequence[tuple[str, ...]]]


def _owners(counts: Sequence[int]) -> IntArray | None:
    """The row of each sequence, where not every row is one."""
    return None if set(counts) <= {1} else np.repeat(np.arange(len(counts)), counts)


def _sentence_limit(folder: Path) -> int:
    """Tokens that a sentence-transformers folder allows."""
    limit = read_json(folder / "sentence_bert_config.json").get("max_seq_length")
    return limit if isinstance(limit, int) and limit > 0 else sys.maxsize


def batches(
    encoded: Encoded, input_names: Sequence[str], *, batch_size: int = 32, max_tokens: int | None = None
) -> list[Batch]:
    """Sequences sorted by length, cut into batches. Only the inputs in `input_names` are fed.

    batch_size  sequences of a batch, at most; max_tokens: tokens of a batch, padding included, at most

    Raises: DataError naming an input that is none of input_ids, attention_mask, token_type_ids, position_ids.
    """
    lengths = encoded.lengths
    order = np.argsort(lengths, kind="stable")
    if encoded.sizes[0] is not None:
        return [_batch(encoded, group, input_names) for group in _filled(order.tolist(), encoded.sizes[0])]
    groups: list[list[int]] = []
    for row in order.tolist():
        length, count = lengths[row], len(groups[-1]) + 1 if groups else 1
        full = count > batch_size or (max_tokens is not None and count * length > max_tokens)
        other = encoded.padding.id is None and groups and length != lengths[groups[-1][0]]
        if not groups or full or other:
            groups.append([row])
        else:
            groups[-1].append(row)
    return [_batch(encoded, group, input_names) for group in groups]


def _batch(encoded: Encoded, group: list[int], input_names: Sequence[str]) -> Batch:
    return Batch(np.array(group, dtype=np.int64), feeds(encoded, group, input_names), mask_of(encoded, group))


def _filled(order: list[int], size: int) -> list[list[int]]:
    """Groups of `size`; the last one is filled up with its own last."""
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    return [[*group, *[group[-1]] * (size - len(group))] for group in groups]


def mask_of(encoded: Encoded, rows: Sequence[int]) -> npt.NDArray[np.bool_]:
    """bool[B, S]: the real tokens of these sequences, padded to the longest of them, or as far as the graph wants it."""
    lengths = encoded.lengths[np.asarray(rows, dtype=np.int64)]
    width = encoded.sizes[1] or int(lengths.max())
    column = np.arange(width)
    return np.asarray(
        column >= width - lengths[:, None] if encoded.padding.side == "left" else column < lengths[:, None]
    )


def feeds(encoded: Encoded, rows: Sequence[int], input_names: Sequence[str]) -> dict[str, IntArray]:
    """int64[B, S] tensors of these sequences, in their order, padded to the longest of them.

    position_ids count the real tokens from 0. Raises: DataError for an unknown input name.
    """
    padding, mask = encoded.padding, mask_of(encoded, rows)
    column = np.arange(mask.shape[1])
    left = padding.side == "left"
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0) if left else np.tile(column, (len(rows), 1))
    source = np.concatenate([np.arange(encoded.offsets[row], encoded.offsets[row + 1]) for row in rows])
    known = {
        "input_ids": np.full(mask.shape, padding.id or 0, dtype=np.int64),
        "attention_mask": mask.astype(np.int64),
        "token_type_ids": np.full(mask.shape, padding.type_id, dtype=np.int64),
        "position_ids": positions,
    }
    known["input_ids"][mask] = encoded.ids[source]
    known["token_type_ids"][mask] = encoded.types[source]
    return {name: known[check_input(name)] for name in input_names}


def check_input(name: str) -> str:
    """Which of the four text inputs `name` is. Raises: DataError naming an input that is none of them."""
    same = _SAME_INPUT.get(name, name)
    if same not in ("input_ids", "attention_mask", "token_type_ids", "position_ids"):
        raise DataError(
            f"the graph asks for the input {name!r}; text gives input_ids, attention_mask, token_type_ids "
            "and position_ids. Export a sequence classification model without past key values"
        )
    return same
