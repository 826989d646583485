"""Channel labels: which positions of which tensors must be removed together.

Labels are born in the weights of contractions alone: every row and every column of a MatMul, Gemm or Conv weight gets an
integer. A label array per tensor, of the tensor's own (probed) shape, carries them through the graph, one rule per
operator (`rules.py`). Where labels meet they are united; the classes of the union-find are what must be cut together.
A constant that meets labels elementwise (bias, scale, rotary table, relative positions) gets no labels: it *follows*
the tensor that it meets, and is sliced where it spans a removed position (`cut.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.anatomy import Refusal
from axformer_passes.prepare import constant, origin
from axformer_passes.trace import Array, Runner, probed, trace

IntArray = npt.NDArray[np.int64]


class Classes:
    """A union-find over labels 0, 1, 2, ...; the label -1 means "none" and is never united."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def new(self, count: int) -> IntArray:
        """`count` labels, each a class of its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def find(self, label: int) -> int:
        """The representative of `label`'s class: its smallest label."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def unite(self, a: IntArray, b: IntArray) -> None:
        """Unite a[i] with b[i] for every i of two arrays of one shape."""
        both = (a >= 0) & (b >= 0) & (a != b)
        pairs = np.stack([a[both], b[both]], axis=1)
        for x, y in np.unique(pairs, axis=0).tolist():
            x, y = self.find(x), self.find(y)
            if x != y:
                self._parent[max(x, y)] = min(x, y)

    def roots(self) -> IntArray:
        """int64[labels]: the representative of every label."""
        return np.array([self.find(i) for i in range(len(self._parent))], dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class Carrier:
    """One labelled axis of one weight: position i has the label first + i."""

    initializer: str
    axis: int
    first: int
    size: int
    node: str
    role: str  # "row" (reads) or "column" (writes)


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
    tied        classes that a normalisation or reduction ties together
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
    tied: frozenset[int]
    frozen: frozenset[int]
    refusals: tuple[Refusal, ...]

    def classes(self, labels: IntArray) -> IntArray:
        """The class of each label, -1 where there is none."""
        return np.where(labels >= 0, self.roots[labels], -1)

    def carrier_of(self, label: int) -> Carrier:
        """The carrier that a label was born in."""
        firsts = [c.first for c in self.carriers]
        return self.carriers[int(np.searchsorted(firsts, label, side="right")) - 1]


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
        self.tied: list[int] = []
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
        if (labels >= 0).any():
            self.of[str(value.name)] = np.broadcast_to(labels, self.shape(value))

    def born(self, weight: ir.Value, axis: int, node: ir.Node, role: str) -> Carrier:
        """New labels for one axis of a weight."""
        size = int(weight.const_value.shape[axis])  # type: ignore[union-attr,arg-type]
        first = self.classes.new(size)
        carrier = Carrier(str(weight.name), axis, int(first[0]) if size else 0, size, anchor(node), role)
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
            out = np.where(a >= 0, a, b)
        assert out is not None
        return out

    def tie(self, labels: IntArray, axis: int, *, mark: bool = False) -> None:
        """Unite all labels along `axis`; `mark` remembers classes that were really tied (norms, reductions)."""
        moved = np.moveaxis(labels, axis, -1)
        if moved.shape[-1] < 2:
            return
        first = np.broadcast_to(any_along(moved, -1), moved.shape)
        if mark:
            differ = (moved != first) & (moved >= 0) & (first >= 0)
            self.tied.extend(np.unique(moved[differ]).tolist())
        self.classes.unite(moved, first)

    def freeze(self, node: ir.Node, reason: str) -> None:
        """No rule for this node: whatever enters it stays whole."""
        for value in node.inputs:
            if value is not None and self.has(value):
                self.frozen.extend(np.unique(self.of[str(value.name)]).tolist())
        self.refusals.append(Refusal(anchor(node), node.op_type, reason))


def any_along(labels: IntArray, axis: int) -> IntArray:
    """One label of those along `axis` (kept, of size 1): the first position may have none, behind padding or a prefix."""
    return np.asarray(labels.max(axis=axis, keepdims=True))


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
    from axformer_passes import rules

    if feeds is None:
        feeds, values = probed(model, runner)
    else:
        values = trace(model, runner, feeds)
    walk = Walk(model, values)
    for node in model.graph:
        _step(walk, node, rules.BEARERS)
    for output in model.graph.outputs:
        if walk.has(output):
            walk.frozen.extend(np.unique(walk.of[str(output.name)]).tolist())
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
        tied=frozenset(roots[[i for i in walk.tied if i >= 0]].tolist()) if walk.tied else frozenset(),
        frozen=frozenset(roots[[i for i in walk.frozen if i >= 0]].tolist()) if walk.frozen else frozenset(),
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
    if not labelled and key not in bearers:
        return
    if origin(node.outputs[0]) is not None:  # a weight on its way to its user
        return
    apply = RULES.get(key)
    if apply is None:
        walk.freeze(node, f"no rule for operator {key}")
        return
    try:
        apply(walk, node)
    except (ValueError, IndexError, KeyError, TypeError) as error:
        walk.freeze(node, f"its rule cannot follow it: {str(error).strip()[:200] or type(error).__name__}")
