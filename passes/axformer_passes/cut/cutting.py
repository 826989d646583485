"""Cut classes of labels out of a prepared graph: weights, followers, shape targets. Shapes follow from the labels.

    weight[.., n, ..]                  -> weight[.., kept, ..]         every labelled axis
    x[B,S,F] + bias[F]                 -> x[B,S,F'] + bias[F']         a constant that meets a cut tensor follows it
    x[B,H,S,S] + computed[1,H,S,S]     -> x + Gather(computed, kept)   so does a computed one without labels
    Reshape(x, [0, 0, H, E])           -> Reshape(x, [0, 0, H', E])    constant targets are written anew
    Reshape(x, computed)               -> Reshape(x, computed / H * H')  computed ones scaled, unless they follow already
    Split, Slice, Gather               -> sizes, bounds and indices of what is kept

Integers are re-evaluated with the shapes after the cut before anything is edited, so what an exporter derived from `Shape`
nodes is left alone.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.cut.batch_heads import heads_of, kept_heads
from axformer_passes.cut.follow import narrow, narrowable, scale_cuts, take
from axformer_passes.cut.shape_values import Integers, Kept, opened
from axformer_passes.errors import RecogniseError
from axformer_passes.graph import Origin, anchor, constant, fresh, initializer, operator, origin
from axformer_passes.operators import SCALED, Carrier, IntArray, distinct, record_of
from axformer_passes.probe import Array
from axformer_passes.recognise import Labelling


class Cut:
    """One cut of the classes `removed` out of `labelling.model`, in place. Raises RecogniseError before the first edit
    where an operator on the way has no edit rule for what it would lose."""

    def __init__(self, labelling: Labelling, removed: set[int]) -> None:
        self.labelling = labelling
        self.graph, self.opset = labelling.model.graph, labelling.model.opset_imports.get("", 13)
        self._gone = np.isin(labelling.roots, list(removed))
        self._kept: dict[str, Kept] = {}
        self._integers = Integers(labelling, self.kept)
        self._scales = self._scale_cuts()

    # -- what is kept --------------------------------------------------------------------------------------------

    def kept(self, value: ir.Value | None) -> Kept:
        """Positions that stay, per axis of `value` that loses some; {} where nothing goes."""
        name = str(value.name) if value is not None else ""
        labels = self.labelling.of.get(name)
        if labels is None:
            return {}
        if name not in self._kept:
            self._kept[name] = self._positions(labels)
        return self._kept[name]

    def _positions(self, labels: IntArray) -> Kept:
        labels = distinct(labels)[0]  # what is repeated along an axis goes or stays with all of it
        labelled = labels >= 0
        gone = labelled & self._gone[labels]
        if not gone.any():
            return {}
        some = [gone.any(axis=_but(axis, labels.ndim)) for axis in range(labels.ndim)]
        drops = [all_ & any_ for all_, any_ in zip(_all_others(gone | ~labelled), some, strict=True)]
        return {axis: np.flatnonzero(~drop) for axis, drop in enumerate(drops) if drop.any()}

    # -- edits ---------------------------------------------------------------------------------------------------

    def apply(self) -> bool:
        """Carry the cut out; False if nothing went."""
        if not self._gone.any():
            return False
        narrowed = [(carrier, self._kept_of(carrier)) for carrier in self.labelling.carriers]
        for carrier, kept in narrowed:
            for axis, keep in kept.items():
                take(self.graph.initializers[carrier.initializer], keep, axis)
        for value, keep, axis in self._scales:
            take(value, keep, axis)
        for node in list(self.graph):
            edit = record_of(node).cut_edit
            if edit is not None:
                edit(self, node)
        for value in [v for node in self.graph for v in node.outputs]:
            if self.kept(value):
                value.shape = _without(value.shape, self.kept(value))
            elif self._integers.resized(value):
                value.shape = opened(value.shape)
        return True

    def _kept_of(self, carrier: Carrier) -> Kept:
        """Positions that stay, per axis of a weight that loses some. Several axes together can only lose whole positions of one."""
        gone = self._gone[carrier.labels]
        if not gone.any():
            return {}
        found = {i: np.flatnonzero(~keep) for i, keep in enumerate(_all_others(gone)) if keep.any()}
        left = math.prod(len(found.get(i, range(n))) for i, n in enumerate(carrier.shape))
        if left != int((~gone).sum()):
            raise RecogniseError(
                f"{carrier.node}: channels on axes {carrier.axes} of its weight go one by one, expected whole rows"
            )
        return {carrier.axes[i]: keep for i, keep in found.items()}

    # -- what the rules of operators ask (`registry.Cutting`) ------------------------------------------------------

    def labels(self, value: ir.Value | None) -> IntArray | None:
        """The labels of a tensor before the cut; None where it has none."""
        return None if value is None else self.labelling.of.get(str(value.name))

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """The probed shape after the cut."""
        assert value is not None
        return self._integers.shape(value)

    def before(self, value: ir.Value | None) -> Array:
        """The integers that a tensor holds before the cut."""
        assert value is not None
        return np.asarray(self._integers.value(value))

    def after(self, value: ir.Value | None) -> Array:
        """The integers that it holds after the cut, of the shapes after it."""
        assert value is not None
        return self._integers.after(value)

    def follows_already(self, value: ir.Value) -> bool:
        """Do its integers come out otherwise after the cut, of themselves?"""
        return str(value.name) in self._integers.now

    def scale(self, node: ir.Node, target: ir.Value, factors: npt.NDArray[np.int64]) -> None:
        """Input 1 of `node` becomes target * factors[1] / factors[0], `target` as it was before the cut."""
        if constant(target) is not None:
            before = self.before(target)
            scaled = np.where(before > 0, before * factors[1] // factors[0], before)
            new = initializer(self.graph, f"{target.name}_cut", scaled.astype(np.int64))
        else:
            new = self._integers.scaled(node, self._integers.as_before(target), factors[0], factors[1])
        node.replace_input_with(1, new)

    def follow(self, node: ir.Node, slot: int, axis: int, keep: IntArray) -> None:
        """Narrow input `slot` to the positions `keep` of `axis` (from the right), unless it is labelled, broadcast or narrow."""
        value = node.inputs[slot]
        if value is None or value.name in self.labelling.of:
            return
        found = origin(value)
        shape = _constant_shape(found) if found else np.shape(self._integers.value(value))
        if -axis > len(shape) or shape[axis] == 1:
            return
        if shape[axis] == len(keep) if found else self._is_right(value, axis, len(keep)):
            return
        if narrowable(value, axis, self._spans):
            narrow(value, axis, keep, self._spans)
            return
        value = self._integers.as_before(value)
        heads = heads_of(self.labelling.of[anchor(node)], len(shape) + axis) if len(shape) == self._rank(node) else None
        if heads is not None:
            node.replace_input_with(slot, kept_heads(self.graph, node, value, keep, heads))
            return
        out = ir.Value(name=fresh(self.graph, f"{value.name}_kept"), type=value.type)
        indices = initializer(self.graph, f"{value.name}_kept_index", keep.astype(np.int64))
        gather = ir.node("Gather", [value, indices], {"axis": len(shape) + axis}, outputs=[out])
        self.graph.insert_before(node, gather)
        node.replace_input_with(slot, out)

    def _is_right(self, value: ir.Value, axis: int, count: int) -> bool:
        """Does a computed tensor come out right of shapes that the cut changes? What differs from head to head never does."""
        return self.shape(value)[axis] == count and not self._integers.varies(value, axis)

    def _rank(self, node: ir.Node) -> int:
        return self.labelling.of[anchor(node)].ndim if anchor(node) in self.labelling.of else -1

    def _spans(self, value: ir.Value, axis: int) -> bool:
        """Has an unlabelled tensor more than one position on `axis` (from the right)?"""
        found = origin(value)
        shape = _constant_shape(found) if found else self.shape(value)
        return str(value.name) not in self.labelling.of and -axis <= len(shape) and shape[axis] != 1

    def _scale_cuts(self) -> list[tuple[ir.Value, IntArray, int]]:
        """Scales and zero points of weights, with what stays of them on which axis; blocks of values go whole."""
        carriers: dict[str, list[Carrier]] = {}
        for carrier in self.labelling.carriers:
            if self._gone[carrier.labels].any():
                carriers.setdefault(carrier.initializer, []).append(carrier)
        cuts = []
        for node in self.graph:
            found = origin(node.inputs[0]) if operator(node) in SCALED and carriers else None
            for carrier in carriers.get(str(found.value.name), ()) if found is not None else ():
                for axis, keep in self._kept_of(carrier).items():
                    cuts += scale_cuts(node, found.axes.index(axis), keep)  # type: ignore[union-attr]
        return cuts


def _without(shape: ir.Shape | None, kept: Kept) -> ir.Shape | None:
    """A stated shape after the cut; an axis that was not a number (batch x heads) is left open."""
    if shape is None:
        return None
    dims: list[int | str | None] = [d if isinstance(d, int) else d.value for d in shape]
    for axis, keep in kept.items():
        dims[axis] = len(keep) if isinstance(dims[axis], int) else None
    return ir.Shape(dims)


def _but(axis: int, rank: int) -> tuple[int, ...]:
    return tuple(i for i in range(rank) if i != axis)


def _all_others(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.bool_]]:
    """For each axis: at which of its positions `mask` holds everywhere."""
    return [np.asarray(mask.all(axis=_but(axis, mask.ndim))) for axis in range(mask.ndim)]


def _constant_shape(found: Origin) -> tuple[int, ...]:
    assert found.value.const_value is not None
    shape = [int(n) for n in found.value.const_value.shape]  # type: ignore[arg-type]
    return tuple(shape[a] for a in found.axes)
