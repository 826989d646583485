"""What was nearly recognised, and where it stands: the refusals that a reader sees between the layers.

A down projection that was missed is added to the stream as others are, and its rows are read twice, tied together, frozen, or
come from no projection. All refusals go into graph order, each with the layer that comes behind it.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import onnx_ir as ir

from axformer_passes.anatomy import Refusal
from axformer_passes.graph import anchor
from axformer_passes.operators import Product, rescaled
from axformer_passes.recognise.branches import branch_of
from axformer_passes.recognise.labelling import Labelling


def missed_feed_forwards(
    labelling: Labelling, recognised: Collection[str], streams: frozenset[int]
) -> tuple[Refusal, ...]:
    """A refusal for each projection that is added to the residual stream `streams` as the down projection of a feed-forward
    block is, and is the end of no recognised block (`recognised`: their output and down projections)."""
    scores = {int(c) for s in labelling.softmaxes for c in np.unique(labelling.classes(labelling.of[anchor(s)]))}
    found = []
    for product in labelling.products:
        if product.rows is None or anchor(product.node) in recognised:
            continue
        rows = labelling.of_carrier(product.rows).tolist()
        written = not streams.isdisjoint(labelling.of_carrier(product.columns).tolist())
        if written and streams.isdisjoint(rows) and scores.isdisjoint(rows) and _is_added(labelling, product):
            reason = _why_not(labelling, product, rows)
            if reason is not None:
                found.append(Refusal(anchor(product.node), product.node.op_type, reason, "feed-forward"))
    return tuple(found)


def _is_added(labelling: Labelling, product: Product) -> bool:
    return branch_of(labelling, rescaled(product.node)).sum is not None


def _why_not(labelling: Labelling, product: Product, rows: list[int]) -> str | None:
    """None where no projection writes to `rows`, for what stands before has been refused already; and where one writes to them
    behind a reader, for then they are another residual stream (MobileBERT's bottlenecks have two)."""
    writers = {anchor(p.node) for c in rows for p in labelling.writers.get(c, ())}
    readers = {anchor(p.node): p for c in rows for p in labelling.readers[c]}
    order = labelling.order
    if not writers or max(map(order.__getitem__, writers)) > min(map(order.__getitem__, readers)):
        return None
    if len(readers) > 1:
        return f"its neurons are read by {len(readers)} projections ({', '.join(readers)}), expected one"
    if not labelling.frozen.isdisjoint(rows):
        return "its neurons reach a graph output or an operator without a rule"
    if len(set(rows)) != len(rows):
        return f"its {len(rows)} neurons are united into {len(set(rows))} classes, expected one each: a norm or mean ties them"
    alone = sum(c not in labelling.writers for c in rows)
    return f"{alone} of its {len(rows)} neurons come from no projection" if alone else None


def in_place(labelling: Labelling, refused: Iterable[Refusal], starts: Sequence[int]) -> tuple[Refusal, ...]:
    """The refusals in the order of layers and, between two, of the graph; each stands behind the layer that starts last before
    it. `starts`: place of each layer in the graph (an encoder comes first, wherever it stands)."""
    inner = {
        anchor(node): place
        for place, outer in enumerate(labelling.model.graph)
        for attribute in outer.attributes.values()
        if attribute.type == ir.AttributeType.GRAPH
        for node in attribute.as_graph().all_nodes()
    }
    places = {**inner, **labelling.order}
    by_start = sorted(zip(starts, range(1, len(starts) + 1), strict=True))

    def behind(refusal: Refusal) -> int:
        earlier = bisect.bisect(by_start, (places.get(refusal.node, len(places)), 0))
        return by_start[earlier - 1][1] if earlier else 0

    found = [dataclasses.replace(refusal, before=behind(refusal)) for refusal in refused]
    return tuple(sorted(found, key=lambda refusal: (refusal.before, places.get(refusal.node, len(places)))))
