"""What stands around a softmax: the tensors that meet in the scores and the context, and the numeric score scale."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from axformer_passes.anatomy import Refusal
from axformer_passes.graph import anchor
from axformer_passes.operators import IntArray, labels_in, operands, rescaled, summed_width
from axformer_passes.probe import Array
from axformer_passes.recognise.labelling import Labelling

_ACTIVATIONS = {
    "Erf": "gelu", "Gelu": "gelu", "FastGelu": "gelu_tanh", "QuickGelu": "quick_gelu", "Relu": "relu", "Tanh": "tanh",
    "Sigmoid": "sigmoid", "Swish": "silu", "HardSwish": "hardswish", "Elu": "elu", "LeakyRelu": "leaky_relu",
    "Selu": "selu", "Celu": "celu", "Mish": "mish", "Softplus": "softplus", "PRelu": "prelu",
}  # fmt: skip


_PRODUCTS = frozenset({"MatMul", "MatMulInteger", "QLinearMatMul", "Einsum"})


@dataclasses.dataclass(frozen=True)
class AttentionProducts:
    """query x key -> softmax -> x value."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    product: ir.Node

    @classmethod
    def find(cls, labelling: Labelling, softmax: ir.Node, inside: frozenset[int]) -> AttentionProducts | Refusal:
        """The products of activations before and after `softmax` whose channels are its heads (`inside`)."""
        place = labelling.order[anchor(softmax)]
        products = {id(node): node for c in sorted(inside) for node in labelling.between.get(c, ())}
        within = [node for node in products.values() if node.op_type in _PRODUCTS and _within(labelling, node, inside)]
        within.sort(key=lambda node: labelling.order[anchor(node)])
        before = [node for node in within if labelling.order[anchor(node)] < place]
        after = [node for node in within if labelling.order[anchor(node)] > place]
        if not before or len(after) != 1:
            return Refusal(
                anchor(softmax),
                softmax.op_type,
                f"{len(before)} products of activations before it and {len(after)} after it, expected 1 (or more) and 1",
            )
        query, key = operands(before[0])
        return cls(query, key, operands(after[0])[1], product=before[0])

    def value_size(self, labelling: Labelling) -> int:
        """Width of one head's context: the channels of the value that were born apart, shared out among its heads."""
        return _births(labelling, self.value) // max(1, self.kv_heads(labelling))

    def kv_heads(self, labelling: Labelling) -> int:
        """Distinct key heads: the channels of the key that were born apart, by the width that one score sums over."""
        return _births(labelling, self.key) // max(1, self._summed(labelling))

    def _summed(self, labelling: Labelling) -> int:
        shape = labelling.of[str(self.key.name)].shape
        return summed_width(self.product, shape)


def _births(labelling: Labelling, value: ir.Value) -> int:
    return int(labels_in(labelling.of[str(value.name)]).size)


def _within(labelling: Labelling, node: ir.Node, inside: frozenset[int]) -> bool:
    labels = [labelling.of.get(str(v.name)) for v in operands(node)]
    if any(x is None for x in labels):
        return False
    return all(labelling.classes_in(x) <= inside for x in labels if x is not None)


def score_scale(labelling: Labelling, softmax: ir.Node, scores: AttentionProducts) -> float | None:
    """The factor c with softmax input = c * (query . key), measured on the probe; None if there is no such factor.

    Measured on biased projections before any scaling, at the last query row (which no causal mask touches).
    """
    if scores.product.op_type == "Einsum":
        return None
    query, key = _unscaled(labelling, scores.query), _unscaled(labelling, scores.key)
    seen = labelling.values.get(str(softmax.inputs[0].name))  # type: ignore[union-attr]
    if query is None or key is None or seen is None or np.ndim(seen) != 4 or seen.shape[1] != query.shape[1]:
        return None
    product = np.einsum("bhse,bhte->bhst", query[:, :, -1:], key)
    seen = np.asarray(seen[:, :, -1:], dtype=np.float64)
    if not np.isfinite(seen).all():  # hardened before the softmax
        return None
    scale = float((seen * product).sum() / max((product * product).sum(), 1e-30))
    fits = np.abs(seen - scale * product).max() <= _rounding(labelling, softmax) * max(np.abs(seen).max(), 1e-30)
    return scale if fits and scale else None


def _rounding(labelling: Labelling, softmax: ir.Node) -> float:
    """How far from a multiple of the products scores may be, relative to the largest: what their element type rounds off."""
    if not labelling.operators.isdisjoint({"QuantizeLinear", "DynamicQuantizeLinear"}):
        return 0.05
    kind = str(np.asarray(labelling.values[anchor(softmax)]).dtype)
    return {"float16": 1e-2, "bfloat16": 5e-2}.get(kind, 1e-3)


def _unscaled(labelling: Labelling, operand: ir.Value) -> Array | None:
    """float64[B,H,S,E] of a projection's biased output, arranged by the labels that arrive at `operand`."""
    raw = labelling.of[str(operand.name)]
    if raw.ndim != 4:
        return None
    heads = raw[0, :, 0, :] if (raw[:, :, :1, :] == raw).all() else raw[0, :, :, 0]
    carrier = labelling.carrier_of(int(heads.min()))
    node = labelling.product_at[carrier.node].node
    out = rescaled(node)
    uses = list(out.uses())
    if node.op_type != "Gemm" and len(uses) == 1 and uses[0].node.op_type == "Add":
        out = uses[0].node.outputs[0]
    values = np.asarray(labelling.values[str(out.name)], dtype=np.float64)
    batch = raw.shape[0]
    columns: IntArray = heads - carrier.first
    if columns.min() < 0 or columns.max() >= values.shape[-1]:
        return None
    flat = values.reshape(batch, -1, values.shape[-1])
    return flat[:, :, columns].transpose(0, 2, 1, 3)


def activation_between(labelling: Labelling, ups: list[ir.Node], down: ir.Node) -> str:
    """Name of the first non-linear operator on the way back from `down` to the up projections."""
    stop, seen, queue = {id(n) for n in ups}, set[int](), list[ir.Value | None](operands(down))
    names: list[str] = []
    while queue:
        value = queue.pop()
        node = value.producer() if value is not None else None
        if node is None or id(node) in stop or id(node) in seen or str(value.name) not in labelling.of:  # type: ignore[union-attr]
            continue
        seen.add(id(node))
        if node.op_type in _ACTIVATIONS:
            approximate = node.attributes.get_string("approximate", "none") == "tanh"
            names.append("gelu_tanh" if approximate else _ACTIVATIONS[node.op_type])
        elif node.op_type == "Pow":
            names.append("cubed")
        queue.extend(node.inputs)
    if "tanh" in names and "cubed" in names:
        return "gelu_tanh"
    if "sigmoid" in names:
        return "silu" if "Mul" in labelling.operators else "sigmoid"
    return next((n for n in names if n != "cubed"), "none")


__all__ = ["AttentionProducts", "activation_between", "score_scale"]
