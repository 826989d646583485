"""Channel labels: which positions of which tensors must be removed together.

Labels are born in the weights of contractions alone: every row and every column of a MatMul, Gemm or Conv weight gets an
integer. A label array per tensor, of the tensor's own (probed) shape, carries them through the graph, one rule per
operator (`axformer_passes.operators`). Where labels meet they are united; the classes of the union-find are what must be
cut together.
A constant that meets labels elementwise (bias, scale, rotary table, relative positions) gets no labels: it *follows*
the tensor that it meets, and is sliced where it spans a removed position (`cut`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
import onnx_ir as ir

from axformer_passes.anatomy import Refusal
from axformer_passes.graph import anchor, clone_of, operator, origin
from axformer_passes.operators import Carrier, IntArray, Product, Walk, labels_in, record_of
from axformer_passes.prepare.fused import NOT_LOWERED
from axformer_passes.probe import Array, Runner, probed, trace


@dataclasses.dataclass
class Labelling:
    """The result of a walk over a prepared model.

    of          label array of every labelled tensor, by name, in the tensor's probed shape
    values      probed values by name
    roots       int64[labels]: class of each label (after the walk)
    carriers    where labels live, ordered by first label
    products    contractions in graph order
    softmaxes   nodes that normalise attention scores, in graph order
    frozen      classes that met an operator without a rule
    """

    model: ir.Model
    values: dict[str, Array]
    feeds: dict[str, Array]
    of: dict[str, IntArray]
    roots: IntArray
    carriers: tuple[Carrier, ...]
    products: tuple[Product, ...]
    softmaxes: tuple[ir.Node, ...]
    frozen: frozenset[int]
    refusals: tuple[Refusal, ...]

    def cloned(self) -> Labelling:
        """The same of a clone of the model, for a pass to edit; arrays are shared."""
        model = clone_of(self.model)
        twin = dict(zip(self.model.graph, model.graph, strict=True))
        products = tuple(dataclasses.replace(product, node=twin[product.node]) for product in self.products)
        softmaxes = tuple(twin[node] for node in self.softmaxes)
        return dataclasses.replace(self, model=model, products=products, softmaxes=softmaxes)

    def classes(self, labels: IntArray) -> IntArray:
        """The class of each label, -1 where there is none."""
        return np.where(labels >= 0, self.roots[labels], -1)

    def classes_in(self, labels: IntArray) -> frozenset[int]:
        """The classes that occur among these labels."""
        return frozenset(self.roots[labels_in(labels)].tolist())

    def carrier_of(self, label: int) -> Carrier:
        """The carrier that a label was born in."""
        return self.carriers[int(np.searchsorted(self._firsts, label, side="right")) - 1]

    @cached_property
    def _firsts(self) -> IntArray:
        return np.array([c.first for c in self.carriers], dtype=np.int64)

    def of_carrier(self, carrier: Carrier | None) -> IntArray:
        """The class of each position of a carrier; empty for None."""
        if carrier is None:
            return np.empty(0, dtype=np.int64)
        return self.roots[carrier.first : carrier.first + carrier.size]

    @cached_property
    def order(self) -> dict[str, int]:
        """The place of each node in the graph, by anchor."""
        return {anchor(node): i for i, node in enumerate(self.model.graph)}

    @cached_property
    def operators(self) -> frozenset[str]:
        """The types of node that there are."""
        return frozenset(node.op_type for node in self.model.graph)

    @cached_property
    def product_at(self) -> dict[str, Product]:
        """Contractions by the name of their node's first output."""
        return {anchor(p.node): p for p in self.products}

    @cached_property
    def readers(self) -> dict[int, list[Product]]:
        """By class: the contractions whose weight has rows in it, in graph order."""
        return self._by_class(lambda p: p.rows)

    @cached_property
    def writers(self) -> dict[int, list[Product]]:
        """By class: the contractions whose weight has columns in it, in graph order."""
        return self._by_class(lambda p: p.columns)

    def _by_class(self, carrier: Callable[[Product], Carrier | None]) -> dict[int, list[Product]]:
        found: dict[int, list[Product]] = {}
        for product in self.products:
            for c in np.unique(self.of_carrier(carrier(product))).tolist():
                found.setdefault(c, []).append(product)
        return found

    @cached_property
    def between(self) -> dict[int, list[ir.Node]]:
        """By class: the products of two activations whose operands carry it, in graph order."""
        found: dict[int, list[ir.Node]] = {}
        for product in self.products:
            if product.weight is None:
                labelled = [self.of[str(v.name)] for v in product.node.inputs if v is not None and v.name in self.of]
                for c in sorted(frozenset[int]().union(*map(self.classes_in, labelled))):
                    found.setdefault(c, []).append(product.node)
        return found


def label(model: ir.Model, runner: Runner, feeds: Mapping[str, Array] | None = None) -> Labelling:
    """Walk labels through a prepared model (`prepare.prepared`). `feeds` default to a small probe."""
    if feeds is None:
        feeds, values = probed(model, runner)
    else:
        values = trace(model, runner, feeds)
    walk = Walk(model, values)
    for node in model.graph:
        _step(walk, node)
    for output in model.graph.outputs:
        if walk.has(output):
            walk.frozen.extend(labels_in(walk.of[str(output.name)]).tolist())
    _freeze_captured(walk)
    roots = walk.classes.roots()
    return Labelling(
        model=model,
        values=values,
        feeds=dict(feeds),
        of=walk.of,
        roots=roots,
        carriers=tuple(walk.carriers),
        products=tuple(walk.products),
        softmaxes=tuple(walk.softmaxes),
        frozen=frozenset(roots[walk.frozen].tolist()) if walk.frozen else frozenset(),
        refusals=tuple(walk.refusals),
    )


def _freeze_captured(walk: Walk) -> None:
    """A tensor that a subgraph reads is out of the rules' sight: its channels stay whole."""
    for node in walk.model.graph.all_nodes():
        if node.graph is not walk.model.graph and any(walk.has(v) for v in node.inputs if v is not None):
            walk.freeze(node, "it reads labelled channels from inside a subgraph")


def _step(walk: Walk, node: ir.Node) -> None:
    key = operator(node)
    labelled = any(walk.has(value) for value in node.inputs if value is not None)
    record = record_of(node)
    usual = record.channels is not None or (key == node.op_type and NOT_LOWERED not in node.meta)
    if (
        not labelled and not record.bears and usual
    ):  # the others may hold weights of their own, as a fused attention does
        return
    if origin(node.outputs[0]) is not None:  # a weight on its way to its user
        return
    apply = record.channels
    if apply is None:
        why = f": {node.meta[NOT_LOWERED]}" if NOT_LOWERED in node.meta else ""
        walk.freeze(node, f"no rule for operator {key}{why}")
        return
    try:
        apply(walk, node)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError) as error:
        walk.freeze(node, f"its rule cannot follow it: {str(error).strip()[:200] or type(error).__name__}")
