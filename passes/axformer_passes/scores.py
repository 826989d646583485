"""What stands around a softmax: the tensors that meet in the scores and the context, and the numeric score scale."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from axformer_passes.anatomy import Refusal
from axformer_passes.labels import IntArray, Labelling, anchor
from axformer_passes.rules import by_heads
from axformer_passes.trace import Array

_ACTIVATIONS = {
    "Erf": "gelu", "Gelu": "gelu", "FastGelu": "gelu_tanh", "QuickGelu": "quick_gelu", "Relu": "relu", "Tanh": "tanh",
    "Sigmoid": "sigmoid", "Swish": "silu", "HardSwish": "hardswish", "Elu": "elu", "LeakyRelu": "leaky_relu",
    "Selu": "selu", "Celu": "celu", "Mish": "mish", "Softplus": "softplus", "PRelu": "prelu",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scores:
    """query x key -> softmax -> x value. For a fused Attention node the three inputs of that node."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    fused: bool

    @classmethod
    def find(cls, labelling: Labelling, softmax: ir.Node, inside: set[int]) -> Scores | Refusal:
        """The products of activations before and after `softmax` whose channels are its heads (`inside`)."""
        if softmax.op_type == "Attention":
            query, key, value = softmax.inputs[:3]
            assert query is not None and key is not None and value is not None
            return cls(query, key, value, fused=True)
        before: list[ir.Node] = []
        after: list[ir.Node] = []
        passed = False
        for node in labelling.model.graph:
            passed = passed or node is softmax
            if node.op_type == "MatMul" and _within(labelling, node, inside):
                (after if passed else before).append(node)
        if not before or len(after) != 1:
            return Refusal(
                anchor(softmax),
                softmax.op_type,
                f"{len(before)} products of activations before it and {len(after)} after it, expected 1 (or more) and 1",
            )
        (query, key), value = before[0].inputs[:2], after[0].inputs[1]
        assert query is not None and key is not None and value is not None
        return cls(query, key, value, fused=False)

    def value_size(self, labelling: Labelling) -> int:
        """Width of one head's context."""
        shape: tuple[int, ...] = labelling.of[str(self.value.name)].shape
        node = next(iter(self.value.uses())).node
        if self.fused and len(shape) == 3:
            return int(shape[-1] // node.attributes.get_int("kv_num_heads"))
        return int(shape[-1])

    def kv_heads(self, labelling: Labelling) -> int:
        """Distinct key heads: those whose labels were born apart."""
        raw = labelling.of[str(self.key.name)]
        if self.fused:
            raw = by_heads(raw, next(iter(self.key.uses())).node.attributes.get_int("kv_num_heads", 0))
        last = raw.reshape(-1, raw.shape[-2] * raw.shape[-1]).max(axis=1)
        return int(np.unique(last).size)


def _within(labelling: Labelling, node: ir.Node, inside: set[int]) -> bool:
    labels = [labelling.of.get(str(v.name)) for v in node.inputs if v is not None]
    if len(labels) != 2 or any(x is None for x in labels):
        return False
    return all(set(np.unique(labelling.classes(x[x >= 0])).tolist()) <= inside for x in labels if x is not None)


def score_scale(labelling: Labelling, softmax: ir.Node, scores: Scores) -> float | None:
    """The factor c with softmax input = c * (query . key), measured on the probe; None if there is no such factor.

    Measured on biased projections before any scaling, at the last query row (which no causal mask touches).
    """
    if scores.fused:
        default = _head_width(labelling, scores)
        given = softmax.attributes.get_float("scale", None) if "scale" in softmax.attributes else None
        if given is not None and given != 1.0:
            return float(given)
        return _measured(labelling, softmax, scores) if given == 1.0 else default
    return _measured(labelling, softmax, scores)


def _head_width(labelling: Labelling, scores: Scores) -> float | None:
    shape = np.shape(labelling.values[str(scores.query.name)])
    return float(shape[-1]) ** -0.5 if len(shape) == 4 else None


def _measured(labelling: Labelling, softmax: ir.Node, scores: Scores) -> float | None:
    if scores.fused:
        return None
    query, key = _unscaled(labelling, scores.query), _unscaled(labelling, scores.key)
    seen = labelling.values.get(str(softmax.inputs[0].name))  # type: ignore[union-attr]
    if query is None or key is None or seen is None or np.ndim(seen) != 4 or seen.shape[1] != query.shape[1]:
        return None
    product = np.einsum("bhse,bhte->bhst", query[:, :, -1:], key)
    seen = np.asarray(seen[:, :, -1:], dtype=np.float64)
    scale = float((seen * product).sum() / max((product * product).sum(), 1e-30))
    fits = np.abs(seen - scale * product).max() <= 1e-3 * max(np.abs(seen).max(), 1e-30)
    return scale if fits else None


def _unscaled(labelling: Labelling, operand: ir.Value) -> Array | None:
    """float64[B,H,S,E] of a projection's biased output, arranged by the labels that arrive at `operand`."""
    raw = labelling.of[str(operand.name)]
    if raw.ndim != 4:
        return None
    heads = raw[0, :, 0, :] if (raw[:, :, :1, :] == raw).all() else raw[0, :, :, 0]
    carrier = labelling.carrier_of(int(heads.min()))
    node = next(n for n in labelling.model.graph if anchor(n) == carrier.node)
    out = node.outputs[0]
    uses = list(out.uses())
    if node.op_type == "MatMul" and len(uses) == 1 and uses[0].node.op_type == "Add":
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
    stop, seen, queue = {id(n) for n in ups}, set[int](), list(down.inputs[:2])
    names: list[str] = []
    while queue:
        value = queue.pop()
        node = value.producer() if value is not None else None
        if node is None or id(node) in stop or id(node) in seen or not labelling.of.keys() & {str(value.name)}:  # type: ignore[union-attr]
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
        return "silu" if any(n.op_type == "Mul" for n in labelling.model.graph) else "sigmoid"
    return next((n for n in names if n != "cubed"), "none")


__all__ = ["Scores", "activation_between", "by_heads", "score_scale"]
