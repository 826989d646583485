"""Model -> Anatomy: read heads, neurons, blocks and layers off the classes of labels.

    head     a class that a softmax normalises and that the rows of one output projection read
    neuron   a class that is one row of a down projection and at least one column of an up projection
    stream   the classes that the columns of an output or down projection write and an up projection reads
    block    attention or feed-forward, from its projections to the addition to the stream
    layer    an attention block and the feed-forward block that writes to the same stream next

No name, exporter or architecture is looked at.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from axformer_passes.anatomy import Anatomy, AttentionBlock, FeedForwardBlock, Layer, Linear, Refusal
from axformer_passes.graph import anchor, origin, source_name
from axformer_passes.operators import Product, data_side, labels_in, operands, rescaled, softmax_axes, unquantised
from axformer_passes.prepare import prepared, take_decided
from axformer_passes.probe import Runner
from axformer_passes.recognise.branches import Branch, branch_of, why_not_apart
from axformer_passes.recognise.labelling import Labelling, label
from axformer_passes.recognise.near_misses import in_place, missed_feed_forwards
from axformer_passes.recognise.scores import AttentionProducts, activation_between, score_scale


@dataclasses.dataclass(frozen=True)
class Examined:
    """An anatomy together with the labels that it was read from.

    head_classes     per layer the class of each head, in head order (empty: no attention)
    neuron_classes   per layer the class of each neuron, in neuron order (empty: no feed-forward)
    """

    anatomy: Anatomy
    labelling: Labelling
    head_classes: tuple[tuple[int, ...], ...]
    neuron_classes: tuple[tuple[int, ...], ...]

    def cloned(self) -> Examined:
        """The same of a clone of the graph, for a pass to edit: examining is far slower than cloning."""
        return dataclasses.replace(self, labelling=self.labelling.cloned())


@dataclasses.dataclass(frozen=True)
class _FoundBlock:
    """A block before it is assigned to a layer.

    order     its place in the graph
    classes   of its heads or neurons
    stream    classes of what it writes
    reads     classes of what its keys are made of
    """

    order: int
    block: AttentionBlock | FeedForwardBlock
    classes: tuple[int, ...]
    stream: frozenset[int]
    reads: frozenset[int] = frozenset()


def recognise(model: ir.Model, runner: Runner) -> Anatomy:
    """The anatomy of `model`. Never raises for what it does not understand: see `Anatomy.refused`."""
    return examine(model, runner).anatomy


def examine(model: ir.Model, runner: Runner) -> Examined:
    """Prepare a clone of `model`, label it and read the anatomy off the labels."""
    clone = prepared(model)
    take_decided(clone, runner)
    labelling = label(clone, runner)
    refused = list(labelling.refusals)
    attentions = []
    for softmax in labelling.softmaxes:
        found = _attention(labelling, softmax)
        if isinstance(found, Refusal):
            refused.append(found)
        elif found is not None:
            attentions.append(found)
    taken = {c for f in attentions for c in f.classes}
    streams = frozenset(c for f in attentions for c in f.stream)
    feed_forwards = [
        found
        for product in labelling.products
        if (found := _feed_forward(labelling, product, taken, streams)) is not None
    ]
    branches = {f.block.branch for f in (*attentions, *feed_forwards)}
    attentions, feed_forwards = ([_apart(labelling, f, branches) for f in some] for some in (attentions, feed_forwards))
    ends = {f.block.output.output for f in attentions} | {f.block.down.output for f in feed_forwards}  # type: ignore[union-attr]
    refused += missed_feed_forwards(labelling, ends, streams)
    return _layers(model, labelling, attentions, feed_forwards, tuple(refused))


def _layers(
    model: ir.Model,
    labelling: Labelling,
    attentions: list[_FoundBlock],
    feed_forwards: list[_FoundBlock],
    refused: tuple[Refusal, ...],
) -> Examined:
    groups = _grouped(_in_order([*attentions, *feed_forwards]))
    layers = tuple(
        Layer(
            index=i,
            attention=attention.block if attention else None,  # type: ignore[arg-type]
            feed_forward=feed.block if feed else None,  # type: ignore[arg-type]
        )
        for i, (attention, feed) in enumerate(groups)
    )
    anatomy = Anatomy(
        layers=layers,
        width=max((f.block.output.columns for f in attentions), default=0),  # type: ignore[union-attr]
        opset=model.opset_imports.get("", 0),
        exporter_hint=" ".join(x for x in (model.producer_name, model.producer_version) if x),
        refused=in_place(labelling, refused, [(attention or feed).order for attention, feed in groups]),  # type: ignore[union-attr]
    )
    return Examined(
        anatomy=anatomy,
        labelling=labelling,
        head_classes=tuple(attention.classes if attention else () for attention, _ in groups),
        neuron_classes=tuple(feed.classes if feed else () for _, feed in groups),
    )


def _in_order(blocks: list[_FoundBlock]) -> list[_FoundBlock]:
    """Graph order, but a stream that another one attends to (an encoder) goes first: exporters sort free nodes as they like."""
    rank = dict.fromkeys((f.stream for f in blocks), 0)
    across = {(f.reads, f.stream) for f in blocks if f.reads in rank and f.reads != f.stream}
    for _ in across:  # as many rounds as the longest chain can have steps
        for read, stream in across:
            rank[stream] = max(rank[stream], rank[read] + 1)
    return sorted(blocks, key=lambda f: (rank[f.stream], f.order))


def _grouped(blocks: list[_FoundBlock]) -> list[tuple[_FoundBlock | None, _FoundBlock | None]]:
    """Pair each feed-forward block with the attention block before it on the same residual stream, if that is still alone."""
    groups: list[tuple[_FoundBlock | None, _FoundBlock | None]] = []
    last: dict[frozenset[int], int] = {}
    for found in blocks:
        before = last.get(found.stream)
        if isinstance(found.block, AttentionBlock):
            groups.append((found, None))
        elif before is not None and groups[before][1] is None:
            groups[before] = (groups[before][0], found)
            continue
        else:
            groups.append((None, found))
        last[found.stream] = len(groups) - 1
    return groups


# -- attention ------------------------------------------------------------------------------------------------------


def _attention(labelling: Labelling, softmax: ir.Node) -> _FoundBlock | Refusal | None:
    inside = labelling.classes_in(labelling.of[anchor(softmax)])
    readers = list({id(p): p for c in sorted(inside) for p in labelling.readers.get(c, ())}.values())
    if not readers:  # a softmax over logits, for example; or the context ends at an operator without a rule
        stopped = inside & labelling.frozen and any(c in labelling.between for c in inside)
        return _refusal(labelling, softmax, inside, readers) if stopped else None
    refuse = _refusal(labelling, softmax, inside, readers)
    if refuse is not None:
        return refuse
    output = readers[0]
    scores = AttentionProducts.find(labelling, softmax, inside)
    if isinstance(scores, Refusal):
        return dataclasses.replace(scores, part="attention")
    projections = [_projection(labelling, value) for value in (scores.query, scores.key, scores.value)]
    if any(p is None for p in projections):
        mixed = "query, key or value does not come from one learned projection"
        return Refusal(anchor(softmax), softmax.op_type, mixed, "attention")
    query, key, value = projections
    assert query is not None and key is not None and value is not None and output.rows is not None
    classes = tuple(dict.fromkeys(labelling.of_carrier(output.rows).tolist()))
    branch = branch_of(labelling, rescaled(output.node))
    kv_heads = scores.kv_heads(labelling)
    if len(classes) not in (
        1,
        kv_heads,
    ):  # 1: a norm across the heads, as OLMo 2 has for queries and keys; they go all at once
        united = f"its heads are united into {len(classes)} classes, expected {kv_heads}, one for each key head"
        return Refusal(anchor(softmax), softmax.op_type, united, "attention")
    block = AttentionBlock(
        heads=len(classes),
        kv_heads=kv_heads,
        head_size=scores.value_size(labelling),
        scale=score_scale(labelling, softmax, scores),
        query=query,
        key=key,
        value=value,
        output=_linear(labelling, output),
        softmax=anchor(softmax),
        softmax_op=softmax.op_type,
        **_where(branch),
    )
    reads = frozenset(labelling.of_carrier(labelling.product_at[key.output].rows).tolist())
    return _FoundBlock(labelling.order[anchor(output.node)], block, classes, _stream(labelling, output), reads)


def _refusal(labelling: Labelling, softmax: ir.Node, inside: frozenset[int], readers: list[Product]) -> Refusal | None:
    def refuse(reason: str) -> Refusal:
        return Refusal(anchor(softmax), softmax.op_type, reason, "attention")

    rank = labelling.of[anchor(softmax)].ndim
    if softmax_axes(labelling.model, softmax, rank) != [rank - 1]:
        return refuse("it does not normalise over the last axis alone, expected [.., query, key] scores")
    if inside & labelling.frozen:
        return refuse("its heads reach a graph output or an operator without a rule")
    if len(readers) != 1:
        found = ", ".join(anchor(p.node) for p in readers)
        return refuse(f"its context is read by {len(readers)} projections ({found}), expected one")
    rows = labelling.of_carrier(readers[0].rows)
    if set(rows.tolist()) != inside:
        return refuse(f"projection {anchor(readers[0].node)} reads channels that are not of this attention")
    counts = np.unique(rows, return_counts=True)[1]
    if len(set(counts.tolist())) != 1:
        return refuse(f"its heads have different sizes: {counts.tolist()}")
    return None


def _projection(labelling: Labelling, value: ir.Value) -> Linear | None:
    """The projection whose columns arrive at `value`, by the labels' births."""
    raw = labelling.of.get(str(value.name))
    if raw is None:
        return None
    births = labels_in(raw)
    carriers = {labelling.carrier_of(int(i)) for i in births[[0, -1]]} if births.size else set()
    if len(carriers) != 1:
        return None
    carrier = carriers.pop()
    product = labelling.product_at[carrier.node]
    if product.columns != carrier or product.rows is None:
        return None
    return dataclasses.replace(_linear(labelling, product), columns=int(births.size))


