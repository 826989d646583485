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
)  # fmt: skip
