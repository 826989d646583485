"""Optimize without labels, the whole line: every kind of task and search, the report, and that labels are not read."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import axformer_onnx as ax
from axformer_onnx.commands import OptimizeResult, optimize
from axformer_onnx.data import Encoder, Rows, feeds, resolve
from axformer_onnx.options import OptimizeOptions, make
from axformer_onnx.result.report import Report, html
from axformer_onnx.runtime import make_session
from axformer_onnx.tasks import by_agreement, get_task

tiny_folder = pytest.importorskip("tiny_folder", reason="needs the [export] extra (torch, transformers)")
tiny_tasks = pytest.importorskip("tiny_tasks", reason="needs the [export] extra (torch, transformers)")
pytestmark = pytest.mark.usefixtures("latency_cache")
Change = Callable[[int, dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of pairs that gives every class as often; its rows are labelled, and its configuration names no labels."""
    made = tiny_folder.make_folder(tmp_path_factory.mktemp("tiny") / "model", search=160)
    config = json.loads((made / "config.json").read_text())
    del config["id2label"]
    (made / "config.json").write_text(json.dumps(config))
    rows = [json.loads(line) for line in (made / "data" / "search.jsonl").read_text().splitlines()]
    model = onnx.load(made / "model.onnx")
    bias = next(t for t in model.graph.initializer if t.name == "classifier.bias")
    level = np.median(tiny_tasks._logits(made, [f"{row['premise']} {row['hypothesis']}" for row in rows]), axis=0)
    bias.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(bias) - level).astype(np.float32), bias.name))
    onnx.save(model, made / "model.onnx")
    return Path(made)


def changed(data: Path, target: Path, change: Change) -> Path:
    """The rows of a data folder, each of them changed."""
    target.mkdir()
    for path in data.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        tiny_tasks.write_lines(target / path.name, [change(i, row) for i, row in enumerate(rows)])
    return target


def without_labels(i: int, row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not name.startswith("label")}


def with_wrong_labels(i: int, row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "label": "not a label" if i % 2 else None}


def run(model: Path, output: Path, **changes: Any) -> OptimizeResult:
    options = {"task": "mnli", "metric": "agreement", "length": (8,), "threads": 1, "effort": "low", **changes}
    return optimize(make(OptimizeOptions, {"model": model, "output": output, **options}))


def test_labels_are_not_read_the_same_texts_are_the_same_run(folder: Path, tmp_path: Path) -> None:
    bare = changed(folder / "data", tmp_path / "bare", without_labels)
    first = run(folder, tmp_path / "out", data=bare, search="robust")
    wrong = changed(folder / "data", tmp_path / "wrong", with_wrong_labels)
    second = run(folder, tmp_path / "out", data=wrong, search="robust")
    assert second.report.search.resumed_trials == len(first.report.search.trials) > 0
    assert second.plan == first.plan and not first.plan.is_exact
    assert second.report.candidate.score == first.report.candidate.score
    for layer, heads, _ in tiny_folder.USELESS:
        assert layer in first.plan.attention_blocks or first.plan.heads[layer] >= set(heads)


def test_one_file_of_texts_is_split_as_it_is_with_labels(folder: Path, tmp_path: Path) -> None:
    bare = changed(folder / "data", tmp_path / "bare", without_labels)
    task = get_task("mnli")
    labelled = resolve(task, model_dir=folder, data=folder / "data" / "search.jsonl", max_search_rows=60)
    found = resolve(by_agreement(task), model_dir=folder, data=bare / "search.jsonl", max_search_rows=60)
    for role in ("search", "select", "report"):
        assert getattr(found, role).texts == getattr(labelled, role).texts
    assert [note.replace(str(bare), "") for note in found.notes] == [
        note.replace(str(folder / "data"), "") for note in labelled.notes
    ]


