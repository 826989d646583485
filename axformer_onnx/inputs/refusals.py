"""Where in the layers something was not recognised, in words: for `inspect`, and for what `optimize` leaves alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Literal

from axformer_passes.anatomy import Anatomy, Refusal

NOTHING = (
    "nothing was recognised that could be removed: no Softmax whose result goes through a learned projection back into a residual "
    "stream, as in every attention block. Is it a transformer?"
)
"""What is said of a graph without layers and without refusals."""
RefusedPart = Literal["", "heads", "neurons"]


@dataclasses.dataclass(frozen=True)
class Placed:
    """A refusal and the part that it took away.

    part    what is missing for it; "" where a layer is complete beside it, or it cannot be said
    layer   index of the layer that has lost the part; None: all of that layer is lost, or no part
    """

    refusal: Refusal
    part: RefusedPart = ""
    layer: int | None = None


def placed(anatomy: Anatomy) -> list[Placed]:
    """Every refusal in graph order. One stands for the missing heads of the layer behind it, or the missing neurons of that before
    it; behind a lost attention block it stands for a layer of which nothing is left."""
    by_gap = itertools.groupby(anatomy.refused, key=lambda refusal: refusal.before)
    return [found for behind, refused in by_gap for found in _in_gap(anatomy, behind, refused)]


def _in_gap(anatomy: Anatomy, behind: int, refused: Iterable[Refusal]) -> Iterator[Placed]:
    layers = anatomy.layers
    no_heads = behind < len(layers) and layers[behind].attention is None
    no_neurons = 0 < behind <= len(layers) and layers[behind - 1].feed_forward is None
    lost = False
    for refusal in refused:
        if refusal.part != "feed-forward" and no_heads:
            yield Placed(refusal, "heads", behind)
        elif refusal.part != "attention" and no_neurons and not lost:
            yield Placed(refusal, "neurons", behind - 1)
        else:
            lost = lost or refusal.part == "attention"
            parts: dict[str, RefusedPart] = {"attention": "heads", "feed-forward": "neurons"}
            yield Placed(refusal, parts.get(refusal.part, ""))


def where(found: Placed, anatomy: Anatomy) -> str:
    """ "layer 3, heads", "between layers 2 and 3", "before layer 0", ..."""
    behind, last = found.refusal.before, len(anatomy.layers) - 1
    if found.layer is not None:
        return f"layer {found.layer}, {found.part}"
    if last < 0:
        return "in the graph"
    if behind == 0:
        return "before layer 0"
    return f"behind layer {last}" if behind > last else f"between layers {behind - 1} and {behind}"


def left_whole(anatomy: Anatomy) -> list[str]:
    """One line for each refusal, in graph order: place, node, operator, reason."""
    return [
        f"{where(x, anatomy)}: {x.refusal.node} ({x.refusal.operator}): {x.refusal.reason}" for x in placed(anatomy)
    ]