# -- feed-forward ---------------------------------------------------------------------------------------------------


def _feed_forward(
    labelling: Labelling, product: Product, taken: set[int], streams: frozenset[int]
) -> _FoundBlock | None:
    """`product` as the down projection of a block that reads the stream which it writes; None where it is none.

    What reads embeddings alone meets no labels of the stream: there it counts that it is added to a stream of attention.
    """
    if product.rows is None:
        return None
    rows, stream = labelling.of_carrier(product.rows).tolist(), _stream(labelling, product)
    if len(set(rows)) != len(rows) or any(not known.isdisjoint(rows) for known in (labelling.frozen, taken, stream)):
        return None
    if any(labelling.readers[c] != [product] or c not in labelling.writers for c in rows):
        return None
    writers = {id(p): p for c in rows for p in labelling.writers[c]}
    ups = sorted(writers.values(), key=lambda p: labelling.order[anchor(p.node)])
    branch = branch_of(labelling, rescaled(product.node))
    reads_stream = any(stream == frozenset(labelling.of_carrier(p.rows).tolist()) for p in ups)
    if any(p.rows is None for p in ups) or not (reads_stream or (branch.sum is not None and stream <= streams)):
        return None
    block = FeedForwardBlock(
        neurons=len(rows),
        activation=activation_between(labelling, [p.node for p in ups], product.node),
        up=tuple(_linear(labelling, p) for p in ups),
        down=_linear(labelling, product),
        **_where(branch),
    )
    return _FoundBlock(labelling.order[anchor(product.node)], block, tuple(rows), stream)


