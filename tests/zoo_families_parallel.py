"""Decoders of the zoo whose attention and feed-forward block stand side by side: both read one state of the stream."""

from __future__ import annotations

from collections.abc import Callable

import transformers as t
from zoo_families import LABELS, POSITIONS, VOCAB, BatchedPositions, Family, Record, Sizes, layered, text_feeds
from zoo_families_decoders import KEY_VALUE_HEADS, ReadyMask

ONE_ROW = "the operator RotaryEmbedding is given positions of one row, so a batch of two does not run"

_COMMON = {
    "num_labels": LABELS, "pad_token_id": 0, "vocab_size": VOCAB, "use_cache": False, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip


def _gptj(sizes: Sizes) -> t.GPTJConfig:
    return t.GPTJConfig(
        **_COMMON, n_embd=sizes.width, n_layer=sizes.layers, n_head=sizes.heads, n_inner=sizes.neurons,
        n_positions=POSITIONS, rotary_dim=4,
    )  # fmt: skip


def _phi(sizes: Sizes) -> t.PhiConfig:
    return t.PhiConfig(
        **_COMMON, hidden_size=sizes.width, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        intermediate_size=sizes.neurons, max_position_embeddings=POSITIONS, partial_rotary_factor=0.5,
    )  # fmt: skip


def _falcon(sizes: Sizes, **more: object) -> t.FalconConfig:
    return t.FalconConfig(
        **_COMMON, hidden_size=sizes.width, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        ffn_hidden_size=sizes.neurons, max_position_embeddings=POSITIONS, **more,
    )  # fmt: skip


def _falcon_records(groups: int) -> Callable[[Sizes], tuple[Record, ...]]:
    attention, down = "self_attention", "mlp.dense_4h_to_h"
    return layered("transformer.h", attention, f"{attention}.dense", down, lambda sizes: sizes.heads // groups)


_TWO = {"layers": 2}
_MASKED = {"torchscript": ReadyMask}
_ONE_KEY = "torch writes no Attention of operator set 23 with one key head for all queries"
_NO_TASK = "optimum has no task text-classification for Falcon"

PARALLEL = (
    Family(
        "gptj", t.GPTJForSequenceClassification, _gptj, layered("transformer.h", "attn", "attn.out_proj", "mlp.fc_out"),
        text_feeds(), put_into=_MASKED, sizes=_TWO,
    ),
    Family(
        "phi", t.PhiForSequenceClassification, _phi, layered("model.layers", "self_attn", "self_attn.dense", "mlp.fc2"),
        text_feeds(), put_into={**_MASKED, "dynamo-23": BatchedPositions}, sizes=_TWO,
    ),
    Family(  # of 7 billion parameters: one key head for all queries
        "falcon", t.FalconForSequenceClassification, _falcon, _falcon_records(1), text_feeds(), put_into=_MASKED, sizes=_TWO,
        refuses={"optimum": _NO_TASK, "dynamo-23": _ONE_KEY},
    ),
    Family(  # of 40 and 180 billion: key heads for groups of queries, a norm for each of the two blocks
        "falcon-new", t.FalconForSequenceClassification,
        lambda sizes: _falcon(sizes, new_decoder_architecture=True, num_kv_heads=KEY_VALUE_HEADS), _falcon_records(KEY_VALUE_HEADS),
        text_feeds(), put_into=_MASKED, sizes=_TWO,
        refuses={"optimum": _NO_TASK, "dynamo-23": ONE_ROW},
    ),
)  # fmt: skip
