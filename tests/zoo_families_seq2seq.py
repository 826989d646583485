"""Families of the zoo with T5's relative positions or with cross-attention. T5 and BART: encoder and decoder in one graph.

Their classifiers feed the text to the decoder, too, and read the answer at its last end-of-sequence token: all rows of a batch must
have as many of these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers as t
from transformers.modeling_outputs import SequenceClassifierOutput
from zoo_families import (
    LABELS,
    POSITIONS,
    TEXT_AXES,
    VOCAB,
    Family,
    Feeds,
    Record,
    Sizes,
    TextAnswer,
    Wrapper,
    text_feeds,
)

from axformer_passes.probe import Recipe, TokenSequence

_DECODER_AXES = {0: "batch_size", 1: "decoder_sequence_length"}
_AXES = {
    "input_ids": TEXT_AXES, "attention_mask": TEXT_AXES, "decoder_input_ids": _DECODER_AXES, "logits": _DECODER_AXES,
}  # fmt: skip


# transformers 5 has SDPA attention for T5.
_STRIDES: dict[str, str] = {}
if not t.__version__.startswith("4."):
    _STRIDES = {
        f"dynamo-{opset}": "torch.onnx decomposes T5's SDPA into a tensor that the view after it cannot flatten"
        for opset in (18, 20, 23)
    }


class Seq2SeqAnswer(Wrapper):
    """(input_ids, attention_mask, decoder_input_ids) -> logits[B, decoder tokens, vocabulary], without a cache."""

    def forward(self, input_ids: Any, attention_mask: Any, decoder_input_ids: Any) -> SequenceClassifierOutput:
        return self.only(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids, use_cache=False
        )


class DecoderMask(Wrapper):
    """The same with a mask of ones for the decoder: BART's own is one entry too wide under torch.export."""

    def forward(self, input_ids: Any, attention_mask: Any, decoder_input_ids: Any) -> SequenceClassifierOutput:
        return self.inner.only(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=decoder_input_ids, use_cache=False,
            decoder_attention_mask=torch.ones_like(decoder_input_ids),
        )  # fmt: skip


