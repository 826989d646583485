"""Cut classes of labels out of a prepared graph: weights, followers, shape targets. Shapes follow from the labels.

    weight[.., n, ..]                  -> weight[.., kept, ..]         every labelled axis
    x[B,S,F] + bias[F]                 -> x[B,S,F'] + bias[F']         a constant that meets a cut tensor follows it
    x[B,H,S,S] + computed[1,H,S,S]     -> x + Gather(computed, kept)   so does a computed one without labels
    Reshape(x, [0, 0, H, E])           -> Reshape(x, [0, 0, H', E])    constant targets are written anew
    Reshape(x, computed)               -> Reshape(x, computed / H * H')  computed ones scaled, unless they follow already
    Split, Slice, Gather, Attention    -> sizes, bounds, indices and head counts of what is kept

Integers are re-evaluated with the shapes after the cut before anything is edited, so what an exporter derived from `Shape`
nodes is left alone.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from axformer_passes.errors import RecogniseError
from axformer_passes.labels import IntArray, Labelling, anchor, operator
from axformer_passes.prepare import Origin, constant, fresh, initializer, origin
from axformer_passes.rules import NARY, by_heads
from axformer_passes.trace import Array

Kept = dict[int, IntArray]
"""axis -> positions that stay, for the axes that lose any."""


class Cut:
    """One cut of the classes `removed` out of `labelling.model`, in place. Raises RecogniseError before the first edit
    where an operator on the way has no edit rule for what it would lose."""

    def __init__(self, labelling: Labelling, removed: set[int]) -> None:
        self.labelling = labelling
        self.graph = labelling.model.graph
        self._gone = np.isin(labelling.roots, list(removed))
        self._kept: dict[str, Kept] = {}
        self._now = self._reevaluated()

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
        labelled = labels >= 0
        gone = labelled & self._gone[labels]
        if not gone.any():
            return {}
        kept = {}
        for axis in range(labels.ndim):
            others = tuple(i for i in range(labels.ndim) if i != axis)
            drop = (gone | ~labelled).all(axis=others) & gone.any(axis=others)
            if drop.any():
                kept[axis] = np.flatnonzero(~drop)
        return kept

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The shape of a labelled or re-evaluated tensor after the cut, on the probe."""
        name = str(value.name)
        if name in self._now:
            return tuple(self._now[name].shape)
        before = self.labelling.of[name].shape if name in self.labelling.of else np.shape(self._value(value))
        kept = self.kept(value)
        return tuple(len(kept[i]) if i in kept else n for i, n in enumerate(before))

    def _value(self, value: ir.Value) -> Array:
        array = constant(value)
        return np.asarray(self.labelling.values[str(value.name)]) if array is None else array

    # -- integers ------------------------------------------------------------------------------------------------

    def _reevaluated(self) -> dict[str, Array]:
        """Unlabelled tensors that depend on a shape which the cut changes, with their values after it."""
        self._now = {}
        for node in self.graph:
            source = node.inputs[0] if node.inputs else None
            if node.op_type == "Shape" and source is not None and (self.kept(source) or source.name in self._now):
                start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", 10**9)
                self._now[anchor(node)] = np.array(self.shape(source)[start:end], dtype=np.int64)
            elif any(v is not None and v.name in self._now for v in node.inputs) and not any(
                v.name in self.labelling.of for v in node.outputs
            ):
                self._evaluate(node)
        return self._now

    def _evaluate(self, node: ir.Node) -> None:
        feeds = {
            str(v.name): self._now[str(v.name)] if v.name in self._now else self._value(v)
            for v in node.inputs
            if v is not None
        }
        try:
            outputs = _reference(node, feeds, self.labelling.model.opset_imports)
        except Exception as error:  # the reference evaluator raises what it likes
            raise RecogniseError(
                f"{anchor(node)}: {node.op_type} depends on a shape that the cut changes and cannot be "
                f"evaluated again: {error}"
            ) from None
        self._now.update({str(v.name): a for v, a in zip(node.outputs, outputs, strict=False) if v.name})

    # -- edits ---------------------------------------------------------------------------------------------------

    def apply(self) -> bool:
        """Carry the cut out; False if nothing went."""
        if not self._gone.any():
            return False
        for carrier in self.labelling.carriers:
            keep = np.flatnonzero(~self._gone[carrier.first : carrier.first + carrier.size])
            if len(keep) < carrier.size:
                take(self.graph.initializers[carrier.initializer], keep, carrier.axis)
        for node in list(self.graph):
            self._edit(node)
        for value in [v for node in self.graph for v in node.outputs]:
            if self.kept(value):
                value.shape = None
        return True

    def _edit(self, node: ir.Node) -> None:
        key = operator(node)
        if key in NARY or key == "Concat":
            self._follow(node)
        elif key in ("Reshape", "Expand"):
            self._retarget(node)
        elif key == "Split":
            self._split(node)
        elif key == "Slice":
            self._slice(node)
        elif key == "Gather":
            self._gather(node)
        elif key in ("Gemm", "Conv"):
            self._bias(node)
        elif key == "Attention":
            self._attention(node)
        elif key == "DequantizeLinear":
            self._scales(node)

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
        shape = _constant_shape(found) if found else self.shape(value)
        if -axis > len(shape) or shape[axis] == 1 or shape[axis] == len(keep):
            return
        if found is not None:
            take(found.value, keep, found.axes[axis])
            return
        out = ir.Value(name=fresh(self.graph, f"{value.name}_kept"), type=value.type)
        indices = initializer(self.graph, f"{value.name}_kept_index", keep.astype(np.int64))
        gather = ir.node("Gather", [value, indices], {"axis": len(shape) + axis}, outputs=[out])
        self.graph.insert_before(node, gather)
        node.replace_input_with(slot, out)

    def _bias(self, node: ir.Node) -> None:
        if len(node.inputs) < 3 or node.inputs[2] is None:
            return
        labels = self.labelling.of.get(anchor(node))
        axis = 1 if node.op_type == "Conv" else (labels.ndim - 1 if labels is not None else 0)
        keep = self.kept(node.outputs[0]).get(axis)
        if keep is not None:
            self._follow_one(node, 2, node.inputs[2], -1, keep)

    def _retarget(self, node: ir.Node) -> None:
        kept, target = self.kept(node.outputs[0]), node.inputs[1]
        if not kept or target is None:
            return
        before = np.asarray(self._value(target))
        now = np.asarray(self._now.get(str(target.name), before)).copy()
        old, new = self.labelling.of[anchor(node)].shape, self.shape(node.outputs[0])
        offset = len(old) - len(now)
        factors = np.ones((2, len(now)), dtype=np.int64)
        for axis in kept:
            i = axis - offset
            if i < 0 or now[i] in (0, -1, new[axis]) or (node.op_type == "Expand" and now[i] == 1):
                continue
            common = math.gcd(old[axis], new[axis])
            factors[:, i] = old[axis] // common, new[axis] // common
        if (factors == 1).all():
            return
        if constant(target) is not None:
            scaled = np.where(now > 0, now // factors[0] * factors[1], now)
            node.replace_input_with(1, initializer(self.graph, f"{target.name}_cut", scaled.astype(np.int64)))
        else:
            node.replace_input_with(1, self._scaled(node, target, factors))

    def _scaled(self, node: ir.Node, target: ir.Value, factors: npt.NDArray[np.int64]) -> ir.Value:
        """target / factors[0] * factors[1], computed at run time."""
        for kind, factor in zip(("Div", "Mul"), factors, strict=True):
            by = initializer(self.graph, f"{target.name}_{kind.lower()}_by", factor)
            out = ir.Value(name=fresh(self.graph, f"{target.name}_{kind.lower()}"), type=target.type)
            self.graph.insert_before(node, ir.node(kind, [target, by], outputs=[out]))
            target = out
        return target

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
        before = [np.asarray(self._value(v)).reshape(-1) for v in node.inputs[1:3] if v is not None]
        axes = np.asarray(self._value(node.inputs[3])) % rank if len(node.inputs) > 3 and node.inputs[3] else None
        axes = np.arange(len(before[0])) if axes is None else axes
        steps = np.asarray(self._value(node.inputs[4])) if len(node.inputs) > 4 and node.inputs[4] else None
        if steps is not None and any(a in kept and step != 1 for a, step in zip(axes.tolist(), steps, strict=True)):
            self._strided(node, source, list(zip(axes.tolist(), *before, steps, strict=True)))
            return
        for slot, (value, bounds) in enumerate(zip(node.inputs[1:3], before, strict=True), start=1):
            assert value is not None
            new = self._bounds(source, axes, bounds)
            if np.array_equal(new, np.asarray(self._now.get(str(value.name), bounds)).reshape(-1)):
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

    def _scales(self, node: ir.Node) -> None:
        """A quantised weight that was narrowed on the axis of its scales takes them along."""
        found = origin(node.inputs[0])
        scale = origin(node.inputs[1])
        if found is None or scale is None or _constant_shape(scale) in ((), (1,)):
            return
        axis = found.axes[node.attributes.get_int("axis", 1)]
        for carrier in self.labelling.carriers:
            if carrier.initializer == found.value.name and carrier.axis == axis:
                keep = np.flatnonzero(~self._gone[carrier.first : carrier.first + carrier.size])
                for value in node.inputs[1:]:
                    if len(keep) < carrier.size and (part := origin(value)) is not None:
                        take(part.value, keep, 0)

    def _attention(self, node: ir.Node) -> None:
        query, key = node.inputs[0], node.inputs[1]
        assert query is not None and key is not None
        by_name = self.labelling.of
        labels, heads = by_name[str(query.name)], node.attributes.get_int("q_num_heads", 0)
        over_heads = by_heads(labels, heads)[0, :, 0, 0]
        keep = np.flatnonzero(~self._gone[over_heads])
        if len(keep) == len(over_heads):
            return
        if len(node.inputs) > 3 and node.inputs[3] is not None:
            self._follow_one(node, 3, node.inputs[3], -3, keep)
        if labels.ndim == 3:
            groups = node.attributes.get_int("kv_num_heads")
            kept_groups = groups * len(keep) // len(over_heads)
            node.attributes["q_num_heads"] = ir.AttrInt64("q_num_heads", len(keep))
            node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", kept_groups)


def take(value: ir.Value, keep: IntArray, axis: int) -> None:
    """Narrow an initializer to the positions `keep` of `axis`."""
    assert value.const_value is not None
    array = np.ascontiguousarray(np.take(value.const_value.numpy(), keep, axis=axis))
    value.const_value = ir.tensor(array, dtype=value.const_value.dtype, name=value.name)
    value.shape = ir.Shape(array.shape)


def _constant_shape(found: Origin) -> tuple[int, ...]:
    assert found.value.const_value is not None
    shape = [int(n) for n in found.value.const_value.shape]  # type: ignore[arg-type]
    return tuple(shape[a] for a in found.axes)


def _reference(node: ir.Node, feeds: dict[str, Array], opsets: dict[str, int]) -> list[Array]:
    from onnx.reference import ReferenceEvaluator

    def info(name: str, array: Array | None) -> onnx.ValueInfoProto:
        if array is None:
            return onnx.ValueInfoProto(name=name)
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), None)

    proto = ir.to_proto(node)
    inputs = [info(name, np.asarray(array)) for name, array in feeds.items()]
    outputs = [info(name, None) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "one", inputs, outputs)
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    evaluator = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=imports))
    return [np.asarray(x) for x in evaluator.run(None, feeds)]
