"""sentence-transformers folders: what modules.json chains together, as one torch model with pooling and normalisation inside.

Transformer -> Pooling (one mode of `tasks.embedding.POOLING`) -> Normalize, where it is there
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from axformer_onnx.errors import ModelError, UsageError
from axformer_onnx.tasks import Positions, pooling_of

MODULES = "modules.json"
OUTPUT = "sentence_embedding"
FILES = (MODULES, "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json")
"""What travels with the graph, beside the tokenizer: the first three for sentence-transformers, the limit of tokens for us."""
_KNOWN = ("Transformer", "Pooling", "Normalize")


@dataclasses.dataclass(frozen=True)
class Sentence:
    """What makes an embedding of token vectors."""

    positions: Positions
    normalised: bool

    @property
    def words(self) -> str:
        """For example "mean, normalised"."""
        return f"{self.positions}{', normalised' if self.normalised else ''}"


def is_sentence_folder(folder: Path | None) -> bool:
    """Is it a folder of sentence-transformers?"""
    return folder is not None and (folder / MODULES).is_file()


def sentence_of(folder: Path) -> Sentence:
    """What modules.json and 1_Pooling/config.json say.

    Raises: ModelError for files that are not JSON, UsageError for modules and poolings that are not known.
    """
    path = folder / MODULES
    try:
        kinds = [str(module["type"]).rpartition(".")[2] for module in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"{path}: not a list of modules with types: {type(error).__name__}") from None
    if kinds[:2] != ["Transformer", "Pooling"] or any(kind not in _KNOWN for kind in kinds) or len(kinds) > 3:
        raise UsageError(
            f"{path}: the modules are {', '.join(kinds)}, expected Transformer, Pooling and perhaps Normalize"
        )
    positions, _ = pooling_of(folder)
    return Sentence(positions, "Normalize" in kinds)


def sentence_module(module: Any, sentence: Sentence) -> Any:
    """A torch module that answers {sentence_embedding: float32[B, D]} where `module` answers last_hidden_state [B, S, D].

    It takes what `module` takes: input_ids, attention_mask and perhaps token_type_ids, int64[B, S].
    """
    import torch

    def pooled(tokens: Any, mask: Any) -> Any:
        if sentence.positions == "first":
            return tokens[:, 0]
        if sentence.positions == "last":
            end = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
            return tokens[torch.arange(tokens.shape[0], device=tokens.device), end]
        here = mask.unsqueeze(-1).to(tokens.dtype)
        if sentence.positions == "max":
            return (tokens + (here - 1) * 1e9).max(dim=1).values
        return (tokens * here).sum(dim=1) / here.sum(dim=1).clamp(min=1e-9)

    class SentenceEmbedding(torch.nn.Module):  # type: ignore[misc]
        main_input_name = "input_ids"

        def __init__(self) -> None:
            super().__init__()
            self.transformer = module
            self.config = module.config

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            tokens = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **types)[0]
            vector = pooled(tokens, attention_mask)
            if sentence.normalised:
                vector = torch.nn.functional.normalize(vector, p=2, dim=1)
            return {OUTPUT: vector}

    return SentenceEmbedding().eval()
