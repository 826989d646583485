"""Tiny model folders of other kinds of task: multi-label classification, and embeddings as sentence-transformers has them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import tiny_folder

from axformer_onnx.data.encoding import Encoder, batches
from axformer_onnx.data.rows import Rows
from axformer_onnx.exporting.quiet import quiet
from axformer_onnx.runtime.sessions import make_session, run_session

NAMES = ("joy", "anger", "fear")
CONFIG = {"model_type": "bert", "max_position_embeddings": 64, "vocab_size": 100, "pad_token_id": 0}


def texts(count: int, seed: int, longest: int = 12) -> list[str]:
    """Random texts of the tiny tokenizer's words."""
    draw = np.random.default_rng(seed)
    return [" ".join(f"w{i}" for i in draw.integers(5, 100, draw.integers(2, longest))) for _ in range(count)]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def multilabel_folder(folder: Path, search: int = 120, report: int = 60) -> Path:
    """The zoo's tiny BERT read as three sigmoids; labels are its own answers, a tenth of them flipped."""
    import zoo

    folder.mkdir(parents=True)
    shutil.copyfile(zoo.build("bert", "torchscript-eager-17").path, folder / "model.onnx")
    tiny_folder._tokenizer().save(str(folder / "tokenizer.json"))
    config = {**CONFIG, "id2label": dict(enumerate(NAMES)), "problem_type": "multi_label_classification"}
    (folder / "config.json").write_text(json.dumps(config))
    for role, count, seed in (("search", search, 1), ("validation", report, 2)):
        lines = texts(count, seed)
        given = _logits(folder, lines)
        given = given > np.median(given, axis=0)
        given ^= np.random.default_rng(seed).random(given.shape) < 0.1
        rows = [
            {"text": text, "labels": [NAMES[i] for i in np.flatnonzero(row)]}
            for text, row in zip(lines, given, strict=True)
        ]
        write_lines(folder / "data" / f"{role}.jsonl", rows)
    return folder


def _logits(folder: Path, lines: list[str]) -> np.ndarray:
    session, rows = (
        make_session(folder / "model.onnx", threads=1),
        Rows(tuple((t,) for t in lines), np.zeros(1), "", ""),
    )
    found = np.zeros((len(lines), len(NAMES)))
    names = [one.name for one in session.get_inputs()]
    for batch in batches(Encoder.from_folder(folder).encode(rows), names):
        found[batch.rows] = run_session(session, batch.feeds, ["logits"])["logits"]
    return found


def sentence_checkpoint(
    folder: Path, pooling: str = "mean_tokens", *, normalised: bool = True, layers: int = 3
) -> Path:
    """A random BERT with the files of sentence-transformers; pooling: mean_tokens | cls_token | max_tokens."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=56,
        max_position_embeddings=64, initializer_range=0.6,
    )  # fmt: skip
    BertModel(config).eval().save_pretrained(folder)
    tiny_folder._tokenizer().save(str(folder / "tokenizer.json"))
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalised else [])]
    modules = [{"idx": i, "path": "", "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 16, **{f"pooling_mode_{mode}": mode == pooling for mode in modes}})
    )
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": false}')
    return folder


def token_folder(checkpoint: Path, folder: Path) -> Path:
    """The transformer of a checkpoint alone, with last_hidden_state as its only output, and the files beside it."""
    import torch
    from transformers import BertModel

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = BertModel.from_pretrained(checkpoint, attn_implementation="eager").eval()

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    names = ["input_ids", "attention_mask"]
    example = (torch.randint(5, 100, (2, 7)), torch.ones(2, 7, dtype=torch.int64))
    axes = {name: {0: "batch", 1: "tokens"} for name in (*names, "last_hidden_state")}
    with quiet():
        torch.onnx.export(
            Tokens().eval(), example, str(folder / "model.onnx"), dynamo=False, opset_version=17, input_names=names,
            output_names=["last_hidden_state"], dynamic_axes=axes,
        )  # fmt: skip
    return folder


def sentence_data(folder: Path, search: int = 90, report: int = 40) -> Path:
    """Unlabelled texts to search with, and labelled pairs to report on."""
    write_lines(folder / "search.jsonl", [{"text": text} for text in texts(search, 3)])
    labels = np.random.default_rng(5).random(report) * 5
    pairs = zip(texts(report, 4), texts(report, 6), labels.tolist(), strict=True)
    write_lines(folder / "validation.jsonl", [{"sentence1": a, "sentence2": b, "label": y} for a, b, y in pairs])
    return folder
