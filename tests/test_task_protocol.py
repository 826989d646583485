"""The protocol carries a kind that the tool has never heard of: registered here, it is read, scored and compared."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_text import save_tokenizer
from tiny_classifier import save_classifier

from axformer_onnx.commands import score
from axformer_onnx.errors import DataError, UsageError
from axformer_onnx.options import ScoreOptions
from axformer_onnx.records import FloatArray, Interval
from axformer_onnx.tasks import (
    CLASSIFICATION,
    Answers,
    Kind,
    LabelColumn,
    LabelMap,
    Metric,
    Task,
    kind_named,
    own_task,
    register,
    register_metric,
)
from axformer_onnx.tasks.metrics import METRICS, ClassMetric
from axformer_onnx.tasks.protocol import KINDS


class Counting(Kind):
    """Labels are words, of which the letters count; the model's outputs are summed. Nobody needs such a task."""

    name = "counting"
    main_metric = "hits"
    apart = True

    def numbered(self, task: Task, sets: Sequence[LabelColumn]) -> tuple[list[Any], tuple[str, ...]]:
        return [np.array([len(str(value)) for value in one.labels or ()], dtype=np.float64) for one in sets], ()

    def match(self, task: Task, config: Mapping[str, Any] | None, columns: int | None) -> LabelMap:
        return LabelMap((), (), "Letters are counted.")

    def check(self, outputs: FloatArray, labels: Any, label_map: LabelMap) -> None:
        if outputs.ndim != 3:
            raise DataError("three axes are expected")

    def losses(self, outputs: FloatArray, labels: Any, label_map: LabelMap, source: FloatArray | None) -> FloatArray:
        return np.asarray(np.abs(outputs.sum(axis=(1, 2)) - labels))

    def divergence(self, source: FloatArray, found: FloatArray) -> FloatArray:
        return np.asarray(np.abs(source - found).sum(axis=(1, 2)))

    def answers(self, outputs: FloatArray, losses: FloatArray, labels: Any, label_map: LabelMap) -> Answers:
        return Answers(labels, outputs.sum(axis=(1, 2)), losses)


class Hits(Metric):
    name = "hits"

    def value(self, answers: Answers) -> float:
        return 100 * float((answers.losses < 0.5).mean())

    def difference(self, a: Answers, b: Answers, **drawing: Any) -> Interval:
        change = self.value(b) - self.value(a)
        return Interval(change, change - 1, change + 1)


@pytest.fixture
def counting() -> Iterator[Kind]:
    kind = register(Counting())
    register_metric(kind.name, Hits())
    yield kind
    del KINDS[kind.name], METRICS[kind.name]


def folder_of(folder: Path, value: float) -> Path:
    """A model whose one output is `value` for each token, in the mean; the rows are pairs of texts."""
    folder.mkdir()
    save_tokenizer(folder)
    save_classifier(folder / "model.onnx", np.full((40, 1), value, dtype=np.float32))
    (folder / "config.json").write_text('{"vocab_size": 20}')
    rows = [{"one": "a b c", "two": "a", "word": "ab"}, {"one": "b", "two": "c c", "word": "abcd"}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_kind_that_a_test_registers_goes_through_score(counting: Kind, tmp_path: Path) -> None:
    one, two = folder_of(tmp_path / "one", 1.0), folder_of(tmp_path / "two", 2.0)
    task = own_task("counting", ["one", "two"], "word")
    options = ScoreOptions(models=(one, two), task=task, data=str(one / "rows.jsonl"), threads=1, length=(4,))
    found = score(options)
    scores, losses = zip(*((model.score, model.loss) for model in found.models.values()), strict=True)
    assert scores == (50.0, 50.0)  # two texts a row: 1 + 1 letters, 2 + 2 letters
    assert losses == (1.0, 1.0)
    assert (found.metric, found.labels, found.majority_rate) == ("hits", ("Letters are counted.",), None)
    assert found.comparison is not None and found.comparison.difference.value == 0


def test_a_kind_travels_to_other_processes_by_its_name(counting: Kind) -> None:
    for kind in (counting, CLASSIFICATION):
        assert pickle.loads(pickle.dumps(kind)) is kind


def test_a_metric_is_one_registration(counting: Kind) -> None:
    known = ClassMetric(
        "errors", lambda counts: -100 * (1 - np.trace(counts, axis1=-2, axis2=-1) / counts.sum((-2, -1)))
    )
    register_metric("classification", known)
    try:
        task = own_task("classification", metric="errors")
        assert (task.metric, task.metrics) == ("errors", ("errors", "accuracy"))
        answers = Answers(np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]), np.zeros(4), 2)
        assert known.value(answers) == pytest.approx(-25.0)
        assert known.difference(answers, answers, draws=50) == Interval(0.0, 0.0, 0.0)
    finally:
        del METRICS["classification"]["errors"]


def test_what_is_not_registered_is_refused_with_what_is() -> None:
    with pytest.raises(UsageError, match=r"kinds: classification, regression, .*embedding"):
        kind_named("haiku")
    with pytest.raises(UsageError, match=r"unknown metric .bleu.\. Metrics: accuracy"):
        own_task("classification", metric="bleu")
