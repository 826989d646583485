"""A tiny sequence-to-sequence classifier as people have it: graph, tokenizer and config.json in a folder, MNLI-like rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import tiny_folder
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from zoo import VOCAB, ZooModel

CONFIG = {
    "id2label": dict(enumerate(tiny_folder.NAMES)), "max_position_embeddings": 64, "vocab_size": VOCAB, "pad_token_id": 1,
    "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip


def tokenizer() -> Tokenizer:
    """BART's template: <s> text </s>, and <s> text </s> </s> other </s>."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *(f"w{i}" for i in range(5, VOCAB))]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


def make_folder(folder: Path, model: ZooModel, *, search: int = 80, report: int = 40) -> Path:
    """model.onnx, tokenizer.json, config.json and rows that are labelled by the model, a fifth of them at random."""
    folder.mkdir(parents=True)
    shutil.copyfile(model.path, folder / "model.onnx")
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tiny_folder.write_rows(folder, folder / "data" / "search.jsonl", search, seed=1)
    tiny_folder.write_rows(folder, folder / "data" / "validation.jsonl", report, seed=2)
    return folder
