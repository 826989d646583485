"""A complete tiny model folder for tests of the whole line: a random BERT, its tokenizer, config and MNLI-like rows.

The labels are the model's own answers, a fifth of them drawn anew: it scores well above chance, and parts matter.
Some parts are made useless (their rows of the output projections are zero), so that a search has something to find.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from axformer_onnx.data.encoding import Encoder, batches
from axformer_onnx.data.rows import Rows
from axformer_onnx.runtime.sessions import make_session, run_once, run_session
from axformer_onnx.tasks.definitions import get_task
from axformer_passes.io.files import load_model
from axformer_passes.recognise.examination import recognise

USELESS = ((2, [1, 2], range(14)), (0, [3], range(28, 42)))
"""(layer, heads, neurons): whole neuron groups of the 56 neurons in 4."""
NAMES = get_task("mnli").labels


def make_folder(folder: Path, exporter: str = "torchscript-eager-17", search: int = 90, report: int = 60) -> Path:
    """Write model.onnx, tokenizer.json, config.json and data/ into `folder`; returns `folder`."""
    import zoo

    model = zoo.build("bert", exporter)
    folder.mkdir(parents=True)
    plant(model.path, folder / "model.onnx")
    _tokenizer().save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "bert",
        "id2label": dict(enumerate(NAMES)),
        "max_position_embeddings": 64,
        "vocab_size": 100,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_rows(folder, folder / "data" / "search.jsonl", search, seed=1)
    write_rows(folder, folder / "data" / "validation.jsonl", report, seed=2)
    return folder


def plant(source: Path, target: Path) -> None:
    """Copy the model with USELESS heads and neurons."""
    model = onnx.load(source)
    layers = recognise(load_model(source), run_once).layers
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for layer, heads, neurons in USELESS:
        attention, block = layers[layer].attention, layers[layer].feed_forward
        assert attention is not None and block is not None
        size = attention.head_size
        _zero(weights[attention.output.weight], [r for h in heads for r in range(h * size, (h + 1) * size)])
        _zero(weights[block.down.weight], neurons)
    onnx.save(model, target)


def _zero(tensor: onnx.TensorProto, rows: Sequence[int]) -> None:
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[list(rows)] = 0
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def write_rows(folder: Path, path: Path, count: int, seed: int) -> None:
    """Random pairs, labelled by the model in `folder`, a fifth of them at random."""
    draw = np.random.default_rng(seed)
    texts = [
        tuple(" ".join(f"w{i}" for i in draw.integers(5, 100, draw.integers(2, 8))) for _ in range(2))
        for _ in range(count)
    ]
    rows = Rows(tuple(texts), np.zeros(count, dtype=np.int64), "", "")
    labels = _answers(folder, rows)
    noisy = draw.random(count) < 0.2
    labels[noisy] = draw.integers(0, 3, int(noisy.sum()))
    path.parent.mkdir(exist_ok=True)
    lines = [
        json.dumps({"premise": a, "hypothesis": b, "label": NAMES[label]})
        for (a, b), label in zip(texts, labels, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")


def _answers(folder: Path, rows: Rows) -> np.ndarray:
    session = make_session(folder / "model.onnx", threads=1)
    names = [one.name for one in session.get_inputs()]
    answers = np.zeros(len(rows), dtype=np.int64)
    for batch in batches(Encoder.from_folder(folder).encode(rows), names):
        answers[batch.rows] = run_session(session, batch.feeds, ["logits"])["logits"].argmax(axis=1)
    return answers


def _tokenizer() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *(f"w{i}" for i in range(5, 100))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer
