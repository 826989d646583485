"""A real model under real clients: SST-2, pruned, in float32 and in integers, on validation sentences. Skips without the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clients_fixtures import BATCHES, batched, deployed, expected, tokens
from pruned_sst2 import sentences
from sst2_fixtures import WITHIN

from axformer_onnx.deploying.targets.openvino import COMPILED_WITH

ov = pytest.importorskip("openvino", reason="a client: make clients")


@pytest.mark.parametrize("kind", WITHIN)
def test_openvino_and_optimum_answer_on_sst2_what_our_session_answers(
    sst2: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    graph = sst2[kind]
    compiled = ov.Core().compile_model(
        str(deployed(graph, tmp_path / "openvino", "openvino") / "model.onnx"),
        "CPU",
        COMPILED_WITH,
    )
    folder = deployed(graph, tmp_path / "optimum", "optimum")
    model, tokenizer = ORTModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for size in BATCHES:
        for texts in batched(sentences(24), size):
            wanted = expected(graph, texts)
            np.testing.assert_allclose(compiled(tokens(graph, texts))["logits"], wanted, atol=WITHIN[kind], rtol=0)
            encoded = tokenizer([text for (text,) in texts], padding=True, truncation=True, return_tensors="pt")
            np.testing.assert_allclose(model(**encoded).logits.numpy(), wanted, atol=WITHIN[kind], rtol=0)
