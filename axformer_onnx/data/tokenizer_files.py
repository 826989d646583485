"""A model folder's tokenizer files: the tokenizer itself, how many tokens fit, what fills the rest."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

from axformer_onnx.errors import DataError, RuntimeFailure

UNBOUNDED_LIMIT = 512  # tokens, where neither the tokenizer nor the model states a limit
_ABSURD = 1_000_000  # transformers writes model_max_length 1e30 for "no limit"

# Models whose first position is pad_token_id + 1, so that fewer tokens fit than the table has rows
# (transformers: create_position_ids_from_input_ids; RoBERTa's 514 rows hold 512 tokens).
_OFFSET_POSITIONS = {
    "camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt", "longformer", "luke", "markuplm",
    "mluke", "mpnet", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
_SLOW = ("vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "spm.model")


@dataclasses.dataclass(frozen=True)
class Padding:
    """What fills up a batch.

    id       token id in `input_ids`; None: the model has no padding, so a batch holds rows of one length
    type_id  value in `token_type_ids`
    """

    id: int | None = 0
    type_id: int = 0
    side: Literal["left", "right"] = "right"


def length_limit(settings: dict[str, Any], config: dict[str, Any]) -> int:
    """Tokens that fit: the smaller of the tokenizer's model_max_length and the model's positions, or 512.

    A table whose positions start behind the padding id holds pad_token_id + 1 fewer: for model types known to
    do so, and (a heuristic) where its rows are a multiple of 64 only without them, as 514 and 1026 are.
    """
    limits = []
    tokens = settings.get("model_max_length")
    if isinstance(tokens, (int, float)) and 0 < tokens < _ABSURD:
        limits.append(int(tokens))
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(positions, int) and positions > 0:
        offset = (config.get("pad_token_id") or 0) + 1
        shifted = positions > 64 and positions % 64 != 0 and (positions - offset) % 64 == 0
        if config.get("model_type") in _OFFSET_POSITIONS or shifted:
            positions -= offset
        limits.append(positions)
    return min(limits, default=UNBOUNDED_LIMIT)


def load_tokenizer(folder: Path, settings: dict[str, Any]) -> Any:
    """The folder's tokenizer.json, or its slow tokenizer converted. Raises: DataError, RuntimeFailure."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{path}: not a tokenizer that can be read: {reason}") from None
        _apply_case(tokenizer, settings)
        return tokenizer
    slow = [name for name in _SLOW if (folder / name).is_file()]
    if not slow and not settings:
        raise DataError(f"{folder}: no tokenizer.json; copy the tokenizer's files beside the model")
    return _converted(folder, slow[0] if slow else "tokenizer_config.json")


def _converted(folder: Path, found: str) -> Any:
    """A slow tokenizer as a fast one, through transformers."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise RuntimeFailure(
            f"{folder}: there is {found} but no tokenizer.json; converting it needs pip install 'axformer-onnx[export]'"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), use_fast=True, local_files_only=True)
    except Exception as error:  # many kinds, from many packages
        reason = " ".join(str(error).split())[:200]
        raise RuntimeFailure(f"{folder}: {found} could not be converted to a fast tokenizer: {reason}") from None
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        raise RuntimeFailure(f"{folder}: {type(tokenizer).__name__} has no fast form; a tokenizer.json is needed")
    return fast


def _apply_case(tokenizer: Any, settings: dict[str, Any]) -> None:
    """tokenizer_config.json's do_lower_case wins over tokenizer.json, as in transformers' BERT tokenizer."""
    normalizer, lower = tokenizer.normalizer, settings.get("do_lower_case")
    if type(normalizer).__name__ == "BertNormalizer" and isinstance(lower, bool):
        normalizer.lowercase = lower  # writes through to the tokenizer


def padding_of(tokenizer: Any, settings: dict[str, Any], config: dict[str, Any]) -> Padding:
    """What pads this model: its own pad_token_id, which the graphs of decoders look for to find the last token.

    Without one, the tokenizer's pad_token serves encoders (they have a cls_token and read the mask); a decoder that
    knows no padding would read a padded position, so it gets none.
    """
    token = settings.get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    identifier = config.get("pad_token_id")
    if not isinstance(identifier, int) and isinstance(token, str) and settings.get("cls_token"):
        identifier = tokenizer.token_to_id(token)
    side = settings.get("padding_side", "right")
    type_id = settings.get("pad_token_type_id")
    return Padding(
        identifier if isinstance(identifier, int) and identifier >= 0 else None,
        type_id if isinstance(type_id, int) else 0,
        "left" if side == "left" else "right",
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file. Raises: DataError for what is not JSON."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    return content if isinstance(content, dict) else {}
