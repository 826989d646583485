"""GLUE tasks, tasks of the user's own, and the matching of labels with logits."""

from __future__ import annotations

import pytest

from axformer_onnx.errors import DataError, UsageError
from axformer_onnx.tasks import CLASSIFICATION, REGRESSION
from axformer_onnx.tasks.definitions import GLUE, custom_task, get_task, with_columns
from axformer_onnx.tasks.labels import match_labels, model_label_names, with_label_names

# Written down from the hub's data set card of nyu-mll/glue, independently of tasks.py.
GLUE_CARD = {
    "cola": (("sentence",), ("unacceptable", "acceptable"), {"mcc"}),
    "sst2": (("sentence",), ("negative", "positive"), {"accuracy"}),
    "mrpc": (("sentence1", "sentence2"), ("not_equivalent", "equivalent"), {"accuracy", "f1"}),
    "stsb": (("sentence1", "sentence2"), (), {"pearson", "spearman", "pearson_spearman"}),
    "qqp": (("question1", "question2"), ("not_duplicate", "duplicate"), {"accuracy", "f1"}),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), {"accuracy"}),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment"), {"accuracy"}),
    "rte": (("sentence1", "sentence2"), ("entailment", "not_entailment"), {"accuracy"}),
    "wnli": (("sentence1", "sentence2"), ("not_entailment", "entailment"), {"accuracy"}),
}


def id2label(*names: str) -> dict[str, dict[str, str]]:
    return {"id2label": {str(i): name for i, name in enumerate(names)}}


@pytest.mark.parametrize("name", GLUE_CARD)
def test_glue_tasks_have_glues_columns_labels_and_metrics(name: str) -> None:
    columns, labels, metrics = GLUE_CARD[name]
    task = get_task(name)
    assert (task.columns, task.labels, set(task.metrics)) == (columns, labels, metrics)
    assert task.label == "label"
    assert task.metric in task.metrics
    assert task.kind is (REGRESSION if name == "stsb" else CLASSIFICATION)


@pytest.mark.parametrize(
    ("alias", "name"),
    [("SST-2", "sst2"), ("sst_2", "sst2"), ("STS-B", "stsb"), ("CoLA", "cola"), ("mnli-m", "mnli"),
     ("mnli_matched", "mnli"), ("MNLI-mm", "mnli-mm"), ("mnli_mismatched", "mnli-mm")],
)  # fmt: skip
def test_other_spellings_of_a_task_are_understood(alias: str, name: str) -> None:
    assert get_task(alias) is GLUE[name]


def test_an_unknown_task_is_refused_with_the_nearest_name_and_the_list() -> None:
    with pytest.raises(UsageError, match=r"unknown task 'mnil'. Did you mean mnli\? Tasks: cola, .*wnli"):
        get_task("mnil")


def test_a_custom_task_has_the_columns_and_metric_asked_for() -> None:
    task = custom_task(["a", " b"], "y", "macro-f1")
    assert (task.columns, task.label, task.metric) == (("a", "b"), "y", "macro-f1")
    assert task.kind is CLASSIFICATION
    assert custom_task(["a"], "y", "pearson_spearman").kind is REGRESSION


