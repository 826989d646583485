"""Channel labels: which positions of which tensors must be removed together.

Labels are born in the weights of contractions alone: every row and every column of a MatMul, Gemm or Conv weight gets an
integer. A label array per tensor, of the tensor's own (probed) shape, carries them through the graph, one rule per
operator (`rules.py`). Where labels meet they are united; the classes of the union-find are what must be cut together.
A constant that meets labels elementwise (bias, scale, rotary table, relative positions) gets no labels: it *follows*
the tensor that it meets, and is sliced where it spans a removed position (`cut.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.anatomy import Refusal
from axformer_passes.fused.lowering import NOT_LOWERED
from axformer_passes.prepare import constant, origin
from axformer_passes.trace import Array, Runner, probed, trace

IntArray = npt.NDArray[np.int64]


class Classes:
    """A union-find over labels 0, 1, 2, ...; the label -1 means "none" and is never united.

    A class is a tree of parents below its smallest label; whole arrays are looked up and united at once.
    """

    def __init__(self) -> None:
        self._parent: IntArray = np.arange(64)
        self._count = 0

    def new(self, count: int) -> IntArray:
        """`count` labels, each a class of its own."""
        start, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            more = np.arange(len(self._parent), 2 * self._count)
            self._parent = np.concatenate([self._parent, more])
        return np.arange(start, self._count)

    def find(self, labels: IntArray) -> IntArray:
        """The representative of each label's class: its smallest label."""
        found = self._parent[labels]
        while ((above := self._parent[found]) != found).any():
            found = above
        self._parent[labels] = found
        return found

    def unite(self, a: IntArray, b: IntArray) -> None:
        """Unite a[i] with b[i] for every i of two arrays of one shape."""
        a, b = distinct(a, b)
        both = (a >= 0) & (b >= 0) & (a != b)
        if not both.any():
            return
        a, b = self.find(a[both]), self.find(b[both])
        while (apart := a != b).any():
            a, b = a[apart], b[apart]
            np.minimum.at(
                self._parent, np.maximum(a, b), np.minimum(a, b)
            )  # of several at one label the smallest stays
            a, b = self.find(a), self.find(b)

    def roots(self) -> IntArray:
        """int64[labels]: the representative of every label."""
        return self.find(np.arange(self._count))


def labels_in(labels: IntArray) -> IntArray:
    """int64[n]: the labels that occur, ascending."""
    few = distinct(labels)[0]
    return np.unique(few[few >= 0])


def distinct(*arrays: IntArray) -> tuple[IntArray, ...]:
    """Arrays of one shape without the axes that all of them merely repeat (views of a broadcast): the same entries meet, once."""
    repeated = [all(x.strides[axis] == 0 for x in arrays) for axis in range(arrays[0].ndim)]
    if not any(repeated) or 0 in arrays[0].shape:
        return arrays
    once = tuple(slice(1) if r else slice(None) for r in repeated)
    return tuple(x[once] for x in arrays)


@dataclasses.dataclass(frozen=True)
class Carrier:
    """The labelled axes of one weight, one in most: position (i, j, ..) of `axes` has the label first + its place in C order.

    role   "row" (reads) or "column" (writes)
    """

    initializer: str
    axes: tuple[int, ...]
    first: int
    shape: tuple[int, ...]
    node: str
    role: str

    @property
    def size(self) -> int:
        """How many labels there are."""
        return math.prod(self.shape)

    @property
    def labels(self) -> IntArray:
        """int64[shape]: the labels."""
        return (self.first + np.arange(self.size)).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Product:
    """One contraction: `weight` is the initializer's name, None for activation x activation."""

    node: ir.Node
    weight: str | None
    rows: Carrier | None
    columns: Carrier | None


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


