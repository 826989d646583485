"""The elements that a search may remove or harden, and what each weighs.

Names are layer numbers and ids of the source graph. "layer 3 head 5" is one element, so is "layer 3
attention block". A block that cannot be taken out of its residual stream (its `sum` is None) is no element;
its heads or neurons are. Neuron groups: docs/method.md 1.2 takes head size x 4 neurons, 256 of 3072 and in
general as many groups as there are heads.

Where layers share weights and the plan says `together`, a head or neuron group of all of them is one element, "layers 0-11 head 5",
a part of the first layer's half; blocks and hard attention stay one element for each layer.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Literal

from axformer_passes.anatomy import Anatomy
from axformer_passes.blocks import (
    BlockKind,
    block_parameters,
    head_parameters,
    neuron_parameters,
    ranges,
    removed_parameters,
    sharing,
)
from axformer_passes.plan import Hard, Mode, Plan, SharedWeights

ElementKind = Literal["head", "neurons", "attention", "feed_forward", "hard_attention"]

TOPK_OPSET = 11  # `sorted=1`: among equals the lower index comes first
_GROUPS_WITHOUT_HEADS = 12  # a model without a recognised attention block has no head count to follow


@dataclasses.dataclass(frozen=True)
class Element:
    """One thing that a trial removes (or, for `hard_attention`, changes).

    ids          the heads or neurons of kinds `head` and `neurons`, ascending; empty for the others
    parameters   weights and biases that leave the file with it alone; 0 for hard attention and for a block whose weights other
                 layers read; negative where one of several layers that share weights needs a copy of its own
    reads        weights and biases that one pass reads no more: `parameters`, but shared weights count for every layer
    hard         K and mode of kind `hard_attention`
    layers       several layers that share the weights, `layer` the first; empty: `layer` alone
    """

    kind: ElementKind
    layer: int
    ids: tuple[int, ...] = ()
    parameters: int = 0
    reads: int = 0
    hard: Hard | None = None
    layers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The words used in journals and reports, for example "layer 3 neurons 0-255"."""
        where = f"layers {ranges(self.layers)}" if self.layers else f"layer {self.layer}"
        if self.kind == "hard_attention" and self.hard is not None:
            return f"{where} hard attention k={self.hard.k} {self.hard.mode}"
        if self.kind == "head":
            return f"{where} head {self.ids[0]}"
        if self.kind == "neurons":
            return f"{where} neurons {self.ids[0]}-{self.ids[-1]}"
        return f"{where} {'attention' if self.kind == 'attention' else 'feed-forward'} block"

    def is_left(self, plan: Plan) -> bool:
        """Does `plan` leave a block in which this element (a head or neurons) has its part?"""
        gone = plan.attention_blocks if self.kind == "head" else plan.feed_forward_blocks
        return not gone.issuperset(self.layers or (self.layer,))

    def applied_to(self, plan: Plan) -> Plan:
        """`plan` with this element removed (or hardened) too."""
        if self.kind == "head":
            return plan.without_heads(self.layer, self.ids)
        if self.kind == "neurons":
            return plan.without_neurons(self.layer, self.ids)
        if self.kind == "attention":
            return plan.without_attention(self.layer)
        if self.kind == "feed_forward":
            return plan.without_feed_forward(self.layer)
        assert self.hard is not None
        return plan.with_hard_attention(self.layer, self.hard.k, self.hard.mode)


@dataclasses.dataclass(frozen=True)
class Half:
    """One half of a layer, coarse to fine: the whole block (None: it cannot be taken out), then its parts."""

    block: Element | None
    parts: tuple[Element, ...]

    @property
    def trials(self) -> int:
        """Most trials that this half can take."""
        return len(self.parts) + (self.block is not None)

    @property
    def is_shared(self) -> bool:
        """Do the parts belong to several layers?"""
        return any(part.layers for part in self.parts)


