"""Image encoders of the zoo: images of one size, 16 patches and a class token (DeiT: a second one)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import transformers as t
from zoo_families import BATCH_AXES, IMAGE, LABELS, PATCH, Family, Feeds, ImageAnswer, Record, Sizes, layered

_AXES = {"pixel_values": BATCH_AXES}


def image_feeds(rng: np.random.Generator, batch: int, length: int, padded: bool) -> Feeds:
    """Noise. `length` and `padded` are without effect."""
    return {"pixel_values": rng.standard_normal((batch, 3, IMAGE, IMAGE)).astype(np.float32)}


def _image(config: Any, **more: Any) -> Callable[[Sizes], Any]:
    return lambda sizes: config(
        hidden_size=sizes.width, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        intermediate_size=sizes.neurons, image_size=IMAGE, patch_size=PATCH, num_labels=LABELS, **more,
    )  # fmt: skip


def _records(base: str) -> Callable[[Sizes], tuple[Record, ...]]:
    if not t.__version__.startswith("4."):
        return layered(f"{base}.layers", "attention", "attention.o_proj", "mlp.fc2")
    return layered(f"{base}.encoder.layer", "attention", "attention.output.dense", "output.dense")


def _swin(sizes: Sizes) -> t.Swinv2Config:
    return t.Swinv2Config(
        image_size=IMAGE, patch_size=2, embed_dim=sizes.width, depths=[2, 1], num_heads=[sizes.heads, 2 * sizes.heads],
        window_size=4, mlp_ratio=sizes.neurons / sizes.width, num_labels=LABELS,
    )  # fmt: skip


def _swin_records(sizes: Sizes) -> tuple[Record, ...]:
    """Two layers, of which the second shifts its windows; then one of a quarter of the tokens and twice the width."""
    records = []
    for wide, name in ((1, "0.blocks.0"), (1, "0.blocks.1"), (2, "1.blocks.0")):
        block = f"swinv2.encoder.layers.{name}"
        names = (f"{block}.attention.self", f"{block}.attention.output.dense", f"{block}.output.dense")
        behind = (f"{block}.layernorm_before", f"{block}.layernorm_after")
        records.append(Record(wide * sizes.heads, sizes.head_size, wide * sizes.neurons, *names, behind=behind))
    return tuple(records)


_SIZES = {"heads": 3, "head_size": 16}

VISION = (
    Family(
        "vit", t.ViTForImageClassification, _image(t.ViTConfig), _records("vit"), image_feeds,
        axes=_AXES, task="image-classification", sizes=_SIZES,
    ),
    Family(
        "deit", t.DeiTForImageClassification, _image(t.DeiTConfig), _records("deit"), image_feeds,
        axes=_AXES, task="image-classification", sizes=_SIZES,
    ),
    Family(
        "clip-vision", t.CLIPVisionModelWithProjection, _image(t.CLIPVisionConfig, projection_dim=20),
        layered("vision_model.encoder.layers", "self_attn", "self_attn.out_proj", "mlp.fc2"), image_feeds,
        wrap=lambda module: ImageAnswer(module, "image_embeds"), axes=_AXES, output="image_embeds",
        refuses={"optimum": "optimum knows CLIP's image encoder without its projection only"},
    ),
    Family(
        "swinv2", t.Swinv2ForImageClassification, _swin, _swin_records, image_feeds,
        axes=_AXES, task="image-classification", sizes={"heads": 2, "neurons": 32},
    ),
)  # fmt: skip
