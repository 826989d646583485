"""Which rows compensation learns from, and how they are recombined where they are few."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from axformer_onnx.data.recombination import MOST_MIXED, calibration_rows, mix
from axformer_onnx.data.rows import Rows, unlabelled

OWN = unlabelled([(f"a{i} b{i} c{i} d{i}",) for i in range(10)], "own")
GIVEN = unlabelled([(f"g{i} h{i} j{i}",) for i in range(50)], "given")


def words(rows: Rows) -> npt.NDArray[np.int64]:
    return np.array([sum(len(text.split()) for text in row) for row in rows.texts], dtype=np.int64)


@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (12, 3), (13, 4), (40, 10)])
def test_where_there_are_enough_none_is_mixed(tokens: int, count: int) -> None:
    rows, mixed = calibration_rows(OWN, None, tokens, words, 0)
    assert (len(rows), mixed) == (count, 0)
    assert set(rows.texts) <= set(OWN.texts) and len(set(rows.texts)) == count


def test_where_there_are_few_they_are_mixed_up_to_a_bound() -> None:
    rows, mixed = calibration_rows(OWN, None, 60, words, 0)
    assert (len(rows), mixed) == (15, 5)
    assert rows.texts[:10] == calibration_rows(OWN, None, 40, words, 0)[0].texts
    rows, mixed = calibration_rows(OWN, None, 10**6, words, 0)
    assert (len(rows), mixed) == (10 * (1 + MOST_MIXED), 10 * MOST_MIXED)
    assert (rows.labels == -1).all()


def test_given_rows_fill_half_and_more_where_own_ones_are_few() -> None:
    rows, mixed = calibration_rows(OWN, GIVEN, 40, words, 0)
    assert mixed == 0
    assert [text[0][0] for text in rows.texts] == ["a"] * 5 + ["g"] * 7
    rows, mixed = calibration_rows(OWN, GIVEN, 10**6, words, 0)
    assert set(rows.texts[:60]) == set(OWN.texts) | set(GIVEN.texts) and mixed == 60 * MOST_MIXED


def test_equal_seeds_give_equal_rows() -> None:
    first, again, other = (calibration_rows(OWN, GIVEN, 300, words, seed)[0] for seed in (1, 1, 2))
    assert first.sha256 == again.sha256 != other.sha256


def test_pairs_swap_partners_and_single_texts_halves() -> None:
    rng = np.random.default_rng(0)
    pairs = [(f"first {i}", f"second {i}") for i in range(20)]
    found = mix(pairs, rng)
    assert [a for a, _ in found] == [a for a, _ in pairs] and {b for _, b in found} == {b for _, b in pairs}
    assert found != pairs
    for ((text,), (left,)), (own,) in zip(
        zip(mix(list(OWN.texts), rng), OWN.texts, strict=True), OWN.texts, strict=True
    ):
        begin, end = text.split()[:2], text.split()[2:]
        assert begin == own.split()[:2] == left.split()[:2]
        assert [word[0] for word in end] == ["c", "d"] and end[0][1:] == end[1][1:]


@pytest.mark.parametrize("text", ["", "word", "two words", "一二三四", " "])
def test_no_text_is_too_short(text: str) -> None:
    assert mix([(text,)], np.random.default_rng(0)) == [(text,)]
