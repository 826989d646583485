"""An encoder in the style of NomicBERT, which transformers does not have.

BERT's post-norm layers with: no biases in the projections, one fused QKV, rotary positions, SwiGLU feed-forwards.
Shapes: B batch, S tokens, D model width, H heads, E head size, F neurons.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch.nn import functional
from transformers.modeling_outputs import SequenceClassifierOutput
from zoo_families import LABELS, POSITIONS, VOCAB, Sizes


def nomic_config(sizes: Sizes) -> Any:
    """The sizes as a transformers configuration, so that they have a JSON text."""
    return transformers.PretrainedConfig(
        hidden_size=sizes.width, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        intermediate_size=sizes.neurons, vocab_size=VOCAB, num_labels=LABELS, pad_token_id=0,
    )  # fmt: skip


class Nomic(torch.nn.Module):  # type: ignore[misc]
    """input_ids, attention_mask, token_type_ids int64[B, S] -> logits float32[B, labels], from the first token."""

    _supports_sdpa = True

    def __init__(self, config: Any, attention: str) -> None:
        super().__init__()
        self.config = config
        self.words = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.types = torch.nn.Embedding(2, config.hidden_size)
        self.norm = torch.nn.LayerNorm(config.hidden_size)
        self.layers = torch.nn.ModuleList(_Layer(config, attention) for _ in range(config.num_hidden_layers))
        self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels)

    @classmethod
    def _from_config(cls, config: Any, attn_implementation: str) -> Nomic:
        return cls(config, attn_implementation)

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> SequenceClassifierOutput:
        x = self.norm(self.words(input_ids) + self.types(token_type_ids))
        least = torch.finfo(x.dtype).min
        mask = (1 - attention_mask[:, None, None, :].to(x.dtype)) * least
        for layer in self.layers:
            x = layer(x, mask)
        return SequenceClassifierOutput(logits=self.classifier(x[:, 0]))


class _Layer(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, config: Any, attention: str) -> None:
        super().__init__()
        self.attention = _Attention(config, attention)
        self.norm_1 = torch.nn.LayerNorm(config.hidden_size)
        self.feed_forward = _FeedForward(config)
        self.norm_2 = torch.nn.LayerNorm(config.hidden_size)

    def forward(self, x: Any, mask: Any) -> Any:
        x = self.norm_1(x + self.attention(x, mask))
        return self.norm_2(x + self.feed_forward(x))


class _Attention(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, config: Any, attention: str) -> None:
        super().__init__()
        width, self.heads, self.kind = config.hidden_size, config.num_attention_heads, attention
        self.qkv = torch.nn.Linear(width, 3 * width, bias=False)
        self.output = torch.nn.Linear(width, width, bias=False)
        size = width // self.heads
        angles = torch.outer(torch.arange(POSITIONS), 1000.0 ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: Any, mask: Any) -> Any:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, H, S, E]
        q, k = (self._rotated(part, length) for part in (q, k))
        if self.kind == "sdpa":
            every = mask.expand(batch, 1, length, length)  # the operator Attention does not stretch the queries' axis
            context = functional.scaled_dot_product_attention(q, k, v, attn_mask=every)
        else:
            scores = q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5 + mask
            context = scores.softmax(dim=-1) @ v
        return self.output(context.transpose(1, 2).reshape(batch, length, width))

    def _rotated(self, x: Any, length: int) -> Any:
        left, right = x.chunk(2, dim=-1)
        return x * self.cos[:length] + torch.cat((-right, left), dim=-1) * self.sin[:length]


class _FeedForward(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.up = torch.nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.gate = torch.nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = torch.nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Any) -> Any:
        return self.down(self.up(x) * functional.silu(self.gate(x)))
