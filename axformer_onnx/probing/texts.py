"""What a row of tokens looks like to one model: by its folder's tokenizer, else by the special tokens of its config.json."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from axformer_onnx.data import Encoder, read_json
from axformer_onnx.errors import AxformerError
from axformer_passes.probe import Recipe, TokenSequence

TEXT = "A reader wrote this text to see what the model says of it, and then read it once more."
_SPECIAL = tuple(f"{name}_token_id" for name in ("bos", "cls", "decoder_start", "eos", "mask", "pad", "sep", "unk"))
_WORDS, _FIRST_WORD, _FIRST_WORD_OF_ALL = 8, 2, 5


def recipe_in(folder: Path) -> Recipe:
    """What the inputs of the model in `folder` are made of; nothing where the folder does not say, or cannot be read.

    Tokens beyond the vocabulary of config.json are those of another model: they are left out.
    """
    try:
        config = read_json(folder / "config.json")
    except AxformerError:
        config = {}
    ids = _of_tokenizer(folder) or _of_config(config)
    size = vocabulary_of(config)
    if ids is None or (size is not None and ids.largest >= size):
        return Recipe()
    start = _token(config, "decoder_start_token_id")
    return Recipe(ids, TokenSequence(ids.first if start is None else (start,), ids.words))


def spoken(recipe: Recipe, vocabulary: int) -> TokenSequence:
    """Rows as `recipe` has them with words from all of the vocabulary, as far as they are no tokens at the ends of a row."""
    known = recipe.ids or TokenSequence()
    first = min(_FIRST_WORD_OF_ALL, vocabulary - 1)
    words = [i for i in range(first, vocabulary) if i not in {*known.first, *known.last}]
    return TokenSequence(known.first, words or known.words, known.last)


def vocabulary_of(config: Mapping[str, Any]) -> int | None:
    """Number of tokens that a config.json states."""
    size = config.get("vocab_size")
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 1 else None


def _of_tokenizer(folder: Path) -> TokenSequence | None:
    """Special tokens at both ends of an encoded text, and its words."""
    try:
        found = (folder / "tokenizer.json").stat()
    except OSError:
        return None  # what must be converted first takes seconds
    return _encoded(folder, found.st_mtime_ns, found.st_size)


@functools.lru_cache(maxsize=8)
def _encoded(folder: Path, *_state: int) -> TokenSequence | None:
    """A folder is asked several times in a run, and a large tokenizer takes seconds to read; `_state` tells another file."""
    try:
        tokenizer = Encoder.from_folder(folder).tokenizer
    except AxformerError:
        return None
    encoding = tokenizer.encode(TEXT)
    ids, special = list(encoding.ids), [bool(flag) for flag in encoding.special_tokens_mask]
    if all(special):
        return None
    start, end = special.index(False), len(ids) - special[::-1].index(False)
    words = list(dict.fromkeys(i for i, flag in zip(ids[start:end], special[start:end], strict=True) if not flag))
    if len(words) < _WORDS:  # not the tokenizer's language: most of the text is unknown to it
        known = {i for i, flag in zip(ids, special, strict=True) if flag} | {*words}
        words += [i for i in range(_FIRST_WORD_OF_ALL, tokenizer.get_vocab_size()) if i not in known][: 4 * _WORDS]
    return TokenSequence(tuple(ids[:start]), tuple(words), tuple(ids[end:]))


def _of_config(config: Mapping[str, Any]) -> TokenSequence | None:
    """A row that ends with the end-of-sequence token, where there is one."""
    end, start = _token(config, "eos_token_id"), _token(config, "bos_token_id")
    if end is None:
        return None
    special = {_token(config, name) for name in _SPECIAL}
    size = vocabulary_of(config) or _FIRST_WORD + _WORDS + len(_SPECIAL)
    words = [i for i in range(_FIRST_WORD, min(size, _FIRST_WORD + _WORDS + len(_SPECIAL))) if i not in special]
    return TokenSequence(() if start is None else (start,), tuple(words[:_WORDS]), (end,)) if words else None


def _token(config: Mapping[str, Any], name: str) -> int | None:
    """A token id; the first where there are several."""
    found = config.get(name)
    found = found[0] if isinstance(found, list) and found else found
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None


__all__ = ["recipe_in", "spoken", "vocabulary_of"]