def _stream(labelling: Labelling, product: Product) -> frozenset[int]:
    """The classes of what a projection writes: one where a normalisation ties the residual stream, else one a channel."""
    return frozenset(labelling.of_carrier(product.columns).tolist())


def _apart(labelling: Labelling, found: _FoundBlock, branches: set[str | None]) -> _FoundBlock:
    """A block whose residual is another block's branch can be taken out where their sum is added to the stream."""
    if found.block.residual is None or found.block.residual not in branches:
        return found
    why = why_not_apart(labelling, str(found.block.sum))
    return (
        found
        if why is None
        else dataclasses.replace(
            found, block=dataclasses.replace(found.block, branch=None, residual=None, sum=None, why=why)
        )
    )


# -- records --------------------------------------------------------------------------------------------------------


def _where(branch: Branch) -> dict[str, str | None]:
    return {"branch": branch.branch, "residual": branch.residual, "sum": branch.sum, "why": branch.why}


def _linear(labelling: Labelling, product: Product) -> Linear:
    node = product.node
    assert product.rows is not None and product.columns is not None
    weight = labelling.model.graph.initializers[product.rows.initializer]
    return Linear(
        input=str(unquantised(operands(node)[data_side(node)]).name),
        output=anchor(node),
        weight=source_name(weight),
        bias=_bias(node),
        rows=product.rows.size,
        columns=product.columns.size,
    )


def _bias(node: ir.Node) -> str | None:
    if node.op_type == "Gemm" and len(node.inputs) > 2:
        found = origin(node.inputs[2])
        return source_name(found.value) if found else None
    uses = list(rescaled(node).uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add":
        user, index = uses[0]
        found = origin(user.inputs[1 - index])
        return source_name(found.value) if found else None
    return None
