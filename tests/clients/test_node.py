"""onnxruntime-node and transformers.js answer in Node, from local files alone, what ONNX Runtime answers in Python."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_tasks
from clients_fixtures import (
    BATCHES,
    Texts,
    batched,
    deployed,
    expected,
    labels,
    pairs,
    same_answers,
    tiny_model,
    tokens,
)
from javascript_fixtures import (
    CASES,
    EXAMPLE_PAGE,
    PACKAGES,
    Made,
    answers,
    as_lists,
    node,
    probabilities,
    ran,
    require_node,
)
from pruned_sst2 import sentences
from sst2_fixtures import WITHIN

import axformer_onnx as ax

require_node()
TRIALS = [texts for size in BATCHES for texts in batched(pairs(19), size)]
TEXTS = [("w5 w6 w7",), ("w8 w9 w10 w11 w12 w13 w14",), ("w20",)]


def asked(folder: Path, kind: str, output: str, batches: list[Texts]) -> list[dict[str, np.ndarray]]:
    """What a class of transformers.js answers on batches of texts, in the precision that the folder names."""
    return answers({"folder": str(folder), "kind": kind, "output": output, "batches": batches})


@pytest.mark.parametrize("kind", CASES)
def test_onnxruntime_node_answers_what_onnx_runtime_answers(made: dict[str, Made], kind: str) -> None:
    source, _, graph = made[kind]
    fed = [as_lists(tokens(source, texts)) for texts in TRIALS]
    found = answers({"graph": str(graph), "output": "logits", "batches": fed})
    for texts, one in zip(TRIALS, found, strict=True):
        same_answers(kind, one["found"], expected(source, texts))


@pytest.mark.parametrize("kind", CASES)
def test_transformers_js_reads_texts_as_this_tool_does_and_answers_alike(made: dict[str, Made], kind: str) -> None:
    source, folder, _ = made[kind]
    found = asked(folder, "AutoModelForSequenceClassification", "logits", TRIALS)
    for texts, one in zip(TRIALS, found, strict=True):
        np.testing.assert_array_equal(one["ids"], tokens(source, texts)["input_ids"])
        same_answers(kind, one["found"], expected(source, texts))


@pytest.mark.parametrize("kind", WITHIN)
def test_both_answer_on_sst2_what_onnx_runtime_answers(sst2: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = deployed(sst2[kind], tmp_path / "out", "transformersjs")
    (graph,) = (folder / "onnx").iterdir()
    trials = [texts for size in BATCHES for texts in batched(sentences(24), size)]
    question = {"output": "logits", "batches": [as_lists(tokens(sst2[kind], texts)) for texts in trials]}
    by_runtime = answers({**question, "graph": str(graph)})
    by_transformers = asked(folder, "AutoModelForSequenceClassification", "logits", trials)
    for texts, one, other in zip(trials, by_runtime, by_transformers, strict=True):
        np.testing.assert_allclose(one["found"], expected(sst2[kind], texts), atol=WITHIN[kind], rtol=0)
        np.testing.assert_allclose(other["found"], expected(sst2[kind], texts), atol=WITHIN[kind], rtol=0)


@pytest.mark.parametrize(
    ("kind", "outputs"), [("TokenClassification", ["logits"]), ("QuestionAnswering", ["start_logits", "end_logits"])]
)
def test_answers_of_tokens_are_what_onnx_runtime_answers(tmp_path: Path, kind: str, outputs: list[str]) -> None:
    graph = tiny_model(tmp_path / "checkpoint", kind)
    folder = deployed(graph, tmp_path / "out", "transformersjs")
    for name in outputs:
        (one,) = asked(folder, f"AutoModelFor{kind}", name, [TEXTS])
        np.testing.assert_allclose(one["found"], expected(graph, TEXTS, name), atol=1e-5, rtol=0)


@pytest.mark.parametrize("output", ["sentence_embedding", "last_hidden_state"])
def test_embeddings_are_what_onnx_runtime_answers(tmp_path: Path, output: str) -> None:
    checkpoint = tiny_tasks.sentence_checkpoint(tmp_path / "checkpoint", "mean_tokens")
    if output == "last_hidden_state":
        graph = tiny_tasks.token_folder(checkpoint, tmp_path / "tokens")
    else:
        graph = ax.export(checkpoint, tmp_path / "graph", task="embedding", exporter="torchscript").path.parent
    folder, texts = deployed(graph, tmp_path / "out", "transformersjs"), [(text,) for text in tiny_tasks.texts(7, 5)]
    assert output in (folder / "README.md").read_text(encoding="utf-8")
    (one,) = asked(folder, "AutoModel", output, [texts])
    np.testing.assert_allclose(one["found"], expected(graph, texts, output), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_lines_of_the_folders_readme_run_as_they_stand(graphs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = deployed(graphs[kind], tmp_path / "out", "transformersjs")
    (tmp_path / "node_modules").symlink_to(PACKAGES)
    lines = re.findall(r"^    (.*)$", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    lines[-1] = lines[-1].replace("await answer('A text.')", "JSON.stringify(await answer('A text.'))")
    (folder / "lines.mjs").write_text("\n".join(lines), encoding="utf-8")
    (answer,) = json.loads(node("lines.mjs", folder=folder))
    wanted = probabilities(expected(graphs[kind], [("A text.",)]))[0]
    assert answer["label"] == labels(folder)[wanted.argmax()]
    assert answer["score"] == pytest.approx(wanted.max(), abs=1e-5 if kind == "float32" else 0.02)


def test_the_example_in_node_prints_label_score_and_line_and_takes_the_precision_that_is_there(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    texts = pairs(11)  # a batch of eight and one of three
    for kind in ("float32", "int8"):
        folder = deployed(graphs[kind], tmp_path / kind, "transformersjs")
        printed = node(EXAMPLE_PAGE / "classify.js", folder, given="\n".join(map("\t".join, texts))).splitlines()
        wanted = np.concatenate([probabilities(expected(graphs[kind], some)) for some in batched(texts, 8)])
        for line, text, row in zip(printed, texts, wanted, strict=True):
            label, score, *rest = line.split("\t")
            assert tuple(rest) == text
            assert float(score) == pytest.approx(
                row[labels(folder).index(label)], abs=1e-4 if kind == "float32" else 0.02
            )
            assert float(score) >= row.max() - 0.02


def test_a_precision_that_is_not_there_is_named_in_one_line(graphs: dict[str, Path], tmp_path: Path) -> None:
    folder = deployed(graphs["float32"], tmp_path / "out", "transformersjs")
    done = ran(EXAMPLE_PAGE / "classify.js", folder, "--dtype", "q8")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert re.search(r"not found locally at .*model_quantized.onnx", done.stderr)
