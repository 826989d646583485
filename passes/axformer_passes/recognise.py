"""Model -> Anatomy: read heads, neurons, blocks and layers off the classes of labels.

    head     a class that a softmax normalises and that the rows of one output projection read
    neuron   a class that is one row of a down projection and at least one column of an up projection
    stream   the class that the columns of output and down projections write
    block    attention or feed-forward, from its projections to the addition to the stream
    layer    an attention block and the feed-forward blocks that write to the stream before the next one

No name, exporter or architecture is looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from axformer_passes.anatomy import (
    Anatomy,
    AttentionBlock,
    FeedForwardBlock,
    Layer,
    Linear,
    Refusal,
)
from axformer_passes.branches import Branch, branch_of
from axformer_passes.labels import Carrier, IntArray, Labelling, Product, anchor, label
from axformer_passes.prepare import origin, prepared, source_name
from axformer_passes.rules import softmax_axes
from axformer_passes.scores import Scores, activation_between, score_scale
from axformer_passes.trace import Runner


@dataclasses.dataclass(frozen=True)
class Examined:
    """An anatomy together with the labels that it was read from.

    head_classes     per layer the class of each head, in head order (empty: no attention)
    neuron_classes   per layer and feed-forward block the class of each neuron, in neuron order
    """

    anatomy: Anatomy
    labelling: Labelling
    head_classes: tuple[tuple[int, ...], ...]
    neuron_classes: tuple[tuple[tuple[int, ...], ...], ...]


@dataclasses.dataclass(frozen=True)
class _Found:
    """A block before it is assigned to a layer; `classes` are its heads or neurons, `order` its place in the graph."""

    order: int
    block: AttentionBlock | FeedForwardBlock
    classes: tuple[int, ...]


def recognise(model: ir.Model, runner: Runner) -> Anatomy:
    """The anatomy of `model`. Never raises for what it does not understand: see `Anatomy.refused`."""
    return examine(model, runner).anatomy


def examine(model: ir.Model, runner: Runner) -> Examined:
    """Prepare a clone of `model`, label it and read the anatomy off the labels."""
    labelling = label(prepared(model), runner)
    order = {anchor(node): i for i, node in enumerate(labelling.model.graph)}
    refused = list(labelling.refusals)
    attentions = []
    for softmax in labelling.softmaxes:
        found = _attention(labelling, softmax, order)
        if isinstance(found, Refusal):
            refused.append(found)
        elif found is not None:
            attentions.append(found)
    streams = {_single(_columns(labelling, _product(labelling, f.block.output))) for f in attentions}  # type: ignore[union-attr]
    taken = {c for f in attentions for c in f.classes}
    feed_forwards = [
        found
        for product in labelling.products
        if (found := _feed_forward(labelling, product, streams, taken, order)) is not None
    ]
    return _layers(model, labelling, attentions, feed_forwards, tuple(refused))


def _layers(
    model: ir.Model,
    labelling: Labelling,
    attentions: list[_Found],
    feed_forwards: list[_Found],
    refused: tuple[Refusal, ...],
) -> Examined:
    groups: list[tuple[_Found | None, list[_Found]]] = []
    for found in sorted([*attentions, *feed_forwards], key=lambda f: f.order):
        if isinstance(found.block, AttentionBlock):
            groups.append((found, []))
        elif groups:
            groups[-1][1].append(found)
        else:
            groups.append((None, [found]))
    layers = tuple(
        Layer(
            index=i,
            attention=attention.block if attention else None,  # type: ignore[arg-type]
            feed_forwards=tuple(f.block for f in feeds),  # type: ignore[misc]
        )
        for i, (attention, feeds) in enumerate(groups)
    )
    anatomy = Anatomy(
        layers=layers,
        width=max((f.block.output.columns for f in attentions), default=0),  # type: ignore[union-attr]
        opset=model.opset_imports.get("", 0),
        exporter_hint=" ".join(x for x in (model.producer_name, model.producer_version) if x),
        refused=refused,
    )
    return Examined(
        anatomy=anatomy,
        labelling=labelling,
        head_classes=tuple(a.classes if a else () for a, _ in groups),
        neuron_classes=tuple(tuple(f.classes for f in feeds) for _, feeds in groups),
    )


# -- attention ------------------------------------------------------------------------------------------------------


def _attention(labelling: Labelling, softmax: ir.Node, order: dict[str, int]) -> _Found | Refusal | None:
    inside = {int(c) for c in np.unique(labelling.classes(labelling.of[anchor(softmax)])) if c >= 0}
    readers = [p for p in labelling.products if p.rows and inside & set(_rows(labelling, p).tolist())]
    if not readers:  # a softmax over logits, for example
        return None
    refuse = _refusal(labelling, softmax, inside, readers)
    if refuse is not None:
        return refuse
    output = readers[0]
    scores = Scores.find(labelling, softmax, inside)
    if isinstance(scores, Refusal):
        return scores
    projections = [_projection(labelling, value) for value in (scores.query, scores.key, scores.value)]
    if any(p is None for p in projections):
        return Refusal(
            anchor(softmax), softmax.op_type, "query, key or value does not come from one learned projection"
        )
    query, key, value = projections
    assert query is not None and key is not None and value is not None and output.rows is not None
    classes = tuple(dict.fromkeys(_rows(labelling, output).tolist()))
    branch = branch_of(labelling, output.node.outputs[0])
    kv_heads = scores.kv_heads(labelling)
    if len(classes) != kv_heads:
        united = f"its heads are united into {len(classes)} classes, expected {kv_heads}, one for each key head"
        return Refusal(anchor(softmax), softmax.op_type, united)
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
    return _Found(order[anchor(output.node)], block, classes)


def _refusal(labelling: Labelling, softmax: ir.Node, inside: set[int], readers: list[Product]) -> Refusal | None:
    def refuse(reason: str) -> Refusal:
        return Refusal(anchor(softmax), softmax.op_type, reason)

    rank = labelling.of[anchor(softmax)].ndim
    if softmax.op_type != "Attention" and softmax_axes(labelling.model, softmax, rank) != [rank - 1]:
        return refuse("it does not normalise over the last axis alone, expected [.., query, key] scores")
    if inside & labelling.tied:
        return refuse("its heads are tied together by a normalisation or reduction, expected one class per head")
    if inside & labelling.frozen:
        return refuse("its heads reach a graph output or an operator without a rule")
    if len(readers) != 1:
        found = ", ".join(anchor(p.node) for p in readers)
        return refuse(f"its context is read by {len(readers)} projections ({found}), expected one")
    rows = _rows(labelling, readers[0])
    if set(rows.tolist()) != inside:
        return refuse(f"projection {anchor(readers[0].node)} reads channels that are not of this attention")
    counts = np.unique(rows, return_counts=True)[1]
    if len(set(counts.tolist())) != 1:
        return refuse(f"its heads have different sizes: {counts.tolist()}")
    if _single(_columns(labelling, readers[0])) is None:
        return refuse(f"projection {anchor(readers[0].node)} does not write one residual stream")
    return None


def _projection(labelling: Labelling, value: ir.Value) -> Linear | None:
    """The projection whose columns arrive at `value`, by the labels' births."""
    raw = labelling.of.get(str(value.name))
    if raw is None:
        return None
    births = np.unique(raw[raw >= 0])
    carriers = {labelling.carrier_of(int(i)) for i in births[[0, -1]]} if births.size else set()
    if len(carriers) != 1:
        return None
    carrier = carriers.pop()
    product = next((p for p in labelling.products if p.columns == carrier), None)
    if product is None or product.rows is None:
        return None
    return dataclasses.replace(_linear(labelling, product), columns=int(births.size))


