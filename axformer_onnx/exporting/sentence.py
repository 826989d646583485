"""sentence-transformers folders: what modules.json chains together, as one torch model with pooling and normalisation inside.

Transformer -> Pooling (one mode of `tasks.embedding.POOLING`) -> Dense and Normalize, as often as they are there
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from axformer_onnx.data import read_json
from axformer_onnx.errors import ModelError, UsageError
from axformer_onnx.tasks import Positions, pooling_of
from axformer_passes.io import first_line

MODULES = "modules.json"
OUTPUT = "sentence_embedding"
FILES = (MODULES, "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json")
"""What travels with the graph, beside the tokenizer: the first three for sentence-transformers, the limit of tokens for us."""
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")


@dataclasses.dataclass(frozen=True)
class Dense:
    """A linear layer behind the pooling: its folder, and the name of its activation in torch.nn."""

    folder: Path
    inputs: int
    outputs: int
    activation: str
    bias: bool

    @property
    def words(self) -> str:
        """For example "dense 384 to 128 (Tanh)"."""
        return f"dense {self.inputs} to {self.outputs} ({self.activation})"

    def module(self) -> Any:
        """In torch, with its weights. Raises: ModelError where they are not there or do not fit."""
        import torch

        layer = torch.nn.Linear(self.inputs, self.outputs, bias=self.bias)
        try:
            if (self.folder / "model.safetensors").is_file():
                from safetensors.torch import load_file

                state = load_file(self.folder / "model.safetensors")
            else:
                state = torch.load(self.folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
            layer.load_state_dict({key.removeprefix("linear."): value.float() for key, value in state.items()})
        except Exception as error:  # OSError, safetensors' and torch's own
            raise ModelError(f"{self.folder}: its weights cannot be read: {first_line(error)}") from None
        return torch.nn.Sequential(layer, getattr(torch.nn, self.activation)())


@dataclasses.dataclass(frozen=True)
class Sentence:
    """What makes an embedding of token vectors: how they are pooled, and the steps behind; None is the normalisation."""

    positions: Positions
    steps: tuple[Dense | None, ...] = ()

    @property
    def words(self) -> str:
        """For example "mean, normalised"."""
        return ", ".join([self.positions, *("normalised" if step is None else step.words for step in self.steps)])


def is_sentence_folder(folder: Path | None) -> bool:
    """Is it a folder of sentence-transformers?"""
    return folder is not None and (folder / MODULES).is_file()


def sentence_of(folder: Path) -> Sentence:
    """What modules.json and 1_Pooling/config.json say.

    Raises: ModelError for files that are not JSON, UsageError for modules and poolings that are not known.
    """
    path = folder / MODULES
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        folders = [folder / str(module["path"]) for module in modules]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ModelError(f"{path}: not a list of modules with types: {type(error).__name__}") from None
    if kinds[:2] != ["Transformer", "Pooling"] or any(kind not in ("Dense", "Normalize") for kind in kinds[2:]):
        raise UsageError(
            f"{path}: the modules are {', '.join(kinds)}, expected Transformer, Pooling and perhaps Dense and Normalize"
        )
    positions, _ = pooling_of(folder)
    behind = zip(kinds[2:], folders[2:], strict=True)
    return Sentence(positions, tuple(_dense(of) if kind == "Dense" else None for kind, of in behind))


def _dense(folder: Path) -> Dense:
    path = folder / "config.json"
    config = read_json(path)
    sizes = [config.get(name) for name in ("in_features", "out_features")]
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ModelError(f"{path}: in_features and out_features are {sizes[0]} and {sizes[1]}, expected two numbers")
    if activation not in _ACTIVATIONS:
        raise UsageError(f"{path}: the activation is {activation}, expected one of {', '.join(_ACTIVATIONS)}")
    return Dense(folder, int(sizes[0]), int(sizes[1]), activation, bool(config.get("bias", True)))  # type: ignore[arg-type]


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
            self.steps = torch.nn.ModuleList(step.module() for step in sentence.steps if step is not None)
            self.config = module.config

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
            types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            tokens = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **types)[0]
            vector = pooled(tokens, attention_mask)
            dense = iter(self.steps)
            for step in sentence.steps:
                vector = torch.nn.functional.normalize(vector, p=2, dim=1) if step is None else next(dense)(vector)
            return {OUTPUT: vector}

    return SentenceEmbedding().eval()
