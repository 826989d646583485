"""The control: a random plan of equal size. If it scores as well, the search found no particular parts."""

from __future__ import annotations

import numpy as np

from axformer_onnx.search.elements import attention_half, feed_forward_half
from axformer_passes.anatomy import Anatomy
from axformer_passes.plan import Plan


def random_plan(anatomy: Anatomy, like: Plan, seed: int) -> Plan:
    """As many blocks, heads, neurons and hard layers as `like` takes, drawn from all that can be removed.

    Neurons are drawn by whole groups, as a search removes them; a last group is cut to match the count.
    Where the blocks drawn leave fewer heads or neurons than `like` takes, all that are left go.
    """
    draw = np.random.default_rng(seed)
    plan = _random_blocks(anatomy, like, draw)
    layers = range(len(anatomy.layers))
    shared = like.shared_weights
    heads = [e for i in layers for e in attention_half(anatomy, i, shared).parts if e.is_left(plan)]
    for index in draw.permutation(len(heads))[: sum(map(len, like.heads.values()))]:
        plan = heads[index].applied_to(plan)
    groups = [e for i in layers for e in feed_forward_half(anatomy, i, shared).parts if e.is_left(plan)]
    missing = sum(map(len, like.neurons.values()))
    for index in draw.permutation(len(groups)):
        group = groups[index]
        plan = plan.without_neurons(group.layer, group.ids[:missing]) if missing else plan
        missing -= min(missing, len(group.ids))
    left = [i for i in layers if anatomy.layers[i].attention and i not in plan.attention_blocks]
    chosen = draw.permutation(len(left))[: len(like.hard_attention)]
    for index, hard in zip(chosen, like.hard_attention.values(), strict=False):
        plan = plan.with_hard_attention(left[index], hard.k, hard.mode)
    return plan


def _random_blocks(anatomy: Anatomy, like: Plan, draw: np.random.Generator) -> Plan:
    layers = range(len(anatomy.layers))
    plan = Plan(source_sha256=like.source_sha256, shared_weights=like.shared_weights)
    for half, count in (
        (attention_half, len(like.attention_blocks)),
        (feed_forward_half, len(like.feed_forward_blocks)),
    ):
        blocks = [block for i in layers if (block := half(anatomy, i).block)]
        for index in draw.permutation(len(blocks))[:count]:
            plan = blocks[index].applied_to(plan)
    return plan
