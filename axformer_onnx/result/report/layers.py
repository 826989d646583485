"""What a plan takes out of each layer, as records and as a small picture of blocks."""

from __future__ import annotations

from typing import Literal

from axformer_onnx.result.report.record import LayerRecord
from axformer_passes.anatomy import Anatomy, Layer
from axformer_passes.blocks import expanded, kind_of
from axformer_passes.plan import Plan

_FULL, _EMPTY = "█", "░"
BAR = 12


def layer_records(anatomy: Anatomy, plan: Plan) -> list[LayerRecord]:
    """One record a layer of the source."""
    plan = expanded(plan, anatomy)
    return [_layer_record(layer, plan) for layer in anatomy.layers]


def _layer_record(layer: Layer, plan: Plan) -> LayerRecord:
    i, attention, feed_forward = layer.index, layer.attention, layer.feed_forward
    hard = plan.hard_attention.get(i)
    return LayerRecord(
        layer=i,
        heads=attention.heads if attention else 0,
        heads_removed=sorted(plan.heads.get(i, ())),
        attention=_state(attention is not None, i in plan.attention_blocks),
        neurons=feed_forward.neurons if feed_forward else 0,
        neurons_removed=len(plan.neurons.get(i, ())),
        feed_forward=_state(feed_forward is not None, i in plan.feed_forward_blocks),
        hard_attention=f"k={hard.k} {hard.mode}" if hard else None,
        int8=[kind for kind in map(kind_of, layer.blocks) if plan.int8 and plan.int8.has(i, kind)],
    )


def _state(present: bool, removed: bool) -> Literal["kept", "removed", "absent"]:
    if not present:
        return "absent"
    return "removed" if removed else "kept"


def bar(kept: int, total: int, width: int = BAR) -> str:
    """`kept` of `total` as a bar; a part that is neither empty nor full never looks so."""
    if total == 0:
        return ""
    filled = round(width * kept / total)
    if 0 < kept < total:
        filled = min(max(filled, 1), width - 1)
    return _FULL * filled + _EMPTY * (width - filled)


def head_picture(layer: LayerRecord) -> str:
    """One block a head, in order: which heads stay."""
    if layer.attention == "absent":
        return ""
    gone = set(range(layer.heads)) if layer.attention == "removed" else set(layer.heads_removed)
    if layer.heads > 2 * BAR:
        return bar(layer.heads - len(gone), layer.heads)
    return "".join(_EMPTY if head in gone else _FULL for head in range(layer.heads))


def head_words(layer: LayerRecord) -> str:
    """For example "5 of 12", "block removed"."""
    if layer.attention != "kept":
        return "block removed" if layer.attention == "removed" else "not recognised"
    return f"{layer.heads - len(layer.heads_removed)} of {layer.heads}"


def integer_words(layer: LayerRecord) -> str:
    """Which blocks compute with integers, for example "attention, feed-forward"."""
    return ", ".join(kind.replace("_", "-") for kind in layer.int8)


def neuron_picture(layer: LayerRecord) -> str:
    """A bar of the neurons that stay."""
    kept = 0 if layer.feed_forward == "removed" else layer.neurons - layer.neurons_removed
    return bar(kept, layer.neurons)


def neuron_words(layer: LayerRecord) -> str:
    """For example "1024 of 1536", "block removed"."""
    if layer.feed_forward == "removed":
        return "block removed"
    if layer.neurons == 0:
        return "not recognised"
    return f"{layer.neurons - layer.neurons_removed} of {layer.neurons}"