def seq2seq_feeds(pad: int) -> Any:
    """`text_feeds`, and a decoder's input of half the length and one."""

    def feeds(rng: np.random.Generator, batch: int, length: int, padded: bool) -> Feeds:
        found = text_feeds(pad)(rng, batch, length, padded)
        return {**found, "decoder_input_ids": rng.integers(5, VOCAB, size=(batch, length // 2 + 1))}

    return feeds


def _t5(activation: str, config: Any = t.T5Config) -> Any:
    return lambda sizes: config(
        num_labels=LABELS, pad_token_id=0, vocab_size=VOCAB, d_model=sizes.width, d_kv=sizes.head_size,
        num_layers=sizes.layers, num_decoder_layers=sizes.layers, num_heads=sizes.heads, d_ff=sizes.neurons,
        relative_attention_num_buckets=8, relative_attention_max_distance=16, feed_forward_proj=activation,
        decoder_start_token_id=0, use_cache=False,
    )  # fmt: skip


def _bart(sizes: Sizes, config: Any = t.BartConfig) -> Any:
    return config(
        num_labels=LABELS, pad_token_id=1, vocab_size=VOCAB, d_model=sizes.width, encoder_layers=sizes.layers,
        decoder_layers=sizes.layers, encoder_attention_heads=sizes.heads, decoder_attention_heads=sizes.heads,
        encoder_ffn_dim=sizes.neurons, decoder_ffn_dim=sizes.neurons, max_position_embeddings=POSITIONS,
        use_cache=False,
    )  # fmt: skip


def _t5_records(sizes: Sizes, stack: str = "encoder") -> tuple[Record, ...]:
    records, heads = [], (sizes.heads, sizes.head_size)
    for i in range(sizes.layers):
        block = f"{stack}.block.{i}.layer"
        whole, cross = f"{block}.0.SelfAttention", f"{block}.1.EncDecAttention"
        if stack == "decoder":
            records.append(Record(*heads, None, whole, f"{whole}.o"))
            whole = cross
        down = f"{block}.{2 if stack == 'decoder' else 1}.DenseReluDense.wo"
        records.append(Record(*heads, sizes.neurons, whole, f"{whole}.o", down))
    return tuple(records)


def _bart_records(sizes: Sizes) -> tuple[Record, ...]:
    heads = sizes.heads, sizes.head_size
    records = []
    for i in range(sizes.layers):
        layer = f"model.encoder.layers.{i}"
        records.append(
            Record(*heads, sizes.neurons, f"{layer}.self_attn", f"{layer}.self_attn.out_proj", f"{layer}.fc2")
        )
    for i in range(sizes.layers):
        layer = f"model.decoder.layers.{i}"
        own, cross = f"{layer}.self_attn", f"{layer}.encoder_attn"
        records.append(Record(*heads, None, own, f"{own}.out_proj"))
        records.append(Record(*heads, sizes.neurons, cross, f"{cross}.out_proj", f"{layer}.fc2"))
    return tuple(records)


_COUNTED: dict[str, str] = {}
_SQUEEZED: dict[str, str] = {}
if t.__version__.startswith("4."):
    _COUNTED = {"dynamo": "torch.export cannot follow the test that all rows have as many end-of-sequence tokens"}
else:
    _SQUEEZED = dict.fromkeys(
        ("dynamo", "transformers"),
        "torch.onnx writes mBART's squeeze of [batch, 1] so that a batch of one does not run",
    )


def _classifier(
    name: str,
    head: Any,
    config: Any,
    records: Any,
    *,
    pad: int,
    end: int,
    under: str = "",
    refuses: Mapping[str, str],
) -> Family:
    """A text classifier of encoder and decoder; `under`: where the module keeps the two."""

    def placed(sizes: Sizes) -> tuple[Record, ...]:
        found = records(sizes)
        return tuple(
            dataclasses.replace(
                r, attention=under + r.attention, output=under + r.output, down=under + r.down if r.down else ""
            )
            for r in found
        )

    return Family(
        name, head, config, placed, text_feeds(pad, end=end), wrap=TextAnswer, sizes={"layers": 2},
        refuses={**_COUNTED, **refuses},
        recipe=Recipe(TokenSequence(words=range(5, VOCAB), last=(end,))),
    )  # fmt: skip


SEQ2SEQ = (
    Family(
        "t5-encoder", t.T5EncoderModel, _t5("gated-gelu"), _t5_records, text_feeds(),
        wrap=lambda module: TextAnswer(module, "last_hidden_state"), output="last_hidden_state",
        refuses={"optimum": "optimum's configuration for T5 wants a decoder", **_STRIDES},
    ),
    Family(
        "t5", t.T5ForConditionalGeneration, _t5("relu"), lambda s: _t5_records(s) + _t5_records(s, "decoder"),
        seq2seq_feeds(pad=0), wrap=Seq2SeqAnswer, axes=_AXES, task="text2text-generation", sizes={"layers": 2},
        refuses=_STRIDES,
    ),
    Family(
        "bart", t.BartForConditionalGeneration, _bart, _bart_records, seq2seq_feeds(pad=1), wrap=Seq2SeqAnswer,
        put_into={"dynamo-eager-20": DecoderMask}, axes=_AXES, task="text2text-generation", sizes={"layers": 2},
    ),
    _classifier("bart-classifier", t.BartForSequenceClassification, _bart, _bart_records, pad=1, end=2, refuses={}),
    _classifier(
        "mbart-classifier", t.MBartForSequenceClassification, lambda sizes: _bart(sizes, t.MBartConfig), _bart_records,
        pad=1, end=2, refuses=_SQUEEZED,
    ),
    _classifier(
        "t5-classifier", t.T5ForSequenceClassification, _t5("relu"), lambda s: _t5_records(s) + _t5_records(s, "decoder"),
        pad=0, end=1, under="transformer.",
        refuses={"optimum": "optimum exports T5 for feature extraction and generation alone", **_STRIDES},
    ),
    _classifier(
        "umt5-classifier", t.UMT5ForSequenceClassification, _t5("gated-gelu", t.UMT5Config),
        lambda s: _t5_records(s) + _t5_records(s, "decoder"), pad=0, end=1, under="transformer.",
        refuses={"optimum": "optimum has no configuration for UMT5", **_STRIDES},
    ),
)  # fmt: skip
