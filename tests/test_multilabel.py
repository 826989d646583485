"""Multi-label classification: losses and metrics against scikit-learn and torch, labels of many spellings, the whole line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from axformer_onnx.data.rows import read_rows
from axformer_onnx.errors import DataError, UsageError
from axformer_onnx.scoring import compare
from axformer_onnx.scoring.outputs import evaluate
from axformer_onnx.tasks import MULTILABEL, LabelMap, match_labels, own_task
from axformer_onnx.tasks.labels import with_label_names

tiny_tasks = pytest.importorskip("tiny_tasks", reason="needs the [export] extra (torch, transformers)")
TASK = own_task("multilabel")
NAMED = {"id2label": {"0": "joy", "1": "anger", "2": "fear"}, "problem_type": "multi_label_classification"}


def identity(count: int) -> LabelMap:
    return LabelMap(tuple(range(count)), tuple(map(str, range(count))), "")


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 5), rows=st.integers(1, 40), rate=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_metrics_equal_scikit_learn(count: int, rows: int, rate: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = (rng.random((rows, count)) < rate).astype(float)
    outputs = rng.normal(size=(rows, count)) + labels
    found = evaluate(outputs, labels, TASK, identity(count)).metrics
    guesses = outputs > 0
    if count > 1:  # scikit-learn takes one column for a binary task
        for name in ("micro", "macro"):
            expected = 100 * oracle.f1_score(labels, guesses, average=name, zero_division=0)
            assert found[f"{name}-f1"] == pytest.approx(expected)
        assert found["exact-match"] == pytest.approx(100 * oracle.accuracy_score(labels, guesses))
    else:
        assert found["micro-f1"] == pytest.approx(100 * oracle.f1_score(labels[:, 0], guesses[:, 0], zero_division=0))


def test_loss_is_torchs_binary_cross_entropy_summed_over_labels_even_for_huge_logits() -> None:
    import torch

    rng = np.random.default_rng(0)
    outputs, labels = rng.normal(size=(30, 4)) * np.geomspace(1, 1e4, 30)[:, None], rng.integers(0, 2, (30, 4)) * 1.0
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.from_numpy(outputs), torch.from_numpy(labels), reduction="none"
    ).sum(1)
    np.testing.assert_allclose(
        evaluate(outputs, labels, TASK, identity(4)).loss_per_row, expected, rtol=1e-12, atol=1e-12
    )


def test_divergence_is_the_sum_of_torchs_relative_entropies_of_bernoulli_variables() -> None:
    import torch
    from torch.distributions import Bernoulli, kl_divergence

    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 50, 3)) * 3
    expected = kl_divergence(*(Bernoulli(logits=torch.from_numpy(x)) for x in (a, b))).sum(1)
    np.testing.assert_allclose(MULTILABEL.divergence(a, b), expected, atol=1e-10)
    assert (MULTILABEL.divergence(a, a) == 0).all()


def test_uncertainty_is_half_the_trace_of_the_second_derivative_of_the_divergence_by_differences() -> None:
    rng, step = np.random.default_rng(2), 1e-3
    a = rng.normal(size=(20, 3)) * 2
    steps = [MULTILABEL.divergence(a, a + step * row) + MULTILABEL.divergence(a, a - step * row) for row in np.eye(3)]
    np.testing.assert_allclose(MULTILABEL.uncertainty(a), sum(steps) / step**2, rtol=1e-4)


def test_reordered_logits_score_as_the_reordered_outputs_do() -> None:
    rng = np.random.default_rng(3)
    labels, outputs = rng.integers(0, 2, (40, 3)) * 1.0, rng.normal(size=(40, 3))
    moved = LabelMap((2, 0, 1), ("a", "b", "c"), "")
    plain = evaluate(outputs[:, [2, 0, 1]], labels, TASK, identity(3))
    mapped = evaluate(outputs, labels, TASK, moved)
    assert mapped.metrics == plain.metrics
    np.testing.assert_allclose(mapped.loss_per_row, plain.loss_per_row)
    assert (MULTILABEL.head_targets(labels, moved)[:, 2] == labels[:, 0]).all()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("metric", ["micro-f1", "macro-f1", "exact-match"])
def test_interval_is_that_of_drawing_rows(metric: str) -> None:
    rng = np.random.default_rng(4)
    labels = (rng.random((150, 3)) < 0.4).astype(float)
    a, b = (labels - 0.5 + rng.normal(size=labels.shape) * s for s in (0.5, 0.9))
    task = own_task("multilabel", metric=metric)
    both = [evaluate(x, labels, task, identity(3)) for x in (a, b)]
    found = compare(both[0], both[1], labels, task, identity(3)).difference

    def value(rows: Any, x: Any) -> float:
        if metric == "exact-match":
            return 100 * oracle.accuracy_score(labels[rows], x[rows] > 0)
        return 100 * oracle.f1_score(labels[rows], x[rows] > 0, average=metric[:5], zero_division=0)

    drawn = [value(r, b) - value(r, a) for r in rng.integers(150, size=(500, 150))]
    assert found.value == pytest.approx(value(np.arange(150), b) - value(np.arange(150), a))
    assert [found.low, found.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=1.2)


@pytest.mark.parametrize(
    ("given_labels", "expected"),
    [
        ([["joy", "fear"], []], [[1, 0, 1], [0, 0, 0]]),
        (["joy;FEAR", ""], [[1, 0, 1], [0, 0, 0]]),
        (["joy, anger", "fear"], [[1, 1, 0], [0, 0, 1]]),
        (['["anger"]', "[]"], [[0, 1, 0], [0, 0, 0]]),
        ([[1, 0, 1], [0, 0, 0]], [[1, 0, 1], [0, 0, 0]]),
        (["[0, 1, 0]", "[1, 1, 1]"], [[0, 1, 0], [1, 1, 1]]),
        ([[2, 0], [1]], [[1, 0, 1], [0, 1, 0]]),
    ],
)
def test_labels_are_read_as_names_vectors_and_ids(tmp_path: Path, given_labels: list[Any], expected: Any) -> None:
    rows = [{"text": "a", "labels": one} for one in given_labels]
    path = tiny_tasks.write_lines(tmp_path / "rows.jsonl", rows)
    task = with_label_names(TASK, NAMED)
    assert read_rows(path, task).labels.tolist() == expected


def test_names_that_no_model_gives_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    rows = [{"text": "a", "labels": "zeal"}, {"text": "b", "labels": ["awe", "zeal"]}]
    found = read_rows(tiny_tasks.write_lines(tmp_path / "rows.jsonl", rows), TASK)
    assert found.label_names == ("awe", "zeal") and found.labels.tolist() == [[0, 1], [1, 1]]
    assert found.take([1]).labels.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["joy", "awe"], r"line 1: 'awe' is not a label of task multilabel; expected joy, anger, fear"),
        (None, r"line 1: the labels are missing"),
        ("[1, 2", r"line 1: .* not JSON"),
        ([7], r"line 1: 7 is not a label"),
        ([0.5, 1, 0], r"line 1: 0.5 is among the labels"),
    ],
)
def test_labels_that_cannot_be_are_refused(tmp_path: Path, value: Any, message: str) -> None:
    path = tiny_tasks.write_lines(tmp_path / "rows.jsonl", [{"text": "a", "labels": value}])
    with pytest.raises(DataError, match=message):
        read_rows(path, with_label_names(TASK, NAMED))


def test_names_are_matched_and_a_model_of_another_problem_is_refused() -> None:
    task = with_label_names(TASK, NAMED)
    turned = {**NAMED, "id2label": {"0": "fear", "1": "joy", "2": "anger"}}
    assert match_labels(task, turned, 3).order == (1, 2, 0)
    with pytest.raises(DataError, match="problem_type is 'single_label_classification'"):
        match_labels(task, {**NAMED, "problem_type": "single_label_classification"}, 3)
    with pytest.raises(UsageError, match="Did you mean micro-f1"):
        own_task("multilabel", metric="micro_f1")


def test_one_set_of_labels_for_all_rows_is_told() -> None:
    outputs, labels = np.array([[1.0, -1.0, 2.0]] * 3), np.eye(3)
    names = LabelMap((0, 1, 2), ("joy", "anger", "fear"), "")
    assert evaluate(outputs, labels, TASK, names).single_class == "joy, fear"
    assert evaluate(-np.ones((3, 3)), labels, TASK, names).single_class == "no label"
    assert evaluate(np.eye(3) - 0.5, labels, TASK, names).single_class is None


def test_head_of_sigmoids_is_refitted_as_scikit_learn_would() -> None:
    from sklearn.linear_model import LogisticRegression

    from axformer_onnx.compensate.classifier_fit import _logistic, losses

    rng = np.random.default_rng(5)
    x, w = rng.normal(size=(400, 6)), rng.normal(size=(6, 2))
    y = (rng.random((400, 2)) < 1 / (1 + np.exp(-x @ w))).astype(float)
    weight, bias = _logistic(x, y, np.zeros((6, 2)), np.zeros(2), 0.01, sigmoids=True)
    for i in range(2):
        theirs = LogisticRegression(C=1 / (2 * 0.01 * 400), tol=1e-8, max_iter=1000).fit(x, y[:, i])
        assert weight[:, i] == pytest.approx(theirs.coef_[0], abs=2e-3)
    expected = sum(oracle.log_loss(y[:, i], 1 / (1 + np.exp(-(x @ weight + bias)[:, i]))) for i in range(2))
    assert losses(x, y, weight, bias, loss="binary cross-entropy").mean() == pytest.approx(expected)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("search", ["compensated", "robust"])
def test_optimize_ends_with_a_smaller_graph_and_a_report(tmp_path: Path, search: Any) -> None:
    from axformer_onnx.commands.optimization import OptimizeOptions, optimize

    folder = tiny_tasks.multilabel_folder(tmp_path / "model")
    compensated = search == "compensated"
    changes: dict[str, Any] = {"size": 0.8, "refit_classifier": True} if compensated else {}
    options = OptimizeOptions(
        model=folder, task=TASK, output=tmp_path / "out", length=(8,), threads=1, effort="low", search=search, **changes
    )  # fmt: skip
    report = optimize(options).report
    assert report.metric == "micro-f1" and set(report.source.metrics) == {"micro-f1", "macro-f1", "exact-match"}
    assert report.source.score > 60 and "joy = logit 0" in report.labels
    assert report.majority_rate is None
    if compensated:
        assert report.candidate.size_bytes <= 0.8 * report.source.size_bytes
        assert report.compensation is not None and max(p.divergence for p in report.compensation.frontier) > 0