@pytest.mark.parametrize(
    ("columns", "label", "metric", "message"),
    [
        (["a", "b", "c"], "y", "accuracy", "3 text columns .* expected 1 or 2"),
        ([""], "y", "accuracy", "expected 1 or 2"),
        (["a", "a"], "y", "accuracy", "named once"),
        (["a"], "a", "accuracy", "named once"),
        (["a"], "y", "acuracy", "Did you mean accuracy"),
    ],
)
def test_a_custom_task_that_cannot_be_is_refused(columns: list[str], label: str, metric: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        custom_task(columns, label, metric)


def test_a_task_can_read_other_column_names() -> None:
    task = with_columns(get_task("mnli"), ["sentence1", "sentence2"], "gold_label")
    assert (task.columns, task.label) == (("sentence1", "sentence2"), "gold_label")
    with pytest.raises(UsageError, match=r"names 1 text columns .* mnli has 2"):
        with_columns(get_task("mnli"), ["sentence1"])


def test_matching_names_in_the_same_order_are_the_identity() -> None:
    found = match_labels(get_task("mnli"), id2label("ENTAILMENT", "Neutral", "contradiction"), 3)
    assert found.is_identity
    assert "entailment = logit 0" in found.note
    assert "by the names in id2label" in found.note


def test_reordered_mnli_names_are_mapped_and_said() -> None:
    found = match_labels(get_task("mnli"), id2label("contradiction", "entailment", "neutral"), 3)
    assert found.order == (1, 2, 0)
    assert not found.is_identity
    assert "entailment = logit 1, neutral = logit 2, contradiction = logit 0" in found.note
    assert "order differs" in found.note


@pytest.mark.parametrize("config", [None, {}, id2label("LABEL_0", "LABEL_1", "LABEL_2"), id2label("0", "1", "2")])
def test_generic_names_are_assumed_to_be_in_order_and_the_note_says_so(config: dict[str, object] | None) -> None:
    found = match_labels(get_task("mnli"), config, 3)
    assert found.is_identity
    assert "assumed" in found.note


@pytest.mark.parametrize(
    ("task", "names", "order"),
    [
        ("sst2", ("POS", "NEG"), (1, 0)),
        ("rte", ("not entailment", "Entailment"), (1, 0)),
        ("qnli", ("entailment", "not-entailment"), (0, 1)),
        ("mrpc", ("equivalent", "not equivalent"), (1, 0)),
        ("qqp", ("non_duplicate", "duplicate"), (0, 1)),
        ("cola", ("ungrammatical", "grammatical"), (0, 1)),
        ("sst2", ("LABEL_1", "LABEL_0"), (1, 0)),
    ],
)
def test_known_synonyms_are_matched(task: str, names: tuple[str, ...], order: tuple[int, ...]) -> None:
    assert match_labels(get_task(task), id2label(*names), len(names)).order == order


@pytest.mark.parametrize(
    ("task", "names"), [("sst2", ("joy", "anger")), ("rte", ("entailment", "contradiction")), ("rte", ("no", "no"))]
)
def test_names_of_another_task_are_refused_with_both_lists(task: str, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        match_labels(get_task(task), id2label(*names), 2)
    assert all(name in str(caught.value) for name in (*names, *get_task(task).labels))


def test_a_label_count_that_differs_from_the_logits_is_refused() -> None:
    with pytest.raises(DataError, match=r"mnli has 3 labels .* the model has 2 logits"):
        match_labels(get_task("mnli"), None, 2)
    with pytest.raises(DataError, match=r"id2label has 3 names .* 2 logits"):
        match_labels(get_task("sst2"), id2label("a", "b", "c"), 2)
    with pytest.raises(DataError, match="regression"):
        match_labels(get_task("stsb"), None, 2)


def test_without_a_logit_count_the_names_still_tell() -> None:
    assert match_labels(get_task("mnli"), id2label("neutral", "contradiction", "entailment"), None).order == (2, 0, 1)
    with pytest.raises(DataError, match="2 logits"):
        match_labels(get_task("mnli"), id2label("negative", "positive"), None)


def test_a_custom_task_takes_its_names_from_the_model() -> None:
    task, config = custom_task(["text"]), id2label("sadness", "joy")
    assert with_label_names(task, config).labels == ("sadness", "joy")
    assert match_labels(task, config, 2).names == ("sadness", "joy")
    assert match_labels(with_label_names(task, config), config, 2).is_identity
    assert "assumed" in match_labels(task, None, 4).note
    with pytest.raises(DataError, match="1 logit, a classification needs 2"):
        match_labels(task, None, 1)


def test_a_regression_compares_the_one_output() -> None:
    assert match_labels(get_task("stsb"), id2label("LABEL_0"), 1).order == (0,)


def test_id2label_with_gaps_is_refused() -> None:
    with pytest.raises(DataError, match="expected names for 0, 1, 2"):
        model_label_names({"id2label": {"0": "a", "2": "b"}})
