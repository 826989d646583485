"""Weights that several layers read (ALBERT, tied layers), and what a plan does to them.

    group      layers whose attention (feed-forward) blocks read the very same initializers, each in the same place
    separate   ids count for the layer that lists them; a layer that loses some reads a copy of its own, so the file may grow
    together   ids count for every layer of the group; the weights are cut once and stay one

    expanded   layers 0, 1, 2 are a group: {0: [5]} together  ->  {0: [5], 1: [5], 2: [5]} separate

Blocks and hard attention are each layer's own either way: they change no weights. Layers that share only a part of a block's
weights are no group: what they share is copied where it is cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping
from typing import Literal

from axformer_passes.anatomy import Anatomy, AttentionBlock, FeedForwardBlock, Linear
from axformer_passes.plan import Plan

BlockKind = Literal["attention", "feed_forward"]


@dataclasses.dataclass(frozen=True)
class SharedGroup:
    """Two or more layers, ascending, whose blocks of one kind read the same weights."""

    kind: BlockKind
    layers: tuple[int, ...]


def shared_groups(anatomy: Anatomy) -> tuple[SharedGroup, ...]:
    """The groups of layers that share weights, by their first layers; empty for most models."""
    found: dict[tuple[BlockKind, Hashable], list[int]] = {}
    for layer in anatomy.layers:
        for block in layer.blocks:
            found.setdefault((kind_of(block), _weights(block)), []).append(layer.index)
    return tuple(SharedGroup(kind, tuple(layers)) for (kind, _), layers in found.items() if len(layers) > 1)


def sharing(anatomy: Anatomy, kind: BlockKind, layer: int) -> tuple[int, ...]:
    """The layers whose block of this kind reads the weights of `layer`'s, itself included, ascending."""
    return next((x.layers for x in shared_groups(anatomy) if x.kind == kind and layer in x.layers), (layer,))


def expanded(plan: Plan, anatomy: Anatomy) -> Plan:
    """The same plan with every layer's own ids written out, `separate`. A plan that is separate is returned as it is.

    Ids are united over each group. A layer whose whole block goes lists none, and the others of its group keep theirs.
    """
    if plan.shared_weights == "separate":
        return plan
    heads, neurons = dict(plan.heads), dict(plan.neurons)
    for group in shared_groups(anatomy):
        ids = heads if group.kind == "attention" else neurons
        united = frozenset[int]().union(*(ids.get(i, frozenset()) for i in group.layers))
        ids.update(dict.fromkeys(group.layers, united))
    return dataclasses.replace(
        plan,
        heads=_present(heads, plan.attention_blocks),
        neurons=_present(neurons, plan.feed_forward_blocks),
        shared_weights="separate",
    )


def kind_of(block: AttentionBlock | FeedForwardBlock) -> BlockKind:
    """What plans call the kind of a block."""
    return "attention" if isinstance(block, AttentionBlock) else "feed_forward"


def linears(block: AttentionBlock | FeedForwardBlock) -> tuple[Linear, ...]:
    """The projections of a block, the output (down) projection last."""
    if isinstance(block, AttentionBlock):
        return block.query, block.key, block.value, block.output
    return *block.up, block.down


def ranges(layers: Iterable[int]) -> str:
    """Ascending layer numbers in words, for example "0-11" or "0, 2, 5-7"."""
    runs: list[list[int]] = []
    for i in layers:
        if runs and runs[-1][-1] == i - 1:
            runs[-1].append(i)
        else:
            runs.append([i])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def words(group: SharedGroup) -> str:
    """For example "layers 0-11 share the weights of their attention blocks"."""
    kind = "attention" if group.kind == "attention" else "feed-forward"
    return f"layers {ranges(group.layers)} share the weights of their {kind} blocks"


def _weights(block: AttentionBlock | FeedForwardBlock) -> Hashable:
    """What two blocks must have in common so that one cut fits both."""
    units = block.heads if isinstance(block, AttentionBlock) else block.neurons
    return units, tuple((x.weight, x.bias, x.rows, x.columns) for x in linears(block))


def _present(ids: Mapping[int, frozenset[int]], removed: frozenset[int]) -> dict[int, frozenset[int]]:
    return {i: v for i, v in ids.items() if v and i not in removed}
