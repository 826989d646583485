"""Sentence embeddings: pooling and export against torch, divergence, rows with and without labels, the whole line."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from axformer_onnx.commands import score
from axformer_onnx.data.encoding import Encoder
from axformer_onnx.data.roles import resolve
from axformer_onnx.data.rows import Rows, read_rows
from axformer_onnx.errors import DataError, ModelError, UsageError
from axformer_onnx.options import ScoreOptions
from axformer_onnx.runtime.sessions import make_session, run_once
from axformer_onnx.scoring import Machine, reading_of, score_file
from axformer_onnx.scoring.comparison import compare
from axformer_onnx.scoring.outputs import evaluate
from axformer_onnx.tasks import EMBEDDING, LabelMap, own_task
from axformer_onnx.tasks.outputs import pooled

tiny_tasks = pytest.importorskip("tiny_tasks", reason="needs the [export] extra (torch, transformers)")
TASK, MAP = own_task("embedding"), LabelMap((), (), "")


def expected_embeddings(checkpoint: Path, texts: list[str], pooling: str, length_one: bool = True) -> np.ndarray:
    """One text at a time, so that there is no padding: mean, first token or maximum of torch's hidden states, of length 1."""
    import torch
    from transformers import BertModel

    model, encoder = BertModel.from_pretrained(checkpoint).eval(), Encoder.from_folder(checkpoint)
    found = []
    for text in texts:
        ids = torch.from_numpy(encoder.encode(Rows(((text,),), np.zeros(1), "", "")).ids)[None]
        with torch.no_grad():
            states = model(input_ids=ids).last_hidden_state[0].double().numpy()
        by = {"mean_tokens": states.mean(axis=0), "cls_token": states[0], "max_tokens": states.max(axis=0)}
        found.append(by[pooling] / (np.linalg.norm(by[pooling]) if length_one else 1.0))
    return np.stack(found)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tasks.sentence_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("pooling", "exporter"), [("mean_tokens", "dynamo"), ("cls_token", "torchscript"), ("max_tokens", "torchscript")]
)
def test_exported_folder_answers_what_torch_answers_with_pooling_and_normalisation_inside(
    tmp_path: Path, pooling: str, exporter: Any
) -> None:
    from axformer_onnx.exporting import export
    from axformer_passes.apply import narrowed
    from axformer_passes.io import load_model

    checkpoint = tiny_tasks.sentence_checkpoint(tmp_path / "in", pooling)
    result = export(checkpoint, tmp_path / "out", task="embedding", exporter=exporter)
    assert result.outputs == ("sentence_embedding",) and result.exporter == exporter
    assert result.worst_difference is not None and result.worst_difference < 1e-5
    texts = tiny_tasks.texts(9, 0)
    rows = Rows(tuple((text,) for text in texts), np.full(9, np.nan), "", "")
    reading = reading_of(result.path.parent, make_session(result.path), TASK, rows)
    found = score_file(result.path, reading, reading.encode(rows), rows, Machine(threads=1)).outputs
    np.testing.assert_allclose(found[:, 0], expected_embeddings(checkpoint, texts, pooling), atol=2e-6)
    assert reading.encoder.max_length == 20
    _, readout = narrowed(load_model(result.path), run_once)
    assert bool(readout.nodes) == (pooling == "cls_token")
    assert readout.nodes or readout.why


