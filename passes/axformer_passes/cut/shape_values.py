"""Shapes and integers after a cut: what an exporter derived from `Shape` nodes is evaluated again before anything is edited.

    now          tensors without labels that depend on a shape which the cut changes, with their values after it
    as_before    such a tensor as it was: Shape(x) * old / new on the cut axes, the rest of its chain copied behind it

`as_before` is for targets that mix a cut shape with a count that the exporter wrote down (batch = Shape(x)[0] / heads).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from axformer_passes.errors import RecogniseError
from axformer_passes.graph import anchor, constant, fresh, initializer, read_by
from axformer_passes.operators import IntArray
from axformer_passes.probe import Array
from axformer_passes.recognise import Labelling

Kept = dict[int, IntArray]
"""axis -> positions that stay, for the axes that lose any."""


_PICKS = frozenset({"Gather", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Cast", "Identity"})


class Integers:
    """The probed values of one labelling under a cut; `kept` gives what stays of each labelled tensor.

    Raises: RecogniseError where an operator on the way cannot be evaluated again.
    """

    def __init__(self, labelling: Labelling, kept: Callable[[ir.Value | None], Kept]) -> None:
        self.labelling = labelling
        self.graph = labelling.model.graph
        self.kept = kept
        self.now: dict[str, Array] = {}
        self._restored: dict[str, ir.Value] = {}
        self._reference = _Reference(labelling.model.opset_imports)
        for node in self.graph:
            self._again(node)

    def value(self, value: ir.Value) -> Array:
        """The value before the cut: constant, or of the probe."""
        array = constant(value)
        return np.asarray(self.labelling.values[str(value.name)]) if array is None else array

    def after(self, value: ir.Value) -> Array:
        """The value that the tensor has after the cut where nobody edits it."""
        return np.asarray(self.now.get(str(value.name), self.value(value)))

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The shape of a labelled or re-evaluated tensor after the cut, on the probe."""
        name = str(value.name)
        if name in self.now:
            return tuple(self.now[name].shape)
        before = self.labelling.of[name].shape if name in self.labelling.of else np.shape(self.value(value))
        kept = self.kept(value)
        return tuple(len(kept[i]) if i in kept else n for i, n in enumerate(before))

    def _again(self, node: ir.Node) -> None:
        source = node.inputs[0] if node.inputs else None
        if node.op_type == "Shape" and source is not None and (self.kept(source) or source.name in self.now):
            self.now[anchor(node)] = np.array(self.shape(source)[_window(node)], dtype=np.int64)
        elif any(v is not None and v.name in self.now for v in node.inputs) and not any(
            v.name in self.labelling.of for v in node.outputs
        ):
            self._evaluate(node)

    def _evaluate(self, node: ir.Node) -> None:
        feeds = {str(v.name): self.after(v) for v in read_by(node)}
        try:
            with np.errstate(all="ignore"):  # a probe of five tokens takes logarithms of 0
                outputs = self._reference(node, feeds)
        except Exception as error:  # the reference evaluator raises what it likes
            raise RecogniseError(
                f"{anchor(node)}: {node.op_type} depends on a shape that the cut changes and cannot be "
                f"evaluated again: {error}"
            ) from None
        if self._picks(node) and np.array_equal(outputs[0], self.value(node.outputs[0])):
            return  # a part of a shape that the cut leaves alone: nothing behind it changes
        self.now.update({str(v.name): a for v, a in zip(node.outputs, outputs, strict=False) if v.name})

    def _picks(self, node: ir.Node) -> bool:
        """Does a node take entries of its first input, by what does not depend on the cut?"""
        first, *others = node.inputs
        by = [v for v in others if v is not None and v.name in self.now]
        return node.op_type in _PICKS and first is not None and first.name in self.now and not by

    # -- at run time ---------------------------------------------------------------------------------------------

    def scaled(self, place: ir.Node, target: ir.Value, old: IntArray, new: IntArray) -> ir.Value:
        """target * new / old, computed at run time before `place`; one factor an entry."""
        common = np.gcd(old, new)
        for kind, factor in (("Div", old // common), ("Mul", new // common)):
            if (factor == 1).all():
                continue
            by = initializer(self.graph, f"{target.name}_{kind.lower()}_by", factor)
            out = ir.Value(name=fresh(self.graph, f"{target.name}_{kind.lower()}"), type=target.type)
            self.graph.insert_before(place, ir.node(kind, [target, by], outputs=[out]))
            target = out
        return target

    def as_before(self, value: ir.Value) -> ir.Value:
        """`value` as the source graph computes it: its chain copied, cut shapes scaled back."""
        name = str(value.name)
        if name not in self.now or self._picked_unchanged(value):
            return value
        if name not in self._restored:
            node = value.producer()
            assert node is not None
            copied = self._unscaled_shape(node) if node.op_type == "Shape" else self._copy(node)
            self._restored.update((str(v.name), new) for v, new in zip(node.outputs, copied, strict=True))
        return self._restored[name]

    def _picked_unchanged(self, value: ir.Value) -> bool:
        """Is this a part of a shape that the cut leaves alone? Told by its value only where nothing was computed with it."""
        if not np.array_equal(self.now[str(value.name)], self.value(value)):
            return False
        node = value.producer()
        while node is not None and node.op_type in _PICKS and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        return node is not None and node.op_type == "Shape"

    def resized(self, value: ir.Value) -> bool:
        """Has a tensor without labels another shape after the cut?"""
        name = str(value.name)
        return name in self.now and self.now[name].shape != np.shape(self.labelling.values[name])

    def varies(self, value: ir.Value, axis: int) -> bool:
        """Did the probe show different values along `axis` (from the right) of this tensor, before the cut?"""
        array = np.asarray(self.value(value))
        return not bool((array == np.take(array, [0], axis=axis)).all())

    def _unscaled_shape(self, node: ir.Node) -> list[ir.Value]:
        source = node.inputs[0]
        assert source is not None
        window = _window(node)
        old = np.array(np.shape(self.labelling.values[str(source.name)])[window], dtype=np.int64)
        new = np.array(self.shape(source)[window], dtype=np.int64)
        return [self._scaled_behind(node, new, old)]

    def _scaled_behind(self, node: ir.Node, old: IntArray, new: IntArray) -> ir.Value:
        marker = ir.node("Identity", [node.outputs[0]])
        self.graph.insert_after(node, marker)
        found = self.scaled(marker, node.outputs[0], np.maximum(old, 1), np.maximum(new, 1))
        self.graph.remove(marker, safe=True)
        return found

    def _copy(self, node: ir.Node) -> list[ir.Value]:
        inputs = [self.as_before(v) if v is not None else None for v in node.inputs]
        if any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
            raise RecogniseError(f"{anchor(node)}: {node.op_type} on the way from a cut shape cannot be copied")
        outputs = [
            ir.Value(name=fresh(self.graph, f"{v.name}_before"), shape=opened(v.shape), type=v.type)
            for v in node.outputs
        ]
        copy = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), outputs=outputs)
        self.graph.insert_after(node, copy)
        return outputs