class Walk:
    """The state of one walk, as the rules see it."""

    def __init__(self, model: ir.Model, values: Mapping[str, Array]) -> None:
        self.model = model
        self.values = values
        self.classes = Classes()
        self.of: dict[str, IntArray] = {}
        self.carriers: list[Carrier] = []
        self.products: list[Product] = []
        self.softmaxes: list[ir.Node] = []
        self.frozen: list[int] = []
        self.refusals: list[Refusal] = []

    # -- reading -------------------------------------------------------------------------------------------------

    def has(self, value: ir.Value | None) -> bool:
        """Does this tensor carry labels?"""
        return value is not None and value.name in self.of

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The probed shape."""
        if str(value.name) in self.values:
            return tuple(self.values[str(value.name)].shape)
        behind = origin(value)
        if behind is None or behind.value.const_value is None:
            raise KeyError(value.name)
        shape = tuple(int(n) for n in behind.value.const_value.shape)  # type: ignore[arg-type]
        return tuple(shape[a] for a in behind.axes)

    def labels(self, value: ir.Value | None) -> IntArray:
        """The label array; all -1 for a tensor without labels. The operator's specification demands the input."""
        assert value is not None
        if self.has(value):
            return self.of[str(value.name)]
        return np.full(self.shape(value), -1, dtype=np.int64)

    def integers(self, value: ir.Value | None) -> IntArray | None:
        """The concrete value of an integer tensor, constant or probed; None where the input is missing."""
        if value is None:
            return None
        array = constant(value)
        return np.asarray(self.values[str(value.name)] if array is None else array).astype(np.int64)

    # -- writing -------------------------------------------------------------------------------------------------

    def put(self, value: ir.Value, labels: IntArray) -> None:
        """Give `value` its label array (broadcast to its probed shape); all -1 is the same as none."""
        if (distinct(labels)[0] >= 0).any():
            self.of[str(value.name)] = np.broadcast_to(labels, self.shape(value))

    def born(self, weight: ir.Value, axes: int | tuple[int, ...], node: ir.Node, role: str) -> Carrier:
        """New labels for one axis of a weight, or for several together."""
        axes = (axes,) if isinstance(axes, int) else axes
        shape = tuple(int(weight.const_value.shape[axis]) for axis in axes)  # type: ignore[union-attr,arg-type]
        first = self.classes.new(math.prod(shape))
        carrier = Carrier(str(weight.name), axes, int(first[0]) if first.size else 0, shape, anchor(node), role)
        self.carriers.append(carrier)
        return carrier

    def meet(self, arrays: Iterable[IntArray]) -> IntArray:
        """Unite arrays of labels elementwise (broadcasting) and return the union."""
        out: IntArray | None = None
        for labels in arrays:
            if out is None:
                out = labels
                continue
            a, b = np.broadcast_arrays(out, labels)
            self.classes.unite(a, b)
            out = a if (distinct(a)[0] >= 0).all() else np.where(a >= 0, a, b)
        assert out is not None
        return out

    def tie(self, labels: IntArray, axis: int) -> None:
        """Unite all labels along `axis`."""
        moved = np.moveaxis(labels, axis, -1)
        if moved.shape[-1] > 1:
            self.classes.unite(moved, np.broadcast_to(any_along(moved, -1), moved.shape))

    def freeze(self, node: ir.Node, reason: str) -> None:
        """No rule for this node: whatever enters it stays whole."""
        for value in node.inputs:
            if value is not None and self.has(value):
                self.frozen.extend(labels_in(self.of[str(value.name)]).tolist())
        self.refusals.append(Refusal(anchor(node), node.op_type, reason))


def any_along(labels: IntArray, axis: int) -> IntArray:
    """One label of those along `axis` (kept, of size 1): the first position may have none, behind padding or a prefix."""
    shape = list(labels.shape)
    shape[axis] = 1
    return np.broadcast_to(distinct(labels)[0].max(axis=axis, keepdims=True), shape)


Rule = Callable[[Walk, ir.Node], None]
RULES: dict[str, Rule] = {}
"""One rule per operator, by type; `com.microsoft` operators by "com.microsoft::Type"."""


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def anchor(node: ir.Node) -> str:
    """A node's identity: the name of its first output (node names may be missing or repeated)."""
    return str(node.outputs[0].name)


def operator(node: ir.Node) -> str:
    """The key of a node in a table of operators."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def label(model: ir.Model, runner: Runner, feeds: Mapping[str, Array] | None = None) -> Labelling:
    """Walk labels through a prepared model (`prepare.prepared`). `feeds` default to a small probe."""
    from axformer_passes import rules  # noqa: F401  (fills the table)
    from axformer_passes.rules.contraction import BEARERS

    if feeds is None:
        feeds, values = probed(model, runner)
    else:
        values = trace(model, runner, feeds)
    walk = Walk(model, values)
    for node in model.graph:
        _step(walk, node, BEARERS)
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


def _step(walk: Walk, node: ir.Node, bearers: frozenset[str]) -> None:
    key = operator(node)
    labelled = any(walk.has(value) for value in node.inputs if value is not None)
    usual = key in RULES or (key == node.op_type and NOT_LOWERED not in node.meta)
    if (
        not labelled and key not in bearers and usual
    ):  # the others may hold weights of their own, as a fused attention does
        return
    if origin(node.outputs[0]) is not None:  # a weight on its way to its user
        return
    apply = RULES.get(key)
    if apply is None:
        why = f": {node.meta[NOT_LOWERED]}" if NOT_LOWERED in node.meta else ""
        walk.freeze(node, f"no rule for operator {key}{why}")
        return
    try:
        apply(walk, node)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError) as error:
        walk.freeze(node, f"its rule cannot follow it: {str(error).strip()[:200] or type(error).__name__}")
