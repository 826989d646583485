"""Decoders of the zoo, used as classifiers: causal, pre-norm; GPT-2, and the family of Llama with grouped queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from zoo_families import LABELS, POSITIONS, VOCAB, BatchedPositions, Family, Sizes, Wrapper, layered, text_feeds

KEY_VALUE_HEADS = 2
_COMMON = {"num_labels": LABELS, "pad_token_id": 0, "vocab_size": VOCAB, "use_cache": False}


class ReadyMask(Wrapper):
    """Hands the decoder the mask [B, 1, S, S] that it would make itself, by vmap, which torch.jit.trace cannot follow."""

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        place = torch.arange(input_ids.shape[1])
        seen = (place[None, :] <= place[:, None]) & attention_mask[:, None, None, :].bool()
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        return self.inner(input_ids=input_ids, attention_mask=mask)


class ReadyMasks(Wrapper):
    """The same where layers differ in how far back they look: a mask for each kind of layer."""

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        place = torch.arange(input_ids.shape[1])
        back = place[:, None] - place[None, :]
        masks = {}
        for kind, near in (
            ("full_attention", back >= 0),
            ("sliding_attention", (back >= 0) & (back < self.config.sliding_window)),
        ):
            seen = near & attention_mask[:, None, None, :].bool()
            masks[kind] = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        return self.inner(input_ids=input_ids, attention_mask=masks)


def _gpt2(sizes: Sizes) -> Any:
    return t.GPT2Config(
        **_COMMON, n_embd=sizes.width, n_layer=sizes.layers, n_head=sizes.heads, n_inner=sizes.neurons,
        n_positions=POSITIONS, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip


def _sizes(config: Any, **more: Any) -> Callable[[Sizes], Any]:
    return lambda sizes: config(
        **_COMMON, hidden_size=sizes.width, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        num_key_value_heads=KEY_VALUE_HEADS, head_dim=sizes.head_size, intermediate_size=sizes.neurons,
        max_position_embeddings=POSITIONS, bos_token_id=1, eos_token_id=1, **more,
    )  # fmt: skip


_SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_TWO = {"layers": 2}
_MASKED = {"torchscript": ReadyMask}
_GROUPED = {**_MASKED, "dynamo-23": BatchedPositions}
_GROUPED_SLIDING = {**_GROUPED, "torchscript": ReadyMasks}
_GPT2_RECORDS = layered("transformer.h", "attn", "attn.c_proj", "mlp.c_proj")
_GROUPED_RECORDS = layered(
    "model.layers", "self_attn", "self_attn.o_proj", "mlp.down_proj", lambda sizes: sizes.heads // KEY_VALUE_HEADS
)

DECODERS = (
    Family("gpt2", t.GPT2ForSequenceClassification, _gpt2, _GPT2_RECORDS, text_feeds(), put_into=_MASKED),
    Family(
        "gpt2-tokens", t.GPT2ForTokenClassification, _gpt2, _GPT2_RECORDS, text_feeds(), put_into=_MASKED,
        task="token-classification",
    ),
    Family(
        "llama", t.LlamaForSequenceClassification, _sizes(t.LlamaConfig), _GROUPED_RECORDS, text_feeds(),
        put_into=_GROUPED,
    ),
    Family(
        "qwen2", t.Qwen2ForSequenceClassification, _sizes(t.Qwen2Config), _GROUPED_RECORDS, text_feeds(),
        put_into=_GROUPED,
    ),
    Family(
        "qwen3", t.Qwen3ForSequenceClassification, _sizes(t.Qwen3Config), _GROUPED_RECORDS, text_feeds(),
        put_into=_GROUPED,
    ),
    Family(  # norms behind the blocks, too; sdpa does not cap scores, so nobody does
        "gemma2", t.Gemma2ForSequenceClassification, _sizes(t.Gemma2Config, query_pre_attn_scalar=16, attn_logit_softcapping=None),
        _GROUPED_RECORDS, text_feeds(), put_into=_GROUPED,
    ),
    Family(  # as Gemma 2, with norms in the query and key heads
        "gemma3", t.Gemma3TextForSequenceClassification, _sizes(t.Gemma3TextConfig, query_pre_attn_scalar=16, **_SLIDING),
        _GROUPED_RECORDS, text_feeds(), put_into=_GROUPED_SLIDING, sizes=_TWO,
        refuses={"optimum": "optimum has no task text-classification for Gemma 3"},
    ),
    Family(  # no norm before the blocks, one behind each; rotary embeddings in the layers that look back a few tokens alone
        "exaone4", t.Exaone4ForSequenceClassification, _sizes(t.Exaone4Config, **_SLIDING), _GROUPED_RECORDS, text_feeds(),
        put_into=_GROUPED_SLIDING, sizes=_TWO, refuses={"optimum": "optimum has no configuration for Exaone 4"},
    ),
    Family(  # a norm behind each block, and one across all queries and all keys: heads go all at once
        "olmo2", t.Olmo2ForCausalLM, _sizes(t.Olmo2Config),
        layered("model.layers", "self_attn", "self_attn.o_proj", "mlp.down_proj", lambda sizes: sizes.heads),
        text_feeds(), put_into=_GROUPED, sizes=_TWO,
        refuses={"optimum": "optimum knows OLMo 2 as a language model alone, with positions as an input"},
    ),
)  # fmt: skip
