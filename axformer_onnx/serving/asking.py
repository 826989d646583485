"""The rows that a request asks about: its tensors as tokens.

    text [N] or [N, 1], perhaps text_pair of the same shape               encoded here, cut at the model's limit
    input_ids [N, S], perhaps attention_mask, token_type_ids of its shape   taken as they are

Rows of ids are cut free of their padding, so that they share batches with all others. Position ids are counted here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from axformer_onnx.data import Encoded
from axformer_onnx.serving.answering import Answerer
from axformer_onnx.serving.tensors import INTEGERS, TEXT, BadRequest, Tensor

_IDS = "input_ids"
IntArray = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class _Given:
    """A tensor and where it stands in the request."""

    tensor: Tensor
    field: str


def read_rows(answerer: Answerer, tensors: Sequence[Tensor], most_rows: int) -> Encoded:
    """The rows that these tensors, in the order of the request, ask about; `most_rows` at most.

    Raises: BadRequest naming the tensor and what is wrong with it.
    """
    known = [one.name for one in answerer.inputs()]
    given: dict[str, _Given] = {}
    for i, tensor in enumerate(tensors):
        field = f"inputs[{i}]"
        if tensor.name not in known:
            raise BadRequest(f"{field}.name", f"is {tensor.name!r:.60}, expected {' or '.join(known)}")
        if tensor.name in given:
            raise BadRequest(f"{field}.name", f"is {tensor.name!r} again")
        if tensor.shape[0] > most_rows:
            raise BadRequest(f"{field}.shape", f"is {tensor.shape}, expected at most {most_rows} rows in one request")
        given[tensor.name] = _Given(tensor, field)
    texts = {name: one for name, one in given.items() if name.startswith("text")}
    if texts and len(texts) < len(given):
        raise BadRequest("inputs", "holds texts and token ids; give one or the other")
    if texts:
        return answerer.encode(_texts(texts))
    return _tokens(answerer, given)


def _texts(given: dict[str, _Given]) -> list[tuple[str, ...]]:
    first = _main(given, "text")
    columns = [_column(one) for one in (first, given.get("text_pair")) if one is not None]
    if len(columns) == 2 and len(columns[0]) != len(columns[1]):
        pair = given["text_pair"]
        raise BadRequest(
            f"{pair.field}.shape", f"is {pair.tensor.shape}, expected {first.tensor.shape}, as text has it"
        )
    return list(zip(*columns, strict=True))


def _column(one: _Given) -> list[str]:
    if one.tensor.datatype != TEXT:
        raise BadRequest(f"{one.field}.datatype", f"is {one.tensor.datatype!r}, expected BYTES for {one.tensor.name}")
    if one.tensor.values.size != one.tensor.shape[0]:
        raise BadRequest(f"{one.field}.shape", f"is {one.tensor.shape}, expected [rows] or [rows, 1]")
    found: list[str] = one.tensor.values.ravel().tolist()
    return found


def _main(given: dict[str, _Given], name: str) -> _Given:
    """The tensor that the others go with."""
    if name not in given:
        beside = ", ".join(given)
        raise BadRequest("inputs", f"holds {beside or 'nothing'} without {name}")
    return given[name]


def _tokens(answerer: Answerer, given: dict[str, _Given]) -> Encoded:
    ids = _main(given, _IDS)
    for one in given.values():
        if one.tensor.datatype not in INTEGERS:
            raise BadRequest(
                f"{one.field}.datatype", f"is {one.tensor.datatype!r}, expected INT64 for {one.tensor.name}"
            )
        if one.tensor.shape != ids.tensor.shape or len(one.tensor.shape) != 2:
            expected = "[rows, tokens]" if one is ids else f"{ids.tensor.shape}, as {_IDS} has it"
            raise BadRequest(f"{one.field}.shape", f"is {one.tensor.shape}, expected {expected}")
    _within(ids, answerer.vocabulary)
    _within(given.get("token_type_ids"), answerer.types)
    _within(given.get("attention_mask"), 2)
    return _unpadded(answerer, given)


def _within(one: _Given | None, count: int | None) -> None:
    """Refuse ids that no table has; without this, ONNX Runtime would refuse the whole batch."""
    if one is None or count is None:
        return
    values = one.tensor.values
    wrong = np.flatnonzero((values < 0) | (values >= count))
    if len(wrong):
        at = int(wrong[0])
        raise BadRequest(
            f"{one.field}.data[{at}]", f"is {values.flat[at]}, expected 0 to {count - 1} ({one.tensor.name})"
        )


def _unpadded(answerer: Answerer, given: dict[str, _Given]) -> Encoded:
    ids = given[_IDS].tensor.values
    mask = given["attention_mask"].tensor.values if "attention_mask" in given else np.ones_like(ids)
    types = given["token_type_ids"].tensor.values if "token_type_ids" in given else np.zeros_like(ids)
    lengths: IntArray = mask.sum(axis=1)
    first = mask.argmax(axis=1)
    last = mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
    torn = np.flatnonzero((lengths == 0) | (last - first + 1 != lengths))
    if len(torn):
        field, row = given["attention_mask"].field, int(torn[0])
        raise BadRequest(f"{field}.data", f"row {row} has {lengths[row]} ones, expected at least one, side by side")
    encoder = answerer.reading.encoder
    if lengths.max() > encoder.max_length:
        row = int(lengths.argmax())
        raise BadRequest(
            f"{given[_IDS].field}.shape", f"row {row} has {lengths[row]} tokens, expected at most {encoder.max_length}"
        )
    real = mask.astype(bool)
    return Encoded(
        ids=ids[real],
        types=types[real],
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        truncated=0,
        max_length=encoder.max_length,
        padding=encoder.padding,
        sizes=encoder.sizes,
    )
