"""Write a float32 graph in half precision, in place: weights, casts and constants; inputs and outputs keep their types.

    a node            computes in half precision, unless it is named, or its operator takes no half (by its schema)
    one that stays    reads Cast(x, float32) and gives Cast(y, half)
    a weight          the nearest half; what is beyond the largest one (masks of -3e38) becomes that
    inputs, outputs   a Cast behind the one and before the other

Operators without a schema (those of ONNX Runtime) take halves: its CUDA kernels do.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from axformer_passes.errors import PlanError
from axformer_passes.graph import anchor, fresh, initializer, operator
from axformer_passes.halves.fit import largest_of
from axformer_passes.probe import Runner, probed

_FLOAT = ir.DataType.FLOAT
_TENSOR = {ir.DataType.FLOAT16: "tensor(float16)", ir.DataType.BFLOAT16: "tensor(bfloat16)"}
_TYPE_ATTRIBUTES = ("to", "dtype")


def halve(model: ir.Model, kind: ir.DataType, stay: Collection[str], runner: Runner) -> None:
    """Edit `model` in place; `stay`: nodes that stay float32, by their first output. The caller cleans up.

    Raises: PlanError for a graph that holds graphs (If); ProbeError where it does not run.
    """
    for node in model.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise PlanError(
                f'"half": {operator(node)} {anchor(node)!r} holds a graph of its own; it cannot be written in halves'
            )
    feeds, values = probed(model, runner)
    _Halving(model, kind, {n for n, a in (feeds | values).items() if np.asarray(a).dtype == np.float32}).run(stay)


class _Halving:
    """One graph on its way.

    floats   names of the values that are float32 when the graph runs
    wide     values that stay so: what nodes that stay give
    """

    def __init__(self, model: ir.Model, kind: ir.DataType, floats: Collection[str]) -> None:
        self.graph, self.kind, self.opsets, self.floats = model.graph, kind, model.opset_imports, floats
        self.wide, self.casts = set[ir.Value](), dict[tuple[ir.Value, ir.DataType], ir.Value]()

    def run(self, stay: Collection[str]) -> None:
        nodes = list(self.graph)
        staying = [node for node in nodes if anchor(node) in stay or not self._takes_half(node)]
        self.wide |= {v for v in self.graph.inputs if self._is_float(v)}
        self.wide |= {v for node in staying for v in node.outputs if self._is_float(v)}
        outputs = {v: i for i, v in enumerate(self.graph.outputs) if self._is_float(v) and v not in self.wide}
        for node in nodes:
            wants = _FLOAT if node in staying else self.kind
            for index, value in enumerate(node.inputs):
                if value is not None and value.producer() is None and not value.is_graph_input():
                    self._constant(node, index, value, wants)
                elif value is not None and self._is_float(value):
                    self._fit(node, index, value, wants)
            if wants != _FLOAT:
                self._attributes(node)
        for value, index in outputs.items():
            self._put_out(value, index)

    def _is_float(self, value: ir.Value) -> bool:
        if value.const_value is not None and value.producer() is None:
            return value.const_value.dtype == _FLOAT
        if value.name in self.floats:
            return True
        node = value.producer()  # what moves a constant about is not probed
        return (
            node is not None and value.dtype == _FLOAT and all(v is None or self._is_float(v) for v in node.inputs[:1])
        )

    def _takes_half(self, node: ir.Node) -> bool:
        """Does its operator take, and give, halves where this node has float32?"""
        domain = "" if node.domain == "ai.onnx" else node.domain
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets.get(domain, 1), domain)
        except onnx.defs.SchemaError:
            return True
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        pairs = [(node.inputs, schema.inputs), (node.outputs, schema.outputs)]
        return all(
            _TENSOR[self.kind] in allowed.get((formal := formals[min(i, len(formals) - 1)]).type_str, [formal.type_str])
            for values, formals in pairs
            for i, value in enumerate(values)
            if value is not None and formals and self._is_float(value)
        )

    def _constant(self, node: ir.Node, index: int, value: ir.Value, wants: ir.DataType) -> None:
        tensor = value.const_value
        if tensor is None or tensor.dtype != _FLOAT or wants == _FLOAT:
            return
        users = {use.node for use in value.uses()}
        if len(users) == 1 and not value.is_graph_output():
            value.const_value = ir.Tensor(self._halves(tensor.numpy()), name=value.name)
            value.type = ir.TensorType(self.kind)
            return
        key = (value, self.kind)
        if key not in self.casts:
            self.casts[key] = initializer(self.graph, f"{value.name}_half", self._halves(tensor.numpy()))
        node.replace_input_with(index, self.casts[key])

    def _halves(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
        largest = largest_of(self.kind)
        return np.where(np.isfinite(array), np.clip(array, -largest, largest), array).astype(self.kind.numpy())

    def _fit(self, node: ir.Node, index: int, value: ir.Value, wants: ir.DataType) -> None:
        """Let a node read a value in its own type."""
        has = _FLOAT if value in self.wide else self.kind
        if has == wants:
            return
        if (value, wants) not in self.casts:
            self.casts[value, wants] = self._cast(value, wants, before=node if value.is_graph_input() else None)
        node.replace_input_with(index, self.casts[value, wants])

    def _cast(self, value: ir.Value, to: ir.DataType, before: ir.Node | None) -> ir.Value:
        name = fresh(self.graph, f"{value.name}_{'float32' if to == _FLOAT else 'half'}")
        out = ir.Value(name=name, shape=value.shape, type=ir.TensorType(to))
        cast = ir.node("Cast", [value], {"to": int(to)}, outputs=[out], name=name)
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, cast)
        elif before is not None:
            self.graph.insert_before(before, cast)
        return out

    def _attributes(self, node: ir.Node) -> None:
        for name in _TYPE_ATTRIBUTES:
            if node.attributes.get_int(name, -1) == int(_FLOAT):
                node.attributes[name] = ir.AttrInt64(name, int(self.kind))
        tensor = node.attributes["value"].as_tensor() if "value" in node.attributes else None
        if tensor is not None and tensor.dtype == _FLOAT:
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(self._halves(tensor.numpy())))
        for value in node.outputs:
            if value.dtype == _FLOAT and self._is_float(value) and not value.is_graph_output():
                value.type = ir.TensorType(self.kind)

    def _put_out(self, value: ir.Value, index: int) -> None:
        """A graph's output keeps name and type; what made it gives another value."""
        name, node = value.name, value.producer()
        assert node is not None
        value.name = fresh(self.graph, f"{name}_half")
        out = ir.Value(name=name, shape=value.shape, type=ir.TensorType(_FLOAT))
        value.type = ir.TensorType(self.kind)
        self.graph.insert_after(
            node, ir.node("Cast", [value], {"to": int(_FLOAT)}, outputs=[out], name=f"{name}_float32")
        )
        self.graph.outputs[index] = out


__all__ = ["halve"]