@pytest.mark.parametrize("kept_in", ["model.safetensors", "pytorch_model.bin"])
def test_a_dense_layer_behind_the_pooling_is_in_the_graph_in_its_place(tmp_path: Path, kept_in: str) -> None:
    import torch
    from safetensors.torch import save_file

    from axformer_onnx.exporting import export

    checkpoint, rng = tiny_tasks.sentence_checkpoint(tmp_path / "in"), np.random.default_rng(0)
    weight, bias = rng.normal(size=(5, 16)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    modules = json.loads((checkpoint / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    (checkpoint / "2_Dense").mkdir()
    config = {
        "in_features": 16,
        "out_features": 5,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (checkpoint / "2_Dense" / "config.json").write_text(json.dumps(config))
    state = {"linear.weight": torch.from_numpy(weight), "linear.bias": torch.from_numpy(bias)}
    if kept_in == "model.safetensors":
        save_file(state, checkpoint / "2_Dense" / kept_in)
    else:
        torch.save(state, checkpoint / "2_Dense" / kept_in)
    result = export(checkpoint, tmp_path / "out", task="embedding", exporter="torchscript")
    texts = tiny_tasks.texts(6, 3)
    rows = Rows(tuple((text,) for text in texts), np.full(6, np.nan), "", "")
    reading = reading_of(result.path.parent, make_session(result.path), TASK, rows)
    found = score_file(result.path, reading, reading.encode(rows), rows, Machine(threads=1)).outputs[:, 0]
    means = expected_embeddings(checkpoint, texts, "mean_tokens", length_one=False)
    expected = np.tanh(means @ weight.T.astype(np.float64) + bias)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=2e-6)
    (checkpoint / "2_Dense" / kept_in).unlink()
    with pytest.raises(ModelError, match="2_Dense: its weights cannot be read"):
        export(checkpoint, tmp_path / "again")


def test_a_sentence_model_of_the_hub_is_taken_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from axformer_onnx.exporting import export

    snapshot = tmp_path / "hub" / "models--someone--tiny-sentences" / "snapshots" / "0123abc"
    snapshot.parent.mkdir(parents=True)
    tiny_tasks.sentence_checkpoint(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    result = export("someone/tiny-sentences", tmp_path / "out", exporter="torchscript")
    assert result.outputs == ("sentence_embedding",)
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()


def test_export_of_modules_that_are_not_known_is_refused(tmp_path: Path) -> None:
    from axformer_onnx.exporting import export

    checkpoint = tiny_tasks.sentence_checkpoint(tmp_path / "in")
    with pytest.raises(UsageError, match=r"--exporter optimum does not write|optimum-onnx is not installed"):
        export(checkpoint, tmp_path / "out", exporter="optimum")
    modules = json.loads((checkpoint / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.LayerNorm"
    (checkpoint / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UsageError, match="Transformer, Pooling, LayerNorm, expected"):
        export(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pooling", ["mean_tokens", "cls_token", "max_tokens"])
def test_hidden_states_are_pooled_outside_the_graph_as_the_folder_says(tmp_path: Path, pooling: str) -> None:
    checkpoint = tiny_tasks.sentence_checkpoint(tmp_path / "in", pooling)
    path = tiny_tasks.token_folder(checkpoint, tmp_path / "tokens") / "model.onnx"
    texts = tiny_tasks.texts(11, 1)
    rows = Rows(tuple(itertools.pairwise(texts)), np.full(10, np.nan), "", "")
    reading = reading_of(path.parent, make_session(path), TASK, rows)
    assert "by 1_Pooling/config.json" in reading.label_map.note
    found = score_file(path, reading, reading.encode(rows), rows, Machine(threads=1)).outputs
    assert found.shape == (10, 2, 16)
    found /= np.linalg.norm(found, axis=2, keepdims=True)
    expected = expected_embeddings(checkpoint, texts, pooling)
    np.testing.assert_allclose(found, np.stack([expected[:-1], expected[1:]], axis=1), atol=2e-6)


def test_padding_on_either_side_does_not_count() -> None:
    values = np.random.default_rng(0).normal(size=(1, 5, 3))
    for mask, real in (([1, 1, 1, 0, 0], slice(0, 3)), ([0, 0, 1, 1, 1], slice(2, 5))):
        inside, bits = values[0, real], np.array([mask], dtype=bool)
        for how, expected in (
            ("first", inside[0]),
            ("last", inside[-1]),
            ("mean", inside.mean(0)),
            ("max", inside.max(0)),
        ):
            np.testing.assert_allclose(pooled(values, bits, how)[0], expected)  # type: ignore[arg-type]


def test_divergence_is_one_minus_torchs_cosine_and_lengths_do_not_count() -> None:
    import torch

    a, b = np.random.default_rng(1).normal(size=(2, 20, 2, 8))
    expected = (
        1 - torch.nn.functional.cosine_similarity(torch.from_numpy(a), torch.from_numpy(b), dim=2).mean(1).numpy()
    )
    np.testing.assert_allclose(EMBEDDING.divergence(a, b), expected)
    np.testing.assert_allclose(EMBEDDING.divergence(3 * a, 0.1 * b), expected)
    assert EMBEDDING.divergence(a, 0 * b) == pytest.approx(np.ones(20))


def test_labelled_pairs_are_scored_by_rank_correlation_of_their_cosines_and_compared_in_pairs() -> None:
    rng = np.random.default_rng(2)
    a = rng.normal(size=(60, 2, 8))
    b = a + rng.normal(size=a.shape) * 0.8

    def similar(x: np.ndarray) -> np.ndarray:
        return np.array([np.dot(p, q) / np.linalg.norm(p) / np.linalg.norm(q) for p, q in x])

    labels = similar(a) + rng.normal(size=60) * 0.2
    source, found = evaluate(a, labels, TASK, MAP), evaluate(b, labels, TASK, MAP, a)
    assert source.metrics == {"spearman": source.value, "cosine": 100.0} and (source.loss_per_row == 0).all()
    assert found.value == pytest.approx(100 * stats.spearmanr(similar(b), labels).statistic)
    assert found.metrics["cosine"] == pytest.approx(100 * (1 - EMBEDDING.divergence(a, b).mean()))
    assert found.loss_per_row == pytest.approx(EMBEDDING.divergence(a, b))
    compared = compare(source, found, labels, TASK, MAP)
    assert compared.metric == "spearman" and compared.mcnemar is None
    drawn = []
    for rows in rng.integers(60, size=(600, 60)):
        one, two = (stats.spearmanr(similar(x)[rows], labels[rows]).statistic for x in (a, b))
        drawn.append(100 * (two - one))
    interval = [compared.difference.low, compared.difference.high]
    assert interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=2.5)


def test_unlabelled_rows_are_scored_by_their_likeness_to_the_source() -> None:
    a = np.random.default_rng(3).normal(size=(40, 1, 8))
    b = a + np.random.default_rng(4).normal(size=a.shape) * 0.3
    none = np.full(40, np.nan)
    source, found = evaluate(a, none, TASK, MAP), evaluate(b, none, TASK, MAP, a)
    assert (source.metric, source.value) == ("cosine", 100.0) and found.value < 100
    compared = compare(source, found, none, TASK, MAP)
    assert compared.outcome == "worse" and compared.difference.value == pytest.approx(found.value - 100)
    with pytest.raises(DataError, match="embeddings have 4 numbers, those to compare with have 8"):
        evaluate(b[:, :, :4], none, TASK, MAP, a)
    assert compare(source, source, none, TASK, MAP).outcome == "no significant difference"


def test_rows_of_other_columns_are_read_without_labels(tmp_path: Path) -> None:
    pairs = [{"sentence1": "a", "sentence2": "b", "label": 2.5}]
    assert read_rows(tiny_tasks.write_lines(tmp_path / "a.jsonl", pairs), TASK).labels.tolist() == [2.5]
    for row, texts in (
        ({"text": "a", "label": "joy"}, ("a",)),
        ({"premise": "a", "hypothesis": "b", "label": "neutral"}, ("a", "b")),
        ({"sentence1": "a", "sentence2": "b"}, ("a", "b")),
    ):
        found = read_rows(tiny_tasks.write_lines(tmp_path / "b.jsonl", [row]), TASK)
        assert found.texts == (texts,) and np.isnan(found.labels).all()
    with pytest.raises(DataError, match="line 2: the label is missing"):
        read_rows(tiny_tasks.write_lines(tmp_path / "c.jsonl", [*pairs, {**pairs[0], "label": None}]), TASK)
    with pytest.raises(DataError, match="no column 'sentence1', 'sentence2'; found: words"):
        read_rows(tiny_tasks.write_lines(tmp_path / "d.jsonl", [{"words": "a"}]), TASK)


def test_texts_of_the_report_are_not_searched_with_even_alone(tmp_path: Path) -> None:
    texts = [f"w{i}" for i in range(5, 30)]
    tiny_tasks.write_lines(tmp_path / "search.jsonl", [{"text": text} for text in texts])
    tiny_tasks.write_lines(
        tmp_path / "validation.jsonl",
        [
            {"sentence1": texts[0], "sentence2": "new", "label": 1},
            {"sentence1": "w77", "sentence2": texts[3], "label": 2},
        ],
    )
    roles = resolve(TASK, model_dir=tmp_path, data=tmp_path)
    searched = {text for rows in (roles.search, roles.select) for row in rows.texts for text in row}
    assert searched == set(texts) - {texts[0], texts[3]}


def test_a_model_without_embeddings_and_a_pooling_that_is_not_known_are_refused(tmp_path: Path) -> None:
    class Only:
        def __init__(self, name: str, *shape: object) -> None:
            self.name, self.type, self.shape = name, "tensor(float)", list(shape)

    with pytest.raises(DataError, match=r"sentence_embedding .* the model has logits"):
        EMBEDDING.output([Only("logits", "b", 2)], None)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_weightedmean_tokens": True}))
    with pytest.raises(DataError, match="pooling is pooling_mode_weightedmean_tokens, expected one of"):
        EMBEDDING.output([Only("last_hidden_state", "b", "s", 8)], tmp_path)
    assert EMBEDDING.output([Only("last_hidden_state", "b", "s", 8)], None).positions == "mean"


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("case", "search"), [("exported", "compensated"), ("tokens", "compensated"), ("tokens", "robust")]
)
def test_optimize_ends_with_a_smaller_graph_whose_embeddings_are_compared_with_the_sources(
    tmp_path: Path, data: Path, case: str, search: Any
) -> None:
    from axformer_onnx.commands.optimization import OptimizeOptions, optimize
    from axformer_onnx.exporting import export

    checkpoint, folder = tiny_tasks.sentence_checkpoint(tmp_path / "in"), tmp_path / "model"
    if case == "exported":
        export(checkpoint, folder, exporter="torchscript")
    else:
        tiny_tasks.token_folder(checkpoint, folder)
    changes = {"size": 0.8} if search == "compensated" else {}
    options = OptimizeOptions(
        model=folder, task=TASK, output=tmp_path / "out", data=str(data), length=(8,), threads=1, effort="low",
        search=search, **changes,
    )  # fmt: skip
    report = optimize(options).report
    compensated = search == "compensated"
    assert [note for note in report.notes if "have no labels" in note] == [
        "the select rows have no labels: they are scored by cosine, 100 x the mean cosine to the source's embeddings"
    ]
    assert report.metric == "spearman" and report.source.metrics["cosine"] == 100
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()
    if compensated:
        assert report.candidate.size_bytes <= 0.8 * report.source.size_bytes
        assert 0 < report.candidate.metrics["cosine"] < 100
        assert report.compensation is not None
        exact = min(report.compensation.frontier, key=lambda point: point.divergence)
        assert exact.score == pytest.approx(100, abs=1e-3)  # select rows are unlabelled: likeness to the source
    again = score(ScoreOptions(models=(folder, tmp_path / "out"), task=TASK, data=str(data), threads=1, length=(8,)))
    found = [model.metrics for model in again.models.values()]
    assert found == [report.source.metrics, report.candidate.metrics]


def test_classifier_of_embeddings_cannot_be_refitted(tmp_path: Path, data: Path) -> None:
    from axformer_onnx.commands.optimization import OptimizeOptions, optimize

    folder = tiny_tasks.token_folder(tiny_tasks.sentence_checkpoint(tmp_path / "in"), tmp_path / "model")
    with pytest.raises(UsageError, match="--refit-classifier: a task of kind embedding"):
        optimize(
            OptimizeOptions(model=folder, task=TASK, output=tmp_path / "out", data=str(data), refit_classifier=True)
        )


def test_a_regression_refuses_a_model_of_hidden_states(tmp_path: Path, data: Path) -> None:
    folder = tiny_tasks.token_folder(tiny_tasks.sentence_checkpoint(tmp_path / "in"), tmp_path / "model")
    with pytest.raises(DataError, match="the model has last_hidden_state"):
        score(ScoreOptions(models=(folder,), task=own_task("regression", ["sentence1", "sentence2"]), data=str(data)))