def test_the_report_says_in_every_form_that_this_is_fidelity(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from axformer_onnx.cli.entry import cli

    bare = changed(folder / "data", tmp_path / "bare", without_labels)
    arguments = [
        "optimize",
        str(folder),
        "--task",
        "mnli",
        "--metric",
        "agreement",
        "--data",
        str(bare),
        "--max-drop",
        "10",
    ]
    arguments += [
        "-o",
        str(tmp_path / "out"),
        "--effort",
        "low",
        "--length",
        "8",
        "--threads",
        "1",
        "--max-search-rows",
        "90",
    ]
    cli.main(arguments, standalone_mode=False)
    printed = " ".join(capsys.readouterr().out.split())
    report = Report.load(tmp_path / "out" / "report.json")
    assert report.fidelity and (report.metric, report.source.score) == ("agreement", 100.0)
    assert report.comparison.words is not None and report.comparison.p_value is None
    assert f"({report.comparison.words}): fidelity, not accuracy; size" in printed
    written = (tmp_path / "out" / "report.md").read_text()
    for text in (printed, written, html(report)):
        assert "fidelity, not accuracy" in text and "divergence from the source" in text and "Accuracy" not in text
    assert report.candidate.divergence is not None and report.candidate.divergence > 0
    assert report.source.divergence is None
    assert report.compensation is not None and report.compensation.goal == "--max-drop 10"
    chosen = next(point for point in report.compensation.frontier if point.chosen)
    assert chosen.judged_drop == chosen.drop <= 10 and chosen.noise > 0
    exact = min(report.compensation.frontier, key=lambda point: point.divergence)
    assert exact.score == 100 and exact.noise > 0
    header = json.loads((tmp_path / "out" / "journal.jsonl").read_text().splitlines()[0])
    assert header["options"]["metric"] == "agreement"


def test_a_text_file_is_enough_to_optimize_and_the_result_states_the_agreement(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(tiny_tasks.texts(150, 8)))
    options = {"task": "custom", "columns": "text", "metric": "agreement", "search": "axformer", "threads": 1}
    result = ax.optimize(folder, output=tmp_path / "out", data=tmp_path / "texts.txt", length=8, **options)
    assert result.score.metric == "agreement" and result.score.source == 100
    assert result.score.difference.low <= result.score.result - 100 <= result.score.difference.high
    assert [one.rows for one in result.report.data] == [100, 50]


def test_axformers_rule_takes_the_sources_answers_for_labels(folder: Path, tmp_path: Path) -> None:
    bare = changed(folder / "data", tmp_path / "bare", without_labels)
    result = run(folder, tmp_path / "out", data=bare, search="axformer", max_search_rows=60)
    rows = resolve(by_agreement(get_task("mnli")), model_dir=folder, data=bare, max_search_rows=60)
    logits = logits_of_rows(folder, (*rows.search.texts, *rows.select.texts))
    surest = logits.max(axis=1) - np.logaddexp.reduce(logits, axis=1)
    assert result.report.search.trials[0].best == pytest.approx(-surest.mean(), abs=1e-5)
    assert result.report.metric == "agreement" and result.report.source.score == 100


def logits_of_rows(folder: Path, texts: Sequence[tuple[str, ...]]) -> np.ndarray:
    """float64[rows, classes], row by row."""
    session, encoder = make_session(folder / "model.onnx", threads=1), Encoder.from_folder(folder)
    names = [one.name for one in session.get_inputs()]
    encoded = encoder.encode(Rows(tuple(texts), np.zeros(len(texts)), "", ""))
    found = [session.run(["logits"], feeds(encoded, [i], names))[0][0] for i in range(len(texts))]
    return np.array(found, dtype=np.float64)


def test_a_classifier_is_not_refitted_to_labels_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ax.UsageError, match="refit-classifier: a task of kind classification by agreement has no labels"
    ):
        run(folder, tmp_path / "out", refit_classifier=True)
    assert not (tmp_path / "out").exists()


def regression_folder(folder: Path, target: Path) -> Path:
    """The first logit of a classifier as a number, and texts in pairs."""
    target.mkdir()
    model = onnx.load(folder / "model.onnx")
    (output,) = model.graph.output
    bounds = {"first": [0], "end": [1], "axis": [1]}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(v), k) for k, v in bounds.items())
    model.graph.node.append(helper.make_node("Slice", [output.name, *bounds], ["value"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("value", TensorProto.FLOAT, ["batch", 1]))
    onnx.save(model, target / "model.onnx")
    for name in ("tokenizer.json", "config.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    pairs = zip(tiny_tasks.texts(160, 9), tiny_tasks.texts(160, 10), strict=True)
    tiny_tasks.write_lines(target / "data" / "validation.jsonl", [{"sentence1": a, "sentence2": b} for a, b in pairs])
    return target


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("stsb", {"task": "stsb", "search": "robust"}),
        ("multilabel", {"task": "multilabel", "search": "robust"}),
        ("embedding", {"task": "embedding", "search": "robust"}),
    ],
)
def test_other_kinds_go_the_whole_way(folder: Path, tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    model = tmp_path / "model"
    if kind == "stsb":
        regression_folder(folder, model)
    elif kind == "multilabel":
        tiny_tasks.multilabel_folder(model)
        changed(model / "data", tmp_path / "bare", without_labels)
        options = {**options, "data": tmp_path / "bare"}
    else:
        tiny_tasks.token_folder(tiny_tasks.sentence_checkpoint(tmp_path / "in"), model)
        options = {**options, "data": tiny_tasks.sentence_data(tmp_path / "data")}
    report = run(model, tmp_path / "out", **options).report
    expected = {
        "stsb": {"agreement", "pearson", "spearman"},
        "multilabel": {"agreement", "decisions"},
        "embedding": {"agreement", "spearman"},
    }
    assert set(report.source.metrics) == expected[kind]
    assert set(report.source.metrics.values()) == {100.0} and report.fidelity
    assert 50 < report.candidate.score <= 100
    assert report.search.accepted == 0 or report.candidate.parameters < report.source.parameters