def feed_forward_half(anatomy: Anatomy, layer: int, shared: SharedWeights = "separate") -> Half:
    """The feed-forward block of `layer` and its neuron groups; empty where none was recognised."""
    block = anatomy.layers[layer].feed_forward
    if block is None:
        return Half(None, ())
    groups = neuron_groups(block.neurons, _group_count(anatomy, layer))
    parts = [Element("neurons", layer, tuple(group), reads=neuron_parameters(block) * len(group)) for group in groups]
    whole = Element("feed_forward", layer, reads=block_parameters(block)) if block.sum else None
    return _half(anatomy, whole, parts, _layers_of_parts(anatomy, "feed_forward", layer, shared))


def attention_half(anatomy: Anatomy, layer: int, shared: SharedWeights = "separate") -> Half:
    """The attention block of `layer` and its heads; empty where none was recognised."""
    block = anatomy.layers[layer].attention
    if block is None:
        return Half(None, ())
    parts = [Element("head", layer, (head,), reads=head_parameters(block)) for head in range(block.heads)]
    whole = Element("attention", layer, reads=block_parameters(block)) if block.sum else None
    return _half(anatomy, whole, parts, _layers_of_parts(anatomy, "attention", layer, shared))


def halves(anatomy: Anatomy, layer: int, shared: SharedWeights = "separate") -> tuple[Half, Half]:
    """Feed-forward half, then attention half: the order in which docs/method.md 1.2 prunes a layer."""
    return feed_forward_half(anatomy, layer, shared), attention_half(anatomy, layer, shared)


def _layers_of_parts(anatomy: Anatomy, kind: BlockKind, layer: int, shared: SharedWeights) -> tuple[int, ...]:
    """The layers that lose a head (neuron) when `layer` does."""
    return sharing(anatomy, kind, layer) if shared == "together" else (layer,)


def _half(anatomy: Anatomy, whole: Element | None, parts: list[Element], together: tuple[int, ...]) -> Half:
    """Weigh the elements; parts of several layers belong to the first of them."""
    block = _weighed(anatomy, whole, "separate") if whole else None
    if len(together) == 1:
        return Half(block, tuple(_weighed(anatomy, part, "separate") for part in parts))
    of_all = [dataclasses.replace(part, layers=together, reads=part.reads * len(together)) for part in parts]
    own = [part for part in of_all if part.layer == together[0]]
    return Half(block, tuple(_weighed(anatomy, part, "together") for part in own))


def _weighed(anatomy: Anatomy, element: Element, shared: SharedWeights) -> Element:
    alone = element.applied_to(Plan(shared_weights=shared))
    return dataclasses.replace(element, parameters=removed_parameters(anatomy, alone))


def hard_attention(anatomy: Anatomy, layer: int, k: int, mode: Mode = "truncated") -> Element | None:
    """Hard attention in `layer`; None without an attention block, or where TopK does not promise how ties end."""
    if anatomy.layers[layer].attention is None or anatomy.opset < TOPK_OPSET:
        return None
    return Element("hard_attention", layer, hard=Hard(k, mode))


def neuron_groups(neurons: int, groups: int) -> Iterator[range]:
    """Split 0..neurons-1 into `groups` neighbouring ranges, as even as possible, none empty."""
    groups = max(1, min(groups, neurons))
    bounds = [neurons * i // groups for i in range(groups + 1)]
    return (range(low, high) for low, high in itertools.pairwise(bounds))


def _group_count(anatomy: Anatomy, layer: int) -> int:
    """As many neuron groups as the nearest attention, at best the layer's own or one before, has query heads."""
    nearest = [*reversed(anatomy.layers[: layer + 1]), *anatomy.layers[layer + 1 :]]
    block = next((x.attention for x in nearest if x.attention), None)
    if block is None:
        return _GROUPS_WITHOUT_HEADS
    return max(
        block.heads, block.query.columns // max(1, block.head_size)
    )  # grouped-query attention has fewer key heads
