"""sentence-transformers, FastEmbed and optimum load embedders that `deploy` writes, and embed as this tool's scorer does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_tasks
from clients_fixtures import BATCHES, Texts, batched, deployed, expected

import axformer_onnx as ax
from axformer_onnx.runtime import make_session
from axformer_onnx.tasks import EMBEDDING, Output
from axformer_passes.precision import Int8

pytest.importorskip("fastembed", reason="a client: make clients")
pytest.importorskip("sentence_transformers", reason="a client: make clients")
TEXTS = [(text,) for text in tiny_tasks.texts(24, 5)]
POOLINGS = ("mean_tokens", "cls_token")
WITHIN = 1e-5
"""Of numbers of vectors of length 1, on the same batches: the range that integers are rounded by is that of their batch."""
CASES = [(where, pooling) for pooling in POOLINGS for where in ("graph", "folder")] + [
    ("hard", "mean_tokens"),
    ("int8", "mean_tokens"),
]
Embedder = tuple[Path, Output, str]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    """(folder, what is read of its graph, the case).

    graph, hard, int8  pooled and of length 1 in the graph: as it was exported, with hard attention, in integers
    folder             pooled as the folder says
    """
    where, pooling = request.param
    folder = tmp_path_factory.mktemp(f"{where}-{pooling}")
    checkpoint = tiny_tasks.sentence_checkpoint(folder / "checkpoint", pooling)
    if where == "folder":
        graph = tiny_tasks.token_folder(checkpoint, folder / "tokens")
    else:
        graph = ax.export(checkpoint, folder / "graph", task="embedding", exporter="torchscript").path.parent
    plans = {
        "hard": ax.Plan().with_hard_attention(0, 3),
        "int8": ax.Plan(int8=Int8(frozenset({0, 1}), frozenset({1}), stored=True)),
    }
    if where in plans:
        graph = ax.apply(plans[where], graph, folder / where).parent
    session = make_session(graph / "model.onnx")
    return graph, EMBEDDING.output(session.get_outputs(), graph), where


def wanted(embedder: Embedder, texts: Texts) -> np.ndarray:
    """Pooled as the scorer pools, and of length 1 as modules.json asks."""
    vectors = expected(embedder[0], texts, embedder[1])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_sentence_transformers_embeds_as_our_scorer_does(embedder: Embedder, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = deployed(embedder[0], tmp_path / "out", "sentence-transformers")
    settings = {"file_name": "model.onnx", "provider": "CPUExecutionProvider"}
    model = SentenceTransformer(str(folder), backend="onnx", model_kwargs=settings, device="cpu")
    for texts in (texts for size in BATCHES for texts in batched(TEXTS, size)):
        found = model.encode([text for (text,) in texts], batch_size=len(texts))
        np.testing.assert_allclose(found, wanted(embedder, texts), atol=WITHIN)


def test_fastembed_embeds_as_our_scorer_does(embedder: Embedder, tmp_path: Path) -> None:
    from fastembed import TextEmbedding

    folder = deployed(embedder[0], tmp_path / "out", "fastembed")
    model = embedded_by_the_readme(folder, TextEmbedding)
    for texts in (texts for size in BATCHES for texts in batched(TEXTS, size)):
        found = np.stack(list(model.embed([text for (text,) in texts], batch_size=len(texts))))
        np.testing.assert_allclose(found, wanted(embedder, texts), atol=WITHIN)


def embedded_by_the_readme(folder: Path, kind: type) -> object:
    """The model that the lines of the README make, run as they stand there, under a name that is not taken."""
    lines = [
        line.removeprefix("    ") for line in (folder / "README.md").read_text().splitlines() if line.startswith("    ")
    ]
    code = "\n".join(line for line in lines if not line.startswith("pip "))
    place: dict[str, object] = {}
    name = json.dumps(f"axformer/{abs(hash(folder))}")
    exec(code.replace(next(line for line in lines if '"axformer/' in line).split(",")[0].strip(), name), place)
    assert isinstance(place["model"], kind)
    return place["model"]


def test_optimum_hands_out_what_the_graph_pools(embedder: Embedder, tmp_path: Path) -> None:
    from optimum.onnxruntime import ORTModelForFeatureExtraction
    from transformers import AutoTokenizer

    folder = deployed(embedder[0], tmp_path / "out", "optimum")
    model = ORTModelForFeatureExtraction.from_pretrained(folder, provider="CPUExecutionProvider")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for texts in batched(TEXTS, 8):
        tokens = tokenizer([text for (text,) in texts], padding=True, truncation=True, return_tensors="pt")
        states = model(**tokens).last_hidden_state.numpy()
        found = (
            embedder[1].read(states, tokens["attention_mask"].numpy() == 1) if embedder[2] == "folder" else states[:, 0]
        )
        np.testing.assert_allclose(found, expected(embedder[0], texts, embedder[1]), atol=WITHIN)
