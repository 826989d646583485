"""Graphs and rows for the tests of real clients, and what this tool's own session answers: `make clients` runs them.

Each file skips where its client is not installed, so that `make test` passes it by.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_folder

import axformer_onnx as ax
from axformer_onnx.data import Encoder, Rows, read_json
from axformer_onnx.data.encoding import feeds
from axformer_onnx.runtime import make_session, run_session
from axformer_onnx.tasks.outputs import Output
from axformer_passes.precision import Int8

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "models" / "nli-mini"
KINDS = ("float32", "hard", "int8")
TOLERANCE = {"float32": 2e-5, "run": 2e-5, "fused": 2e-5, "hard": 2e-5, "int8": 0.05, "half": 0.01}
"""Largest difference of a logit (they reach about 3) from our own session's on the same batch. Integers: a sum in another order
tips a number to its neighbour, and all activations of a tensor are rounded anew with it."""
BATCHES = (1, 3, 8)
Texts = Sequence[tuple[str, ...]]


def plans() -> dict[str, ax.Plan]:
    """Heads, neurons, an attention and a feed-forward block gone; the same with hard attention, and in integers."""
    cut = ax.Plan().without_heads(0, [1, 3]).without_neurons(1, range(100)).without_attention(2).without_feed_forward(2)
    int8 = Int8(frozenset({0, 1, 3}), frozenset({0, 1, 3, 4}), tables=8, stored=True)
    return {
        "float32": cut,
        "hard": cut.with_hard_attention(0, 5).with_hard_attention(3, 4, "renormalised"),
        "int8": dataclasses.replace(cut, int8=int8),
    }


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the example model under each plan, and of a finished run on it: "run"."""
    folder = tmp_path_factory.mktemp("graphs")
    found = {kind: ax.apply(plan, EXAMPLE, folder / kind).parent for kind, plan in plans().items()}
    run = ax.optimize(
        EXAMPLE, task="mnli", search="axformer", max_search_rows=30, length=16, wait_for_quiet=0, output=folder / "run"
    )
    return {**found, "run": run.output}


def pairs(count: int) -> list[tuple[str, str]]:
    """Premise and hypothesis of the example's validation rows, of many lengths."""
    lines = (EXAMPLE / "data" / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    return [(row["premise"], row["hypothesis"]) for row in map(json.loads, lines)]


def batched(texts: Texts, size: int) -> list[Texts]:
    """In their order, `size` at a time."""
    return [texts[i : i + size] for i in range(0, len(texts), size)]


@functools.cache
def _session(folder: Path) -> Any:
    return make_session(folder / "model.onnx", threads=1)


@functools.cache
def _encoder(folder: Path) -> Encoder:
    return Encoder.from_folder(folder)


def tokens(folder: Path, texts: Texts) -> dict[str, np.ndarray]:
    """One batch of texts as this tool feeds it."""
    encoded = _encoder(folder).encode(Rows(tuple(texts), np.zeros(len(texts)), "", ""))
    return dict(feeds(encoded, range(len(texts)), [one.name for one in _session(folder).get_inputs()]))


def expected(folder: Path, texts: Texts, output: str | Output = "logits") -> np.ndarray:
    """What the graph in `folder` answers in this tool's own session, as one batch; of `Output`s, pooled as the scorer pools."""
    fed = tokens(folder, texts)
    name = output if isinstance(output, str) else output.name
    values = run_session(_session(folder), fed, [name])[name]
    return values if isinstance(output, str) else output.read(values, fed["attention_mask"] == 1)


def same_answers(kind: str, found: Any, wanted: np.ndarray) -> None:
    """Within the tolerance of `kind`, and the same class."""
    found = np.asarray(found)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE[kind], rtol=0)
    if kind != "int8":
        assert (found.argmax(-1) == wanted.argmax(-1)).all()


def deployed(graph: Path, folder: Path, target: str, **options: Any) -> Path:
    """The folder that `deploy` writes."""
    return ax.deploy(graph, folder, for_=target, **options).path


def labels(folder: Path) -> list[str]:
    """Of config.json, by column."""
    return list(read_json(folder / "config.json")["id2label"].values())


def tiny_model(checkpoint: Path, kind: str) -> Path:
    """A random BERT with a head of this kind, exported; its folder."""
    import torch
    import transformers

    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=64, num_labels=5 if kind == "TokenClassification" else 2,
    )  # fmt: skip
    getattr(transformers, f"BertFor{kind}")(config).eval().save_pretrained(checkpoint)
    tiny_folder._tokenizer().save(str(checkpoint / "tokenizer.json"))
    return ax.export(checkpoint, checkpoint.parent / "exported").path.parent