# -- feed-forward ---------------------------------------------------------------------------------------------------


def _feed_forward(
    labelling: Labelling, product: Product, streams: set[int | None], taken: set[int], order: dict[str, int]
) -> _Found | None:
    if product.rows is None or _single(_columns(labelling, product)) not in streams - {None}:
        return None
    rows = _rows(labelling, product).tolist()
    stop = labelling.tied | labelling.frozen | taken
    if len(set(rows)) != len(rows) or stop & set(rows):
        return None
    ups = [
        p
        for p in labelling.products
        if p.rows is not None and p is not product and set(_columns(labelling, p).tolist()) & set(rows)
    ]
    readers = [p for p in labelling.products if p.rows and set(_rows(labelling, p).tolist()) & set(rows)]
    written = {c for p in ups for c in _columns(labelling, p).tolist()}
    if not ups or readers != [product] or not set(rows) <= written:
        return None
    branch = branch_of(labelling, product.node.outputs[0])
    block = FeedForwardBlock(
        neurons=len(rows),
        activation=activation_between(labelling, [p.node for p in ups], product.node),
        up=tuple(_linear(labelling, p) for p in ups),
        down=_linear(labelling, product),
        **_where(branch),
    )
    return _Found(order[anchor(product.node)], block, tuple(rows))


# -- records --------------------------------------------------------------------------------------------------------


def _where(branch: Branch) -> dict[str, str | None]:
    return {"branch": branch.branch, "residual": branch.residual, "sum": branch.sum, "why": branch.why}


def _labels(carrier: Carrier) -> IntArray:
    return carrier.first + np.arange(carrier.size)


def _rows(labelling: Labelling, product: Product) -> IntArray:
    assert product.rows is not None
    return labelling.classes(_labels(product.rows))


def _columns(labelling: Labelling, product: Product) -> IntArray:
    assert product.columns is not None
    return labelling.classes(_labels(product.columns))


def _single(classes: Iterable[int]) -> int | None:
    distinct = set(np.asarray(classes).tolist())
    return distinct.pop() if len(distinct) == 1 else None


def _product(labelling: Labelling, linear: Linear) -> Product:
    return next(p for p in labelling.products if anchor(p.node) == linear.output)


def _linear(labelling: Labelling, product: Product) -> Linear:
    node = product.node
    assert product.rows is not None and product.columns is not None
    weight = labelling.model.graph.initializers[product.rows.initializer]
    slot = 1 if (found := origin(node.inputs[1])) is not None and found.value is weight else 0
    data = node.inputs[1 - slot]
    assert data is not None
    return Linear(
        input=str(data.name),
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
    uses = list(node.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add":
        user, index = uses[0]
        found = origin(user.inputs[1 - index])
        return source_name(found.value) if found else None
    return None
