"""A real model under real clients: SST-2, pruned, in float32 and in integers, on validation sentences. Skips without the data."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from clients_fixtures import BATCHES, batched, deployed, expected, tokens

import axformer_onnx as ax
from axformer_passes.precision import Int8

ov = pytest.importorskip("openvino", reason="a client: make clients")
SHARED = Path(__file__).parents[3] / "shared"
CHECKPOINT, ROWS = SHARED / "checkpoints" / "sst2", SHARED / "data" / "sst2"
pytestmark = pytest.mark.skipif(not CHECKPOINT.is_dir(), reason="needs the shared checkpoints")
WITHIN = {"float32": 2e-5, "int8": 0.1}
"""Of logits that reach about 4; see clients_fixtures for the integers."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sst2")
    source = ax.export(CHECKPOINT, folder / "source", task="sst2").path
    plan = ax.Plan().without_heads(0, [0, 5]).without_neurons(2, range(300)).with_hard_attention(1, 8)
    int8 = Int8(frozenset({1, 2, 3}), frozenset({0, 2, 4}), tables=8, stored=True)
    plans = {"float32": plan, "int8": dataclasses.replace(plan, int8=int8)}
    return {kind: ax.apply(one, source, folder / kind).parent for kind, one in plans.items()}


def sentences(count: int) -> list[tuple[str, ...]]:
    (path,) = (path for path in sorted(ROWS.iterdir()) if path.name.startswith("validation"))
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    return [(row.get("sentence") or row["text"],) for row in map(json.loads, lines)]


@pytest.mark.parametrize("kind", WITHIN)
def test_openvino_and_optimum_answer_on_sst2_what_our_session_answers(
    results: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    graph = results[kind]
    compiled = ov.Core().compile_model(
        str(deployed(graph, tmp_path / "openvino", "openvino") / "model.onnx"),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    folder = deployed(graph, tmp_path / "optimum", "optimum")
    model, tokenizer = ORTModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for size in BATCHES:
        for texts in batched(sentences(24), size):
            wanted = expected(graph, texts)
            np.testing.assert_allclose(compiled(tokens(graph, texts))["logits"], wanted, atol=WITHIN[kind], rtol=0)
            encoded = tokenizer([text for (text,) in texts], padding=True, truncation=True, return_tensors="pt")
            np.testing.assert_allclose(model(**encoded).logits.numpy(), wanted, atol=WITHIN[kind], rtol=0)
