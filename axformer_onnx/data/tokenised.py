"""Rows as tokens, each row tokenised once, however often and in whatever order it is asked for."""

from __future__ import annotations

import numpy as np

from axformer_onnx.data.encoding import Encoded, Encoder
from axformer_onnx.data.rows import Rows


class TokenisedOnce:
    """An encoder that remembers.

    known   rows that are tokenised already, with their tokens
    """

    def __init__(self, encoder: Encoder, *known: tuple[Rows, Encoded]) -> None:
        self._encoder = encoder
        self._places: dict[tuple[str, ...], tuple[Encoded, int]] = {}
        for rows, encoded in known:
            self._remember(rows, encoded)

    def encode(self, rows: Rows) -> Encoded:
        """As `Encoder.encode`; `truncated` is 0, since it is not known of single rows."""
        new = {texts: row for row, texts in reversed([*enumerate(rows.texts)]) if texts not in self._places}
        if new:
            unseen = rows.take(sorted(new.values()))
            self._remember(unseen, self._encoder.encode(unseen))
        places = [self._places[texts] for texts in rows.texts]
        spans = [(encoded, *encoded.offsets[row : row + 2].tolist()) for encoded, row in places]
        lengths = np.array([end - first for _, first, end in spans], dtype=np.int64)
        none = np.empty(0, dtype=np.int64)
        return Encoded(
            ids=np.concatenate([none, *(encoded.ids[first:end] for encoded, first, end in spans)]),
            types=np.concatenate([none, *(encoded.types[first:end] for encoded, first, end in spans)]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            truncated=0,
            max_length=self._encoder.max_length,
            padding=self._encoder.padding,
        )

    def _remember(self, rows: Rows, encoded: Encoded) -> None:
        for row, texts in enumerate(rows.texts):
            self._places.setdefault(texts, (encoded, row))


__all__ = ["TokenisedOnce"]
