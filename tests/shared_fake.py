"""The fake anatomy of search_fake with layers that read the same weights."""

from __future__ import annotations

import dataclasses
from typing import Any

from search_fake import anatomy

from axformer_passes.anatomy import Anatomy, AttentionBlock, Linear
from axformer_passes.plan import Plan

TOGETHER = Plan(shared_weights="together")


def tied(groups: list[list[int]], layers: int = 4, kinds: tuple[str, ...] = ("attention", "feed_forward")) -> Anatomy:
    """The fake anatomy, in which the layers of each group read the weights of its first."""
    whole = anatomy(layers)
    found = list(whole.layers)
    for group in groups:
        for i in group:
            blocks = {kind: reading(getattr(found[i], kind), getattr(found[group[0]], kind)) for kind in kinds}
            found[i] = dataclasses.replace(found[i], **blocks)
    return dataclasses.replace(whole, layers=tuple(found))


def reading(block: Any, first: Any) -> Any:
    """`block` with the weights of `first`; its inputs and outputs stay its own."""

    def tie(own: Linear, other: Linear) -> Linear:
        return dataclasses.replace(own, weight=other.weight, bias=other.bias)

    if isinstance(block, AttentionBlock):
        names = ("query", "key", "value", "output")
        return dataclasses.replace(block, **{n: tie(getattr(block, n), getattr(first, n)) for n in names})
    return dataclasses.replace(block, up=(tie(block.up[0], first.up[0]),), down=tie(block.down, first.down))