def opened(shape: ir.Shape | None) -> ir.Shape | None:
    """The rank alone: two tensors that state one symbol for sizes which a cut makes unlike would share a buffer."""
    return ir.Shape([None] * len(shape)) if shape is not None else None


def _window(node: ir.Node) -> slice:
    return slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", 10**9))


class _Reference:
    """onnx's reference evaluator, one node at a time; nodes that differ in names alone share an evaluator."""

    def __init__(self, opsets: dict[str, int]) -> None:
        self._imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        self._evaluators: dict[tuple[bytes, tuple[str, ...]], Any] = {}

    def __call__(self, node: ir.Node, feeds: dict[str, Array]) -> list[Array]:
        """The outputs of `node`. Raises: what the reference evaluator likes."""
        proto = ir.to_proto(node)
        del proto.metadata_props[:]
        proto.name = proto.doc_string = ""
        if not any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            places = {name: f"input{i}" for i, name in enumerate(feeds)}  # a subgraph reads by the names of this one
            proto.input[:] = [places.get(name, "") for name in proto.input]
            proto.output[:] = [f"output{i}" if name else "" for i, name in enumerate(proto.output)]
            feeds = {places[name]: array for name, array in feeds.items()}
        key = proto.SerializeToString(deterministic=True), tuple(str(array.dtype) for array in feeds.values())
        if key not in self._evaluators:
            self._evaluators[key] = self._evaluator(proto, feeds)
        return [np.asarray(x) for x in self._evaluators[key].run(None, feeds)]

    def _evaluator(self, proto: onnx.NodeProto, feeds: dict[str, Array]) -> Any:
        from onnx.reference import ReferenceEvaluator

        kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
        inputs = [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
        graph = onnx.helper.make_graph([proto], "one", inputs, outputs)
        return ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=self._imports))
