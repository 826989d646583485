"""Text encoders of the zoo: post-norm and pre-norm, absolute, relative, disentangled and rotary positions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import transformers as t
from zoo_families import (
    LABELS,
    POSITIONS,
    VOCAB,
    BatchedPositions,
    Family,
    FloatMask,
    Record,
    Sizes,
    TextAnswer,
    layered,
    text_feeds,
)
from zoo_families_nomic import Nomic, nomic_config

COMMON = {"num_labels": LABELS, "pad_token_id": 0, "vocab_size": VOCAB}


def encoder(sizes: Sizes) -> dict[str, int]:
    """The sizes under the names that most configurations share."""
    return {
        "hidden_size": sizes.width, "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.neurons, "max_position_embeddings": POSITIONS,
    }  # fmt: skip


def _plain(config: Any, **more: Any) -> Callable[[Sizes], Any]:
    return lambda sizes: config(**{**COMMON, **encoder(sizes), **more})


def _distilbert(sizes: Sizes) -> Any:
    return t.DistilBertConfig(
        **COMMON, dim=sizes.width, n_layers=sizes.layers, n_heads=sizes.heads, hidden_dim=sizes.neurons,
        max_position_embeddings=POSITIONS,
    )  # fmt: skip


def _xlnet(sizes: Sizes) -> Any:
    return t.XLNetConfig(
        **COMMON, d_model=sizes.width, n_layer=sizes.layers, n_head=sizes.heads, d_inner=sizes.neurons,
        use_mems_eval=False, summary_type="last",
    )  # fmt: skip


def _mobilebert(normalization: str, sizes: Sizes) -> Any:
    wide = {**encoder(sizes), "hidden_size": sizes.width + 12}
    return t.MobileBertConfig(
        **COMMON, **wide, embedding_size=20, intra_bottleneck_size=sizes.width, use_bottleneck_attention=False,
        key_query_shared_bottleneck=True, num_feedforward_networks=4, normalization_type=normalization,
    )  # fmt: skip


def _clip(sizes: Sizes) -> Any:
    more = {"projection_dim": 20, "eos_token_id": 3, "bos_token_id": 2}
    return t.CLIPTextConfig(**{**COMMON, **encoder(sizes), **more})


def _bert_records(base: str) -> Callable[[Sizes], tuple[Record, ...]]:
    return layered(f"{base}.encoder.layer", "attention", "attention.output.dense", "output.dense")


def _albert_records(sizes: Sizes) -> tuple[Record, ...]:
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    names = f"{layer}.attention", f"{layer}.attention.dense", f"{layer}.ffn_output"
    return tuple(Record(sizes.heads, sizes.head_size, sizes.neurons, *names, call=i) for i in range(sizes.layers))


def _mobilebert_records(sizes: Sizes) -> tuple[Record, ...]:
    records = []
    for i in range(sizes.layers):
        layer = f"mobilebert.encoder.layer.{i}"
        downs = [f"{layer}.ffn.{j}.output.dense" for j in range(3)] + [f"{layer}.output.dense"]
        attention = f"{layer}.attention", f"{layer}.attention.output.dense"
        records.append(Record(sizes.heads, sizes.head_size, sizes.neurons, *attention, downs[0]))
        records += [Record(neurons=sizes.neurons, down=down) for down in downs[1:]]
    return tuple(records)


_PLAIN, _TYPED, _PAD_1 = text_feeds(), text_feeds(types=True), text_feeds(pad=1)
_AFTER_PAD = {"pad_token_id": 1, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1}
_DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}
_DEBERTA_V3 = {"share_att_key": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm", "pooler_hidden_size": 32}
_LOCAL = {"global_attn_every_n_layers": 2, "local_attention": 4, "reference_compile": False}

TEXT = (
    Family("bert", t.BertForSequenceClassification, _plain(t.BertConfig), _bert_records("bert"), _TYPED),
    Family(
        "distilbert", t.DistilBertForSequenceClassification, _distilbert,
        layered("distilbert.transformer.layer", "attention", "attention.out_lin", "ffn.lin2"), _PLAIN,
        sizes={"neurons": 64},
    ),
    Family(
        "roberta", t.RobertaForSequenceClassification, _plain(t.RobertaConfig, **_AFTER_PAD),
        _bert_records("roberta"), _PAD_1,
    ),
    Family(
        "electra", t.ElectraForSequenceClassification, _plain(t.ElectraConfig, embedding_size=20),
        _bert_records("electra"), _TYPED, sizes={"head_size": 12},
    ),
    Family(
        "minilm", t.BertForSequenceClassification, _plain(t.BertConfig), _bert_records("bert"), _TYPED,
        sizes={"heads": 12, "neurons": 60},
    ),
    Family(
        "camembert", t.CamembertForSequenceClassification, _plain(t.CamembertConfig, **_AFTER_PAD),
        _bert_records("roberta"), _PAD_1,
    ),
    Family(
        "mpnet", t.MPNetForSequenceClassification,
        _plain(t.MPNetConfig, pad_token_id=1, max_position_embeddings=POSITIONS + 2),
        layered("mpnet.encoder.layer", "attention", "attention.attn.o", "output.dense"), _PAD_1,
    ),
    Family(
        "albert", t.AlbertForSequenceClassification, _plain(t.AlbertConfig, embedding_size=20), _albert_records, _TYPED,
    ),
    Family(
        "deberta", t.DebertaForSequenceClassification, _plain(t.DebertaConfig, **_DEBERTA),
        _bert_records("deberta"), _PLAIN,
    ),
    Family(
        "deberta-v2", t.DebertaV2ForSequenceClassification, _plain(t.DebertaV2Config, **_DEBERTA, **_DEBERTA_V3),
        _bert_records("deberta"), _PLAIN,
    ),
    Family(
        "xlnet", t.XLNetForSequenceClassification, _xlnet,
        layered("transformer.layer", "rel_attn", "rel_attn", "ff.layer_2"), text_feeds(left=True), wrap=TextAnswer,
        put_into={"dynamo": FloatMask}, refuses={"optimum": "optimum has no configuration for XLNet"},
    ),
    Family(
        "mobilebert", t.MobileBertForSequenceClassification, functools.partial(_mobilebert, "no_norm"),
        _mobilebert_records, _TYPED, sizes={"layers": 2},
    ),
    Family(
        "mobilebert-norm", t.MobileBertForSequenceClassification, functools.partial(_mobilebert, "layer_norm"),
        _mobilebert_records, _TYPED, sizes={"layers": 2},
    ),
    # No row of a local layer may be all padding: its softmax would be all ties.
    Family(
        "modernbert", t.ModernBertForSequenceClassification, _plain(t.ModernBertConfig, **_LOCAL),
        layered("model.layers", "attn", "attn.Wo", "mlp.Wo"), text_feeds(most=2),
        put_into={"dynamo-23": BatchedPositions},
    ),
    Family(
        "nomic", Nomic, nomic_config, layered("layers", "attention", "attention.output", "feed_forward.down"), _TYPED,
        refuses={"optimum": "not a model of transformers"},
    ),
    Family(
        "clip-text", t.CLIPTextModelWithProjection, _clip,
        layered("text_model.encoder.layers", "self_attn", "self_attn.out_proj", "mlp.fc2"), text_feeds(end=3),
        wrap=lambda module: TextAnswer(module, "text_embeds"), output="text_embeds",
        refuses={"optimum": "optimum has no configuration for CLIP's text encoder alone"},
    ),
)  # fmt: skip
