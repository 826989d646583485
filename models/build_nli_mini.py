"""Make models/nli-mini: a small BERT for natural language inference, trained from scratch on the rows of
nli_grammar.

    python models/build_nli_mini.py [--output models/nli-mini]

Needs the [export] extra. One thread, one seed: the same versions on the same kind of machine give the same files (the
committed ones are older than that: their page says how they differ). Rows: 10 % of the training labels are wrong on
purpose; search and validation rows are clean; no pair is in two sets.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np
from nli_grammar.logic import LABELS
from nli_grammar.rows import Row, generate, take, with_noise
from nli_growing import grow
from nli_training import Example, Recipe, accuracy, learn_labels, learn_words

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_TOKENS = 64


def make_rows(recipe: Recipe) -> dict[str, list[Row]]:
    """Three disjoint sets; only `train` has wrong labels."""
    rows = generate(recipe.seed, set())
    sets = {"validation": take(rows, recipe.validation_rows), "search": take(rows, recipe.search_rows)}
    return {**sets, "train": with_noise(take(rows, recipe.train_rows), recipe.noise, recipe.seed)}


def make_tokenizer(rows: list[Row]) -> Any:
    """A lower-casing WordPiece tokenizer with BERT's template: every word of the rows, and letters for all others.

    Not trained: the trainer of `tokenizers` breaks ties at random, and the same seed shall give the same vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    texts = " ".join(row[column] for row in rows for column in ("premise", "hypothesis"))
    words = {word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(texts))}
    letters = set(string.ascii_lowercase + string.digits + string.punctuation)
    pieces = [*SPECIAL, *sorted(letters), *(f"##{letter}" for letter in sorted(letters)), *sorted(words - letters)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def make_model(recipe: Recipe, words: int) -> Any:
    """A BertForSequenceClassification with fresh weights."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(recipe.seed)
    config = BertConfig(
        vocab_size=words,
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.neurons,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=recipe.initial,
        hidden_dropout_prob=0.0,  # the rows are many and seen a few times: dropout only slows learning
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
        attn_implementation="eager",
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.bert.embeddings.position_embeddings.weight.copy_(recipe.initial * 2**0.5 * waves(recipe.hidden))
        for layer in model.bert.encoder.layer:
            for projection in (layer.attention.self.query, layer.attention.self.key):
                projection.weight.normal_(std=recipe.hidden**-0.5)
    return model


def waves(width: int) -> Any:
    """Sines and cosines of the position, float32[MAX_TOKENS, width]: a start from which "the word before" is easily learned."""
    import torch

    angles = torch.arange(MAX_TOKENS)[:, None] * 200.0 ** (-torch.arange(0, width, 2) / width)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def encode(tokenizer: Any, rows: list[Row]) -> list[Example]:
    """(encoding, label) of each row, in order."""
    encodings = tokenizer.encode_batch([(row["premise"], row["hypothesis"]) for row in rows])
    return [(encoding, row["label"]) for encoding, row in zip(encodings, rows, strict=True)]


def export(model: Any, path: Path) -> None:
    """One ONNX file by torch's TorchScript exporter: opset 17, dynamic batch and sequence axes; checked."""
    import onnx
    import torch

    model.eval()
    ids = torch.randint(5, model.config.vocab_size, (2, 11), generator=torch.Generator().manual_seed(0))
    sample = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch", 1: "sequence"} for name in names}
    torch.onnx.export(
        model, sample, str(path), dynamo=False, opset_version=17, input_names=names, output_names=["logits"],
        dynamic_axes={**axes, "logits": {0: "batch"}}, do_constant_folding=True,
    )  # fmt: skip
    onnx.checker.check_model(str(path), full_check=True)
    check_export(model, path)


def check_export(model: Any, path: Path) -> None:
    """Raise unless ONNX Runtime gives torch's logits to 1e-4 on shapes that the export did not see."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    for rows, tokens in ((1, 5), (3, 20), (7, MAX_TOKENS)):
        feed = {
            "input_ids": rng.integers(5, model.config.vocab_size, (rows, tokens)),
            "attention_mask": (np.arange(tokens) < rng.integers(2, tokens + 1, (rows, 1))).astype(np.int64),
            "token_type_ids": rng.integers(0, 2, (rows, tokens)),
        }
        with torch.no_grad():
            expected = model(**{name: torch.from_numpy(value) for name, value in feed.items()}).logits.numpy()
        worst = float(np.abs(session.run(None, feed)[0] - expected).max())
        if worst > 1e-4:
            raise RuntimeError(f"{path}: logits differ from torch by {worst:.2e} at {rows} x {tokens} tokens")


def write_rows(path: Path, rows: list[Row]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def build(recipe: Recipe, output: Path, keep_train: bool) -> None:
    """Everything, from the seed to the folder; the folder appears only when it is complete."""
    import torch

    torch.set_num_threads(1)
    sets = make_rows(recipe)
    print("rows ready", flush=True)
    tokenizer = make_tokenizer(sets["train"])
    model = make_model(recipe, tokenizer.get_vocab_size())
    examples = {name: encode(tokenizer, rows) for name, rows in sets.items()}
    learn_words(model, recipe, examples["train"])
    learn_labels(model, recipe, examples["train"], examples["search"])
    model = grow(model, recipe, examples["train"], examples["search"])
    scores = {name: accuracy(model, examples[name]) for name in ("search", "validation")}
    print(scores)
    work = output.with_name(output.name + ".partial")
    shutil.rmtree(work, ignore_errors=True)
    for name, rows in sets.items():
        if name != "train" or keep_train:
            write_rows(work / "data" / f"{name}.jsonl", rows)
    export(model, work / "model.onnx")
    write_settings(work, tokenizer, model)
    (work / "README.md").write_text(card(recipe, sets, scores, model), encoding="utf-8")
    shutil.rmtree(output, ignore_errors=True)
    work.rename(output)


def card(recipe: Recipe, sets: dict[str, list[Row]], scores: dict[str, float], model: Any) -> str:
    """The model card: nli_card.md with the figures of this run."""
    template = (Path(__file__).parent / "nli_card.md").read_text(encoding="utf-8")
    labels = np.bincount([row["label"] for row in sets["validation"]])
    facts = {
        "parameters": model.num_parameters(),
        "head_size": recipe.hidden // recipe.heads,
        "vocabulary_words": model.config.vocab_size,
        "majority": 100 * labels.max() / labels.sum(),
    }
    return template.format(**dataclasses.asdict(recipe), **scores, **facts)


def write_settings(folder: Path, tokenizer: Any, model: Any) -> None:
    """tokenizer.json, tokenizer_config.json and config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": MAX_TOKENS,
        "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "nli-mini")
    parser.add_argument("--keep-train", action="store_true", help="write data/train.jsonl too")
    for field in dataclasses.fields(Recipe):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    output, keep_train = options.pop("output"), options.pop("keep_train")
    build(Recipe(**options), output, keep_train)


if __name__ == "__main__":
    main()
