"""optimum's ORTModel classes load what `deploy` writes and answer as this tool's session does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients_fixtures import BATCHES, KINDS, batched, deployed, expected, labels, pairs, same_answers, tiny_model

ort = pytest.importorskip("optimum.onnxruntime", reason="a client: make clients")
pytest.importorskip("openvino", reason="a client: make clients")
from transformers import AutoTokenizer  # noqa: E402

TEXTS = ["w5 w6 w7", "w8 w9 w10 w11 w12 w13 w14", "w20"]


def loaded(kind: str, folder: Path) -> tuple[Any, Any]:
    model = getattr(ort, f"ORTModelFor{kind}").from_pretrained(folder, provider="CPUExecutionProvider")
    return model, AutoTokenizer.from_pretrained(folder)


def encoded(tokenizer: Any, texts: Any) -> Any:
    columns = list(zip(*texts, strict=True)) if isinstance(texts[0], tuple) else [texts]
    return tokenizer(*map(list, columns), padding=True, truncation=True, return_tensors="pt")


@pytest.mark.parametrize("kind", [*KINDS, "run"])
def test_a_classifier_answers_what_our_session_answers(graphs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = deployed(graphs[kind], tmp_path / "out", "optimum")
    model, tokenizer = loaded("SequenceClassification", folder)
    assert list(model.config.id2label.values()) == labels(graphs[kind])
    for size in BATCHES:
        for texts in batched(pairs(16), size):
            found = model(**encoded(tokenizer, texts)).logits
            same_answers("float32" if kind == "run" else kind, found, expected(graphs[kind], texts))


@pytest.mark.parametrize(
    ("kind", "outputs"), [("TokenClassification", ["logits"]), ("QuestionAnswering", ["start_logits", "end_logits"])]
)
def test_answers_of_tokens_are_what_our_session_answers(tmp_path: Path, kind: str, outputs: list[str]) -> None:
    graph = tiny_model(tmp_path / "checkpoint", kind)
    folder = deployed(graph, tmp_path / "out", "optimum")
    model, tokenizer = loaded(kind, folder)
    found = model(**encoded(tokenizer, TEXTS))
    for name in outputs:
        wanted = expected(graph, [(text,) for text in TEXTS], name)
        np.testing.assert_allclose(getattr(found, name).numpy(), wanted, atol=1e-5)
