"""Rows as tokens, each row tokenised once, however often and in whatever order it is asked for."""

from __future__ import annotations

from collections.abc import Callable

from axformer_onnx.data.encoding import Encoded, joined
from axformer_onnx.data.rows import Rows


class TokenisedOnce:
    """Tokens of rows, each tokenised once.

    encode   tokens of rows that are not known yet (`scoring.Reading.encode`)
    known    rows that are tokenised already, with their tokens
    """

    def __init__(self, encode: Callable[[Rows], Encoded], *known: tuple[Rows, Encoded]) -> None:
        self._encode = encode
        self._places: dict[tuple[str, ...], int] = {}
        self._parts: list[Encoded] = []
        self._count = 0
        for rows, encoded in known:
            self._remember(rows, encoded)

    def encode(self, rows: Rows) -> Encoded:
        """As `encode`; `truncated` is 0, since it is not known of single rows."""
        new = {texts: row for row, texts in reversed([*enumerate(rows.texts)]) if texts not in self._places}
        if new or not self._parts:
            unseen = rows.take(sorted(new.values()))
            self._remember(unseen, self._encode(unseen))
        self._parts = [joined(self._parts)]
        return self._parts[0].take([self._places[texts] for texts in rows.texts])

    def _remember(self, rows: Rows, encoded: Encoded) -> None:
        for row, texts in enumerate(rows.texts):
            self._places.setdefault(texts, self._count + row)
        self._parts.append(encoded)
        self._count += encoded.rows


__all__ = ["TokenisedOnce"]
