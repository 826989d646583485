"""The elements that a search may remove or harden, and what each weighs.

Names are layer numbers and ids of the source graph. "layer 3 head 5" is one element, so is "layer 3
attention block". A block that cannot be taken out of its residual stream (its `sum` is None) is no element;
its heads or neurons are. Neuron groups: METHOD.md 1.2 takes head size x 4 neurons, 256 of 3072 and in
general as many groups as there are heads.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Literal

from axformer_passes.anatomy import Anatomy, AttentionBlock, FeedForwardBlock, Linear
from axformer_passes.plan import Hard, Mode, Plan

Kind = Literal["head", "neurons", "attention", "feed_forward", "hard_attention"]

_TOPK_OPSET = 11  # `sorted=1`: among equals the lower index comes first
_GROUPS_WITHOUT_HEADS = 12  # a layer without a recognised attention block has no head count to follow


@dataclasses.dataclass(frozen=True)
class Element:
    """One thing that a trial removes (or, for `hard_attention`, changes).

    ids          the heads or neurons of kinds `head` and `neurons`, ascending; empty for the others
    parameters   weights and biases that go with it; 0 for hard attention
    hard         K and mode of kind `hard_attention`
    """

    kind: Kind
    layer: int
    ids: tuple[int, ...] = ()
    parameters: int = 0
    hard: Hard | None = None

    @property
    def name(self) -> str:
        """The words used in journals and reports, for example "layer 3 neurons 0-255"."""
        if self.kind == "hard_attention" and self.hard is not None:
            return f"layer {self.layer} hard attention k={self.hard.k} {self.hard.mode}"
        if self.kind == "head":
            return f"layer {self.layer} head {self.ids[0]}"
        if self.kind == "neurons":
            return f"layer {self.layer} neurons {self.ids[0]}-{self.ids[-1]}"
        return f"layer {self.layer} {'attention' if self.kind == 'attention' else 'feed-forward'} block"

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


def feed_forward_half(anatomy: Anatomy, layer: int) -> Half:
    """The feed-forward block of `layer` and its neuron groups; empty where there is not exactly one block."""
    block = anatomy.layers[layer].feed_forward
    if block is None:
        return Half(None, ())
    each = neuron_parameters(block)
    parts = tuple(
        Element("neurons", layer, tuple(group), each * len(group))
        for group in neuron_groups(block.neurons, _group_count(anatomy, layer))
    )
    whole = Element("feed_forward", layer, (), feed_forward_parameters(block)) if block.sum else None
    return Half(whole, parts)


def attention_half(anatomy: Anatomy, layer: int) -> Half:
    """The attention block of `layer` and its heads; empty where none was recognised."""
    block = anatomy.layers[layer].attention
    if block is None:
        return Half(None, ())
    each = head_parameters(block)
    parts = tuple(Element("head", layer, (head,), each) for head in range(block.heads))
    whole = Element("attention", layer, (), attention_parameters(block)) if block.sum else None
    return Half(whole, parts)


def halves(anatomy: Anatomy, layer: int) -> tuple[Half, Half]:
    """Feed-forward half, then attention half: the order in which METHOD.md 1.2 prunes a layer."""
    return feed_forward_half(anatomy, layer), attention_half(anatomy, layer)


def hard_attention(anatomy: Anatomy, layer: int, k: int, mode: Mode = "truncated") -> Element | None:
    """Hard attention in `layer`; None without an attention block, or where TopK does not promise how ties end."""
    if anatomy.layers[layer].attention is None or anatomy.opset < _TOPK_OPSET:
        return None
    return Element("hard_attention", layer, hard=Hard(k, mode))


def neuron_groups(neurons: int, groups: int) -> Iterator[range]:
    """Split 0..neurons-1 into `groups` neighbouring ranges, as even as possible, none empty."""
    groups = max(1, min(groups, neurons))
    bounds = [neurons * i // groups for i in range(groups + 1)]
    return (range(low, high) for low, high in itertools.pairwise(bounds))


def _group_count(anatomy: Anatomy, layer: int) -> int:
    """As many neuron groups as the layer has query heads (grouped-query attention has fewer key heads)."""
    own = anatomy.layers[layer].attention
    blocks = [own] if own else [x.attention for x in anatomy.layers if x.attention]
    counts = [max(b.heads, b.query.columns // max(1, b.head_size)) for b in blocks if b]
    return max(counts, default=_GROUPS_WITHOUT_HEADS)


# -- parameters ------------------------------------------------------------------------------------------


def linear_parameters(linear: Linear) -> int:
    """Weights and biases of one projection."""
    return (linear.rows + (linear.bias is not None)) * linear.columns


def head_parameters(block: AttentionBlock) -> int:
    """Columns of query, key and value with their biases, and rows of the output projection, for one head."""
    columns = sum(map(linear_parameters, (block.query, block.key, block.value)))
    return (columns + block.output.rows * block.output.columns) // block.heads


def neuron_parameters(block: FeedForwardBlock) -> int:
    """A column of each up projection with its bias, and a row of the down projection."""
    return sum(up.rows + (up.bias is not None) for up in block.up) + block.down.columns


def attention_parameters(block: AttentionBlock) -> int:
    """Everything that goes when the block goes, the output bias included (norms are not counted)."""
    return sum(map(linear_parameters, (block.query, block.key, block.value, block.output)))


def feed_forward_parameters(block: FeedForwardBlock) -> int:
    """Everything that goes when the block goes, the down bias included (norms are not counted)."""
    return sum(map(linear_parameters, (*block.up, block.down)))


def removed_parameters(anatomy: Anatomy, plan: Plan) -> int:
    """Weights and biases that `plan` takes out of the blocks of `anatomy` (norms are not counted)."""
    total = 0
    for layer in anatomy.layers:
        attention, feed_forward = layer.attention, layer.feed_forward
        if attention and layer.index in plan.attention_blocks:
            total += attention_parameters(attention)
        elif attention:
            total += head_parameters(attention) * len(plan.heads.get(layer.index, ()))
        if feed_forward and layer.index in plan.feed_forward_blocks:
            total += feed_forward_parameters(feed_forward)
        elif feed_forward:
            total += neuron_parameters(feed_forward) * len(plan.neurons.get(layer.index, ()))
    return total
