"""The files of a transformers folder beside a graph: config.json, the tokenizer, how tokens are pooled.

The tokenizer is written as this tool reads it: lower case where tokenizer_config.json asks for it, the limit of tokens that fits
the model. Readers of tokenizer.json alone (text-embeddings-inference, FastEmbed, Triton) then make the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from axformer_onnx.data import Encoder
from axformer_onnx.deploying.config_file import config_of, dumped
from axformer_onnx.deploying.contents import Contents
from axformer_onnx.deploying.target import Job
from axformer_onnx.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

_OF_TOKENIZERS = ("special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt")
_POOLING = {
    "first": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "last": "pooling_mode_lasttoken",
}


def write_config(job: Job, more: Mapping[str, Any] | None = None, place: str = "") -> dict[str, Any]:
    """Write config.json, true to the graph; returns it."""
    config = config_of(job.contents, more)
    job.write({f"{place}config.json": dumped(config)})
    return config


def write_tokenizer(job: Job, place: str = "") -> Encoder | None:
    """Write the tokenizer's files; returns the tokenizer, None for a graph that takes no texts or a folder without one.

    Raises: DataError, RuntimeFailure for a tokenizer that cannot be read.
    """
    contents = job.contents
    if not contents.takes_text or not has_tokenizer(contents):
        return None
    encoder = Encoder.from_folder(contents.settings)
    folder = job.folder / place
    folder.mkdir(parents=True, exist_ok=True)
    encoder.tokenizer.save(str(folder / "tokenizer.json"))
    for name in _OF_TOKENIZERS:
        if (contents.settings / name).is_file():
            (folder / name).write_bytes((contents.settings / name).read_bytes())
    job.write({f"{place}tokenizer_config.json": dumped(_tokenizer_config(contents, encoder))})
    return encoder


def has_tokenizer(contents: Contents) -> bool:
    """Lies a tokenizer beside the graph?"""
    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "vocab.json",
        "spiece.model",
        "sentencepiece.bpe.model",
    )
    return any((contents.settings / name).is_file() for name in names)


def require_texts(contents: Contents, target: str) -> None:
    """Raises: UsageError for a graph that takes no texts, or without a tokenizer."""
    if not contents.takes_text:
        raise UsageError(
            f"{contents.path}: --for {target} feeds texts, and the graph takes {', '.join(contents.inputs)}"
        )
    if not has_tokenizer(contents):
        raise UsageError(
            f"{contents.settings}: --for {target} needs the model's tokenizer there, at best tokenizer.json"
        )


def require_keys(contents: Contents, names: tuple[str, ...], target: str) -> None:
    """Raises: UsageError where config.json lacks one of these keys."""
    missing = [name for name in names if not contents.config.get(name)]
    if missing:
        path: Path = contents.settings / "config.json"
        raise UsageError(
            f"{path}: has no {missing[0]}, which --for {target} reads; copy the checkpoint's config.json there"
        )


def pooling_file(mode: str, width: int | None) -> str:
    """1_Pooling/config.json, in the names that every version of sentence-transformers reads."""
    config: dict[str, Any] = {"word_embedding_dimension": width}
    config |= {name: mode == key for key, name in _POOLING.items()}
    return dumped(
        {
            **config,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "pooling_mode_weightedmean_tokens": False,
            "include_prompt": True,
        }
    )


def architecture(contents: Contents) -> str:
    """The first class that config.json names; empty where it names none."""
    names = contents.config.get("architectures") or ("",)
    return str(names[0])


def _tokenizer_config(contents: Contents, encoder: Encoder) -> dict[str, Any]:
    settings = contents.tokenizer_settings
    if not settings:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
        padding = encoder.padding.id
        if padding is not None:
            settings["pad_token"] = encoder.tokenizer.id_to_token(padding)
    return {**json.loads(json.dumps(settings)), "model_max_length": encoder.max_length}
