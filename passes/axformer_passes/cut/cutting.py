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
from axformer_passes.cut.follow import SCALED, narrow, narrowable, scale_cuts, take
from axformer_passes.cut.shape_values import Integers, Kept, opened
from axformer_passes.errors import RecogniseError
from axformer_passes.graph import Origin, anchor, constant, fresh, initializer, operator, origin
from axformer_passes.operators import FOLLOWING, NARY, Carrier, IntArray, distinct
from axformer_passes.recognise import Labelling


class Cut:
    """One cut of the classes `removed` out of `labelling.model`, in place. Raises RecogniseError before the first edit
    where an operator on the way has no edit rule for what it would lose."""

    def __init__(self, labelling: Labelling, removed: set[int]) -> None:
        self.labelling = labelling
        self.graph = labelling.model.graph
        self._gone = np.isin(labelling.roots, list(removed))
        self._kept: dict[str, Kept] = {}
        self._integers = Integers(labelling, self.kept)
        self.shape = self._integers.shape
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
            self._edit(node)
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

    def _edit(self, node: ir.Node) -> None:
        key = operator(node)
        if key in NARY or key in ("Concat", "GatherElements"):
            self._follow(node)
        elif key in ("Reshape", "Expand"):
            self._retarget(node)
        elif key == "Tile":
            self._tile(node)
        elif node.op_type == "RotaryEmbedding":
            self._rotary(node)
        elif key == "Split":
            self._split(node)
        elif key == "Slice":
            self._slice(node)
        elif key == "Gather":
            self._gather(node)
        elif key in FOLLOWING:
            self._beside(node)
            self._regroup(node)
        elif key == "MatMul":
            self._batched(node)
        elif key in SCALED:
            self._rescale(node)

    def _follow(self, node: ir.Node) -> None:
        out, rank = self.kept(node.outputs[0]), len(self.labelling.of.get(anchor(node), np.empty(0)).shape)
        skip = node.attributes.get_int("axis") % rank if node.op_type == "Concat" and rank else None
        for axis, keep in out.items():
            for slot, value in enumerate(node.inputs):
                if value is not None and axis != skip:
                    self._follow_one(node, slot, value, axis - rank, keep)

    def _follow_one(self, node: ir.Node, slot: int, value: ir.Value, axis: int, keep: IntArray) -> None:
        """Slice operand `value` on `axis` (from the right) unless it is labelled, broadcast or sliced already."""
        if value.name in self.labelling.of:
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

    def _batched(self, node: ir.Node) -> None:
        """A product's operand without labels (positions, projected in advance) follows on the axes that are not multiplied."""
        rank = self._rank(node)
        for axis, keep in self.kept(node.outputs[0]).items():
            for slot, value in enumerate(node.inputs):
                if value is not None and axis < rank - 2:
                    self._follow_one(node, slot, value, axis - rank, keep)

    def _beside(self, node: ir.Node) -> None:
        """Bias, scales and zero points of a contraction, per column or per row, follow its output."""
        labels = self.labelling.of.get(anchor(node))
        if labels is None:
            return
        kept = self.kept(node.outputs[0])
        for slot, axis, own in FOLLOWING[node.op_type]:
            value = node.inputs[slot] if slot < len(node.inputs) else None
            keep = kept.get(axis % labels.ndim)
            if value is not None and keep is not None:
                self._follow_one(node, slot, value, own, keep)

    def _regroup(self, node: ir.Node) -> None:
        """The channels of a group have one label, so whole groups go: as many are left as there are channels for."""
        keep = self.kept(node.outputs[0]).get(1)
        if keep is not None and "num_groups" in node.attributes:
            size = self.labelling.of[anchor(node)].shape[1] // node.attributes.get_int("num_groups")
            node.attributes["num_groups"] = ir.AttrInt64("num_groups", len(keep) // size)

    def _retarget(self, node: ir.Node) -> None:
        kept, target = self.kept(node.outputs[0]), node.inputs[1]
        if not kept or target is None:
            return
        integers = self._integers
        before, now = np.asarray(integers.value(target)), integers.after(target)
        old, new = self.labelling.of[anchor(node)].shape, self.shape(node.outputs[0])
        offset = len(old) - len(before)
        factors = np.ones((2, len(before)), dtype=np.int64)
        wrong = False
        for axis in kept:
            i = axis - offset
            if i < 0 or before[i] in (0, -1) or (node.op_type == "Expand" and before[i] == 1):
                continue
            wrong = wrong or now[i] != new[axis]
            factors[:, i] = old[axis], new[axis]
        if wrong:
            self._replace(node, target, factors)

    def _replace(self, node: ir.Node, target: ir.Value, factors: npt.NDArray[np.int64]) -> None:
        """Input 1 of `node` becomes target * factors[1] / factors[0], `target` as it was before the cut."""
        before = np.asarray(self._integers.value(target))
        if constant(target) is not None:
            scaled = np.where(before > 0, before * factors[1] // factors[0], before)
            new = initializer(self.graph, f"{target.name}_cut", scaled.astype(np.int64))
        else:
            new = self._integers.scaled(node, self._integers.as_before(target), factors[0], factors[1])
        node.replace_input_with(1, new)

    def _tile(self, node: ir.Node) -> None:
        source, repeats = node.inputs[0], node.inputs[1]
        assert source is not None and repeats is not None
        if not self.kept(node.outputs[0]) and str(repeats.name) not in self._integers.now:
            return
        new, inner = np.array(self.shape(node.outputs[0])), np.array(self.shape(source))
        wanted = new // np.maximum(inner, 1)
        if not np.array_equal(wanted, self._integers.after(repeats)):
            self._replace(node, repeats, np.stack([self._integers.value(repeats), wanted]))

    def _rotary(self, node: ir.Node) -> None:
        """`num_heads` becomes the number of heads that stay; with it absent the shapes say it all."""
        labels, heads = self.labelling.of.get(anchor(node)), node.attributes.get_int("num_heads", 0)
        if labels is not None and heads:
            axis = 1 if labels.ndim == 4 else 2
            left = heads * self.shape(node.outputs[0])[axis] // labels.shape[axis]
            node.attributes["num_heads"] = ir.AttrInt64("num_heads", left)

    def _split(self, node: ir.Node) -> None:
        axis = node.attributes.get_int("axis", 0)
        if axis < 0:
            axis += self.labelling.of[anchor(node)].ndim if anchor(node) in self.labelling.of else 0
        if not any(axis in self.kept(v) for v in node.outputs):
            return
        sizes = np.array([self.shape(v)[axis] for v in node.outputs], dtype=np.int64)
        if self.labelling.model.opset_imports.get("", 13) < 13:
            node.attributes["split"] = ir.AttrInt64s("split", sizes.tolist())
            return
        node.attributes.pop("num_outputs", None)
        if len(node.inputs) < 2:
            node.resize_inputs(2)
        node.replace_input_with(1, initializer(self.graph, f"{anchor(node)}_split", sizes))

    def _slice(self, node: ir.Node) -> None:
        source = node.inputs[0]
        kept = self.kept(source)
        if not kept or source is None or "starts" in node.attributes:
            return
        rank = len(self.labelling.of[str(source.name)].shape)
        before = [np.asarray(self._integers.value(v)).reshape(-1) for v in node.inputs[1:3] if v is not None]
        axes = (
            np.asarray(self._integers.value(node.inputs[3])) % rank if len(node.inputs) > 3 and node.inputs[3] else None
        )
        axes = np.arange(len(before[0])) if axes is None else axes
        steps = np.asarray(self._integers.value(node.inputs[4])) if len(node.inputs) > 4 and node.inputs[4] else None
        if steps is not None and any(a in kept and step != 1 for a, step in zip(axes.tolist(), steps, strict=True)):
            self._strided(node, source, list(zip(axes.tolist(), *before, steps, strict=True)))
            return
        for slot, (value, bounds) in enumerate(zip(node.inputs[1:3], before, strict=True), start=1):
            assert value is not None
            new = self._bounds(source, axes, bounds)
            ends = np.array([self.shape(source)[axis] for axis in axes.tolist()])
            now = np.asarray(self._integers.now.get(str(value.name), bounds)).reshape(-1)
            if np.array_equal(np.minimum(new, ends), np.minimum(now, ends)):
                continue
            if constant(value) is None:
                raise RecogniseError(f"{anchor(node)}: Slice with computed bounds on an axis that would be cut")
            node.replace_input_with(slot, initializer(self.graph, f"{value.name}_cut", new))

    def _strided(self, node: ir.Node, source: ir.Value, parts: list[tuple[int, int, int, int]]) -> None:
        """Slice with steps -> one Gather of what is kept for each axis that it names."""
        x, shape = source, self.labelling.of[str(source.name)].shape
        for axis, start, end, step in parts:
            if axis not in self.kept(source):
                raise RecogniseError(f"{anchor(node)}: Slice with steps on a cut axis, and of axis {axis} besides")
            keep = self.kept(source)[axis]
            until = None if step < 0 and end < -shape[axis] else end
            chosen = np.arange(shape[axis])[start:until:step]
            indices = np.searchsorted(keep, chosen[np.isin(chosen, keep)]).astype(np.int64)
            out = ir.Value(name=fresh(self.graph, f"{anchor(node)}_strided"), type=source.type)
            inputs = [x, initializer(self.graph, f"{anchor(node)}_index", indices)]
            self.graph.insert_before(node, ir.node("Gather", inputs, {"axis": axis}, outputs=[out]))
            x = out
        out, name = node.outputs[0], node.outputs[0].name
        out.replace_all_uses_with(x)
        self.graph.remove(node, safe=True)
        x.name = name  # later edits look its labels up by name

    def _bounds(self, source: ir.Value, axes: IntArray, bounds: IntArray) -> IntArray:
        """Each bound moved to where it stands among the kept positions."""
        shape, kept, new = (
            self.labelling.of[str(source.name)].shape,
            self.kept(source),
            bounds.astype(np.int64).copy(),
        )
        for i, axis in enumerate(axes.tolist()):
            if axis in kept and -shape[axis] < bounds[i] < shape[axis]:
                new[i] = int(np.searchsorted(kept[axis], int(bounds[i]) % shape[axis]))
        return new

    def _gather(self, node: ir.Node) -> None:
        source, axis = node.inputs[0], node.attributes.get_int("axis", 0)
        if source is None or source.name not in self.labelling.of:
            return
        keep = self.kept(source).get(axis % self.labelling.of[str(source.name)].ndim)
        if keep is None:
            return
        indices = constant(node.inputs[1])
        if indices is None:
            raise RecogniseError(f"{anchor(node)}: Gather with computed indices on an axis that would be cut")
        size = self.labelling.of[str(source.name)].shape[axis]
        flat = np.asarray(indices).astype(np.int64) % size
        if flat.ndim == 0:
            new = np.searchsorted(keep, flat)
        else:
            new = np.searchsorted(keep, flat[np.isin(flat, keep)])
        node.replace_input_with(1, initializer(self.graph, f"{anchor(node)}_index", np.asarray(new, dtype=np.int64)))

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

    def _rescale(self, node: ir.Node) -> None:
        """Scales per channel of an activation follow it."""
        labels = self.labelling.of.get(anchor(node))
        axis = node.attributes.get_int("axis", 1)
        keep = self.kept(node.outputs[0]).get(axis % labels.ndim) if labels is not None and labels.ndim else None
        for slot, value in enumerate(node.inputs[1:], start=1):
            if keep is not None and value is not None:
                self._follow_one(node, slot, value, -1, keep)


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
