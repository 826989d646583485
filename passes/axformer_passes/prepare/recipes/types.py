"""Element types and ranks that a file does not state, as far as lowering needs them: one forward pass, nothing written.

ONNX's own shape inference stops at the first operator of another domain; fused graphs consist of those.
"""

from __future__ import annotations

import onnx_ir as ir

from axformer_passes.graph import constant, origin

_BOOL = frozenset(
    {"And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual", "Not", "Or", "Xor"}
)
_INT64 = frozenset({"ArgMax", "ArgMin", "NonZero", "Shape", "Size"})
_TYPE_SLOT = {
    "Where": 1, "DequantizeLinear": 1, "OneHot": 2, "DynamicQuantizeMatMul": 0, "MatMulIntegerToFloat": 2,
    "QAttention": 3, "EmbedLayerNormalization": 2, "QEmbedLayerNormalization": 8, "RelativePositionBias": 0,
}  # fmt: skip
_EMBEDDINGS = frozenset({"EmbedLayerNormalization", "QEmbedLayerNormalization"})
"""Their second output is the number of tokens of each row."""
_SAME_RANK = frozenset(
    {
        "Attention", "BatchNormalization", "BiasGelu", "BiasSoftmax", "Cast", "CastLike", "Clip", "Concat", "CumSum",
        "DequantizeLinear", "Dropout", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "Erf", "FastGelu",
        "FusedMatMul", "Gelu", "GroupQueryAttention", "Identity", "LayerNormalization", "LogSoftmax",
        "MatMulIntegerToFloat", "Neg", "Pad", "QAttention", "QuantizeLinear", "QuickGelu", "RMSNormalization", "Relu",
        "RotaryEmbedding", "Sigmoid", "SimplifiedLayerNormalization", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization", "Slice", "Softmax", "Split", "Sqrt", "Tanh", "Transpose", "Trilu",
    }
)  # fmt: skip
_WIDEST = frozenset(
    {
        "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "MatMul", "MatMulInteger",
        "Max", "Min", "Mod", "Mul", "Not", "Or", "Pow", "Sub", "Sum", "Where", "Xor",
    }
)  # fmt: skip


class Types:
    """What is known of the values of a graph: `see` each node in order, then ask."""

    def __init__(self) -> None:
        self._dtypes: dict[ir.Value, ir.DataType] = {}
        self._ranks: dict[ir.Value, int] = {}

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """Element type, stated or inferred."""
        if value is None:
            return None
        stated = value.const_value.dtype if value.const_value is not None else value.dtype
        return stated or self._dtypes.get(value)

    def rank(self, value: ir.Value | None) -> int | None:
        """Number of axes, stated or inferred."""
        if value is None:
            return None
        if value.const_value is not None:
            return len(value.const_value.shape)
        return len(value.shape) if value.shape is not None else self._ranks.get(value)

    def state(self, value: ir.Value, dtype: ir.DataType | None, rank: int | None) -> None:
        """Take `dtype` and `rank` for known."""
        if dtype is not None:
            self._dtypes[value] = dtype
        if rank is not None:
            self._ranks[value] = rank

    def see(self, node: ir.Node) -> None:
        """Infer the first output of a node from its inputs (a Split's further outputs are alike), of DynamicQuantizeLinear all."""
        for value in node.outputs if node.op_type == "Split" else node.outputs[:1]:
            self.state(value, self._dtype_of(node), self._rank_of(node))
        if node.op_type in _EMBEDDINGS and len(node.outputs) > 1:
            self.state(node.outputs[1], ir.DataType.INT32, 1)
        if node.op_type == "DynamicQuantizeLinear":
            for value, dtype in zip(node.outputs[1:], (ir.DataType.FLOAT, ir.DataType.UINT8), strict=False):
                self.state(value, dtype, 0)

    def _dtype_of(self, node: ir.Node) -> ir.DataType | None:
        kind = node.op_type
        if kind == "Cast":
            return ir.DataType(node.attributes.get_int("to"))
        if kind in _BOOL:
            return ir.DataType.BOOL
        if kind in _INT64:
            return ir.DataType.INT64
        if kind in ("MatMulInteger", "ConvInteger"):
            return ir.DataType.INT32
        if kind == "DynamicQuantizeLinear":
            return ir.DataType.UINT8
        if kind in ("ConstantOfShape", "QuantizeLinear"):
            return None
        slot = _TYPE_SLOT.get(kind, 0)
        return self.dtype(node.inputs[slot]) if slot < len(node.inputs) else None

    def _rank_of(self, node: ir.Node) -> int | None:
        kind, ranks = node.op_type, [self.rank(v) for v in node.inputs if v is not None]
        if kind in _SAME_RANK and ranks:
            return ranks[0]
        if kind in _WIDEST:
            return max((r for r in ranks if r is not None), default=None) if None not in ranks else None
        if kind in ("Shape", "Range"):
            return 1
        if kind == "MultiHeadAttention" or kind in _EMBEDDINGS:
            return 3
        if kind == "Gather" and None not in ranks:
            return sum(r for r in ranks if r is not None) - 1
        if kind in ("Reshape", "Expand") and len(node.inputs) > 1:
            target = constant(node.inputs[1])
            return None if target is None else int(target.size)
        if ranks and ranks[0] is not None:
            return self._with_axes(node, ranks[0])
        return None

    @staticmethod
    def _with_axes(node: ir.Node, rank: int) -> int | None:
        """Unsqueeze, Squeeze and reductions: axes come or go."""
        squeezes = node.op_type == "Squeeze" or node.op_type.startswith("Reduce")
        if not squeezes and node.op_type != "Unsqueeze":
            return None
        if node.op_type.startswith("Reduce") and node.attributes.get_int("keepdims", 1) != 0:
            return rank
        given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = node.attributes.get_ints("axes", []) if given is None else given.tolist()
        if not axes:
            return None
        return rank - len(axes) if squeezes else rank + len(axes)


def width_of(value: ir.Value | None) -> int | None:
    """The size of the last axis, where the file states it or a constant beside it does; None where it takes a run to know."""
    while value is not None:
        if value.shape is not None and len(value.shape) and isinstance(value.shape[-1], int):
            return value.shape[-1]
        node = value.producer()
        if node is None:
            return None
        if node.op_type in ("Add", "MatMul") and (found := origin(node.inputs[1])) is not None and found.axes:
            size = int(found.value.const_value.shape[found.axes[-1]])  # type: ignore[union-attr,arg-type]
            if node.op_type == "MatMul" or size > 1:
                return size
        if node.op_type not in ("Add", "Cast", "Identity"):
            return None
        value = next((v for v in node.inputs if origin(v) is None), None)
    return None
