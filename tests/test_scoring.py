"""Losses and metrics against scikit-learn and scipy, and sessions scored in buckets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracle
from tiny_classifier import tiny_classifier

from axformer_onnx.data.encoding import Encoded
from axformer_onnx.data.rows import Rows
from axformer_onnx.data.tokenizer_files import Padding
from axformer_onnx.errors import DataError, RuntimeFailure
from axformer_onnx.runtime.sessions import make_session
from axformer_onnx.scoring.outputs import evaluate, score_session
from axformer_onnx.tasks.definitions import Task, custom_task, get_task
from axformer_onnx.tasks.labels import LabelMap, match_labels
from axformer_onnx.tasks.outputs import logits_of


def identity(classes: int) -> LabelMap:
    return LabelMap(tuple(range(classes)), tuple(map(str, range(classes))), "")


def class_task(metric: str, *more: str) -> Task:
    return Task("custom", ("text",), "label", (), metric, (metric, *more))


@settings(max_examples=100, deadline=None)
@given(classes=st.integers(2, 5), rows=st.integers(1, 60), spread=st.floats(0, 3), seed=st.integers(0, 2**32 - 1))
def test_class_metrics_equal_scikit_learn(classes: int, rows: int, spread: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=rows)
    outputs = generator.normal(size=(rows, classes)) + spread * np.eye(classes)[labels]
    guesses = outputs.argmax(axis=1)
    found = evaluate(outputs, labels, class_task("accuracy", "macro-f1", "mcc"), identity(classes)).metrics
    assert found["accuracy"] == pytest.approx(100 * oracle.accuracy_score(labels, guesses))
    macro = oracle.f1_score(labels, guesses, average="macro", zero_division=0)
    assert found["macro-f1"] == pytest.approx(100 * macro)
    if len(set(labels.tolist()) | set(guesses.tolist())) > 1:  # scikit-learn warns for a single class
        assert found["mcc"] == pytest.approx(100 * oracle.matthews_corrcoef(labels, guesses), abs=1e-9)
    if classes == 2:
        f1 = evaluate(outputs, labels, class_task("f1"), identity(2)).value
        assert f1 == pytest.approx(100 * oracle.f1_score(labels, guesses, zero_division=0))


def test_loss_is_the_cross_entropy_even_for_huge_logits() -> None:
    outputs = np.array([[1e4, 0.0], [0.0, 1e4], [2.0, 1.0]])
    scores = evaluate(outputs, np.array([0, 0, 1]), get_task("sst2"), identity(2))
    np.testing.assert_allclose(scores.loss_per_row, [0, 1e4, np.log(1 + np.e)], rtol=1e-12)
    assert scores.loss == pytest.approx(scores.loss_per_row.sum() / 3)


def test_reordered_logits_score_as_the_reordered_outputs_do() -> None:
    generator = np.random.default_rng(0)
    labels, outputs = generator.integers(3, size=50), generator.normal(size=(50, 3))
    task = get_task("mnli")
    moved = match_labels(task, {"id2label": {"0": "contradiction", "1": "entailment", "2": "neutral"}}, 3)
    plain = evaluate(outputs, labels, task, identity(3))
    mapped = evaluate(outputs[:, [2, 0, 1]], labels, task, moved)
    assert mapped.value == plain.value
    np.testing.assert_allclose(mapped.loss_per_row, plain.loss_per_row, rtol=1e-12)


def test_correlations_equal_scipy() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 6, size=80) / 1.0
    outputs = (labels + generator.normal(size=80))[:, None]
    scores = evaluate(outputs, labels, get_task("stsb"), LabelMap((0,), ("value",), ""))
    pearson = 100 * np.corrcoef(labels, outputs[:, 0])[0, 1]
    spearman = 100 * np.corrcoef(stats.rankdata(labels), stats.rankdata(outputs[:, 0]))[0, 1]
    assert scores.metrics == pytest.approx(
        {"pearson": pearson, "spearman": spearman, "pearson_spearman": (pearson + spearman) / 2}
    )
    assert scores.majority_rate is None
    np.testing.assert_allclose(scores.loss_per_row, (outputs[:, 0] - labels) ** 2)


def test_a_constant_output_has_no_correlation_and_no_warning() -> None:
    scores = evaluate(np.ones((4, 1)), np.arange(4.0), get_task("stsb"), LabelMap((0,), ("value",), ""))
    assert scores.value == 0


def test_the_majority_rate_and_a_single_guessed_class_are_told() -> None:
    labels = np.array([0, 0, 0, 1])
    one = evaluate(np.array([[1.0, 0.0]] * 4), labels, get_task("sst2"), identity(2))
    assert (one.majority_rate, one.single_class, one.value) == (75.0, "0", 75.0)
    two = evaluate(np.eye(2)[labels], labels, get_task("sst2"), identity(2))
    assert (two.single_class, two.value) == (None, 100.0)


@pytest.mark.parametrize(
    ("outputs", "labels", "error", "message"),
    [
        (np.zeros((2, 2)), [0, 5], DataError, r"row 1 has label 5, but the model has 2 logits"),
        (np.zeros((2, 3)), [0, 1], DataError, r"shape \[2, 3\], expected \[2, 2\]"),
        (
            np.array([[0.0, 1.0], [np.nan, 0.0]]),
            [0, 1],
            RuntimeFailure,
            "nan or infinity for 1 rows, the first is row 1",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(outputs: Any, labels: list[int], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        evaluate(outputs, np.array(labels), custom_task(["text"]), identity(2))


def test_f1_of_three_classes_is_refused_with_the_way_out() -> None:
    with pytest.raises(DataError, match="--metric macro-f1"):
        evaluate(np.eye(3), np.arange(3), custom_task(["text"], metric="f1"), identity(3))


def random_rows(count: int, classes: int, vocabulary: int) -> tuple[Encoded, Rows, list[list[int]]]:
    generator = np.random.default_rng(3)
    ids = [generator.integers(vocabulary, size=length).tolist() for length in generator.integers(1, 9, size=count)]
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in ids])])
    flat = np.concatenate([np.array(one) for one in ids])
    encoded = Encoded(flat, np.zeros_like(flat), offsets, 0, 16, Padding(0))
    labels = generator.integers(classes, size=count)
    return encoded, Rows((("",),) * count, labels, "random", ""), ids


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_a_session_scored_in_buckets_equals_row_by_row(batch_size: int) -> None:
    table = np.random.default_rng(2).normal(size=(10, 3)).astype(np.float32)
    encoded, rows, ids = random_rows(21, 3, 10)
    done: list[int] = []
    scores = score_session(
        make_session(tiny_classifier(table)), encoded, rows, get_task("mnli"), identity(3),
        batch_size=batch_size, progress=done.append,
    )  # fmt: skip
    np.testing.assert_allclose(scores.outputs, [table[one].mean(axis=0) for one in ids], atol=1e-6)
    assert sum(done) == 21


def test_the_only_flat_float_output_is_taken_for_the_logits() -> None:
    table = np.zeros((4, 3), dtype=np.float32)
    found = logits_of(make_session(tiny_classifier(table, output="scores")).get_outputs())
    assert (found.name, found.columns) == ("scores", 3)


def test_a_model_without_logits_is_refused_with_its_outputs() -> None:
    states = type("Output", (), {"name": "last_hidden_state", "type": "tensor(float)", "shape": ["b", "s", 8]})
    with pytest.raises(DataError, match="the model has last_hidden_state"):
        logits_of([states()])
