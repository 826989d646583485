"""torch.nn.TransformerEncoder as a classifier, exported by torchscript: it takes as many tokens as its example had."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from zoo import LABELS, VOCAB, Sizes

SIZES = Sizes(layers=2, heads=4, head_size=8, neurons=40)
TOKENS = 7


class Traced(nn.Module):  # type: ignore[misc]
    """input_ids, attention_mask [B, S] -> logits[B, labels], read at the first token."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            SIZES.width, SIZES.heads, SIZES.neurons, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        self.embeddings = nn.Embedding(VOCAB, SIZES.width)
        self.encoder = nn.TransformerEncoder(layer, SIZES.layers, enable_nested_tensor=False)
        self.classifier = nn.Linear(SIZES.width, LABELS)
        self.eval()

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        hidden = self.encoder(self.embeddings(input_ids), src_key_padding_mask=attention_mask == 0)
        return self.classifier(hidden[:, 0])

    def masked(self, feeds: dict[str, Any], heads: dict[int, list[int]], neurons: dict[int, list[int]]) -> Any:
        """The answer with heads and neurons zeroed. With gradients on: torch's fast path sees no hooks."""
        columns = {i: [8 * h + e for h in of for e in range(8)] for i, of in heads.items()}
        places = [(self.encoder.layers[i].linear2, of) for i, of in neurons.items()]
        with contextlib.ExitStack() as stack:
            for linear, gone in places:
                stack.callback(linear.register_forward_pre_hook(_zeroed(gone)).remove)
            for i, gone in columns.items():
                weight = self.encoder.layers[i].self_attn.out_proj.weight
                kept = weight.detach().clone()
                stack.callback(weight.data.copy_, kept)
                weight.data[:, gone] = 0  # torch's attention calls no module for its output: a column is its head's
            return self(**{name: torch.from_numpy(array) for name, array in feeds.items()}).detach().numpy()


def _zeroed(columns: list[int]) -> Any:
    def hook(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0].clone()
        x[..., columns] = 0
        return (x,)

    return hook


def module(norm_first: bool = False) -> Traced:
    """With weights drawn so that every part matters."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        found = Traced(norm_first)
        for value in found.parameters():
            value.data = (1.5 / value.shape[-1] ** 0.5 if value.ndim > 1 else 0.3) * torch.randn(value.shape) + (
                value.ndim == 1 and 0.5
            )
    return found


def feeds_of(batch: int, tokens: int = TOKENS, seed: int = 0) -> dict[str, Any]:
    """Random ids; the last rows are padded."""
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, tokens), np.int64)
    mask[-1, tokens // 2 + 1 :] = 0
    return {"input_ids": rng.integers(5, VOCAB, (batch, tokens)), "attention_mask": mask}


def export(made: Traced, path: Path, tokens: int = TOKENS) -> Path:
    """By torchscript, all axes declared dynamic."""
    example = {name: torch.from_numpy(array) for name, array in feeds_of(2, tokens).items()}
    axes = {name: {0: "batch", 1: "sequence"} for name in example} | {"logits": {0: "batch"}}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            made, (example,), str(path), dynamo=False, opset_version=17, dynamic_axes=axes,
            input_names=list(example), output_names=["logits"],
        )  # fmt: skip
    return path
