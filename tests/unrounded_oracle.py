"""A file in float32 arithmetic without rounding: weights keep the values that they were rounded to, activations are not rounded.

    float16, bfloat16                                -> float32: weights, casts, inputs, outputs (`zoo_rewrites.retyped`)
    QuantizeLinear, DequantizeLinear (activations)   -> nothing; what is computed of weights alone is none
    DynamicQuantizeLinear                            -> its input, scale 1, zero point 0
    MatMulInteger, ConvInteger                       -> MatMul, Conv with the weight less its zero point
    DynamicQuantizeMatMul, MatMulIntegerToFloat      -> MatMul with (weight less its zero point) x scale, Add bias
    QAttention                                       -> Attention with (weight less its zero point) x scale

Rounding makes a large difference of a small one, so a cut is judged to 1e-5 here. Plain onnx and NumPy: the package has a twin
of its own for its checks (axformer_passes/probe), with which this shares nothing, so the two also hold one another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from graph_locate import Graph, constants
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from zoo_rewrites import retyped

Array = npt.NDArray[Any]
_CONTRIB = "com.microsoft"
_MOVES = (
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Slice",
    "Split",
    "Concat",
    "Gather",
    "Expand",
    "Identity",
)


def without_rounding(content: bytes) -> bytes:
    """The model with nothing rounded but its weights.

    Raises: AssertionError where an operator without an entry above computes with integers.
    """
    model = ModelProto.FromString(content)
    for half in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        model = retyped(model, half, TensorProto.FLOAT)
    sorted_model = ir.from_proto(model)  # quantisers leave nodes behind their readers
    sorted_model.graph.sort()
    return _Unrounded(Graph(ir.to_proto(sorted_model))).serialized()


class _Unrounded:
    """The graph, rewritten node by node; `floats` names what is an integer in the file and a float here, `fixed` what no input of
    the model has a part in."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.known = graph, constants(graph)
        self.floats: set[str] = set()
        self.fixed = set(self.known)
        for node in graph.nodes:
            if node.op_type == "Constant" or (node.input and self.fixed.issuperset(filter(None, node.input))):
                self.fixed.update(node.output)
        nodes, graph.nodes = graph.nodes, []
        for node in nodes:
            self._rewrite(node)

    def serialized(self) -> bytes:
        return self.graph.serialized()

    def _rewrite(self, node: NodeProto) -> None:
        match node.op_type:
            case "QuantizeLinear" if node.input[0] not in self.fixed:
                self._same(node)
                self.floats.add(node.output[0])
            case "DynamicQuantizeLinear":
                self._same(node)
                self.floats.add(node.output[0])
                for name, value in zip(node.output[1:], (np.float32(1), np.uint8(0)), strict=True):
                    self._add("Constant", [], name, value=numpy_helper.from_array(np.asarray(value)))
            case "DequantizeLinear" if node.input[0] in self.floats:
                self._same(node)
            case "MatMulInteger" | "ConvInteger":
                self._integer_product(node)
            case "DynamicQuantizeMatMul":
                self._scaled_product(node, weight_scale=2, zero=3, bias=4)
            case "MatMulIntegerToFloat":
                self._scaled_product(node, weight_scale=3, zero=5, bias=6)
            case "QAttention":
                weight = self.graph.constant(self._weight(node, 1, 7) * self.known[node.input[4]])
                mask = [node.input[5]] if len(node.input) > 5 and node.input[5] else []
                self._add("Attention", [node.input[0], weight, node.input[2], *mask], node.output[0], node, _CONTRIB)
            case _:
                self._kept(node)

    def _kept(self, node: NodeProto) -> None:
        read = self.floats.intersection(node.input)
        assert not read or node.op_type in (*_MOVES, "Shape", "Size"), (
            f"{node.op_type} {node.name} computes with {read}"
        )
        if read and node.op_type in _MOVES:
            self.floats.update(node.output)
        self.graph.nodes.append(node)

    def _integer_product(self, node: NodeProto) -> None:
        """Operands that are weights become float constants, less their zero points."""
        operands = [
            name if name in self.floats else self.graph.constant(self._weight(node, slot, slot + 2, by_row=slot == 0))
            for slot, name in enumerate(node.input[:2])
        ]
        self._add(node.op_type.removesuffix("Integer"), operands, node.output[0], node)

    def _scaled_product(self, node: NodeProto, weight_scale: int, zero: int, bias: int) -> None:
        weight = self.graph.constant(self._weight(node, 1, zero) * self.known[node.input[weight_scale]])
        has_bias = len(node.input) > bias and node.input[bias]
        product = f"{node.output[0]}.product" if has_bias else node.output[0]
        self._add("MatMul", [node.input[0], weight], product)
        if has_bias:
            self._add("Add", [product, node.input[bias]], node.output[0])

    def _weight(self, node: NodeProto, slot: int, zero_slot: int, by_row: bool = False) -> Array:
        """An integer weight less its zero point; one for all, or one a column (`by_row`, and of a Conv: one a row)."""
        weight = self.known[node.input[slot]].astype(np.float32)
        if len(node.input) <= zero_slot or not node.input[zero_slot]:
            return weight
        zero = self.known[node.input[zero_slot]].astype(np.float32)
        if zero.size == 1:
            return np.asarray(weight - zero.reshape(()))
        if by_row or node.op_type == "ConvInteger":
            zero = zero.reshape(-1, *[1] * (weight.ndim - 1))
        return np.asarray(weight - zero)

    def _same(self, node: NodeProto) -> None:
        self._add("Identity", [node.input[0]], node.output[0])

    def _add(
        self,
        operator: str,
        inputs: list[str],
        output: str,
        like: NodeProto | None = None,
        domain: str = "",
        **more: Any,
    ) -> None:
        made = helper.make_node(operator, inputs, [output], domain=domain, **more)
        if like is not None:
            made.attribute.extend(like.attribute)
        self.graph.nodes.append(made)
