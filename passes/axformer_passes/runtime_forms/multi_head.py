"""Attention in one operator: com.microsoft `MultiHeadAttention`, with the number of heads that each layer has left.

    q, k, v -> split by heads -> scores * scale + mask -> Softmax -> context -> joined      ->   MultiHeadAttention(q, k, v, mask)

Exact up to the rounding of sums: the mask is the graph's own, repeated to the axes that the operator asks for.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import fresh, initializer
from axformer_passes.probe import Facts, Runner, facts_of
from axformer_passes.runtime_forms.attention_reading import Mask, ReadAttention, read_attentions

DOMAIN = "com.microsoft"
_COUNTED = "its sizes depend on what is in a mask (padding removed), or it does not run on probes of several sizes"


@dataclasses.dataclass(frozen=True)
class FusedAttentions:
    """Outputs of the attentions that were fused, and why others were left."""

    outputs: tuple[str, ...]
    left: tuple[str, ...]


def fuse_attention(model: ir.Model, runner: Runner) -> FusedAttentions:
    """Edit `model` in place. The caller cleans up."""
    facts = facts_of(model, runner)
    if facts is None:
        return FusedAttentions((), (_COUNTED,))
    found, left = read_attentions(model, facts)
    biases = _Biases(model, facts)
    for one in found:
        _write(model, one, biases.of(one))
    if found:
        model.opset_imports[DOMAIN] = 1
    return FusedAttentions(tuple(str(one.output.name) for one in found), left)


def _write(model: ir.Model, one: ReadAttention, bias: ir.Value | None) -> None:
    graph, last, name = model.graph, one.output, str(one.output.name)
    inputs = [one.query, one.key, one.value, None, None, bias]
    attributes: dict[str, int | float] = {"num_heads": one.heads, "scale": one.scale}
    node = ir.node(
        "MultiHeadAttention",
        inputs if bias is not None else inputs[:3],
        attributes,
        domain=DOMAIN,
        outputs=[ir.Value(name=fresh(graph, f"{name}_fused"), shape=last.shape, type=last.type)],
        name=fresh(graph, f"{name}_attention"),
    )
    maker = last.producer()
    assert maker is not None
    graph.insert_after(maker, node)
    (out,) = node.outputs
    ir.convenience.replace_all_uses_with(last, out, replace_graph_outputs=True)
    out.name, last.name = name, fresh(graph, f"{name}_unfused")


class _Biases:
    """Masks as [B or 1, H or 1, S, T], each written once."""

    def __init__(self, model: ir.Model, facts: Facts) -> None:
        self.graph, self.facts = model.graph, facts
        self.opset = model.opset_imports.get("", 1)
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def of(self, one: ReadAttention) -> ir.Value | None:
        """The sum of the masks of an attention, before its Softmax in the graph; None where it has none."""
        whole: ir.Value | None = None
        for mask in one.masks:
            addend = self._numbers(mask, one)
            whole = addend if whole is None else self._put("Add", [whole, addend], one)
        return None if whole is None else self._repeated(whole, one)

    def _numbers(self, mask: Mask, one: ReadAttention) -> ir.Value:
        if mask.fill is None:
            return mask.value
        dtype = one.output.dtype or ir.DataType.FLOAT
        numbers = [
            initializer(self.graph, f"{mask.value.name}_{n:g}", np.array(n, dtype.numpy())) for n in (mask.fill, 0.0)
        ]
        return self._put(
            "Where", [mask.value, *(numbers if mask.hides else numbers[::-1])], one, key=(mask.fill, mask.hides)
        )

    def _repeated(self, mask: ir.Value, one: ReadAttention) -> ir.Value:
        """[1 or B, 1 or H, S, T]: the operator takes the last two axes of one entry for what they say."""
        queries, keys = (self.facts.all_shapes(v) for v in (one.query, one.key))
        wanted = [(q[1], k[1]) for q, k in zip(queries, keys, strict=True) if q is not None and k is not None]
        shapes = self.facts.all_shapes(mask)
        if all(s is not None and len(s) == 4 and s[-2:] == w for s, w in zip(shapes, wanted, strict=True)):
            return mask
        key = ("repeated", mask, tuple(wanted))
        if key not in self._made:
            ones = initializer(self.graph, f"{mask.name}_ones", np.array([1, 1]))
            sizes = [self._size(value, one) for value in (one.query, one.key)]
            target = self._put("Concat", [ones, *sizes], one, key=(mask, tuple(wanted)), axis=0)
            self._made[key] = self._put("Expand", [mask, target], one)
        return self._made[key]

    def _size(self, value: ir.Value, one: ReadAttention) -> ir.Value:
        """int64[1]: the tokens of [B,S,D]."""
        shape = self._put("Shape", [value], one)
        return self._put(
            "Gather", [shape, initializer(self.graph, f"{value.name}_axis", np.array([1]))], one, key=(shape,)
        )

    def _put(
        self,
        operator: str,
        inputs: list[ir.Value],
        one: ReadAttention,
        *,
        key: tuple[object, ...] = (),
        **attributes: int,
    ) -> ir.Value:
        made_of = (operator, *(key or inputs), inputs[0])
        if made_of not in self._made:
            name = fresh(self.graph, f"{inputs[0].name}_{operator.lower()}")
            node = ir.node(operator, inputs, attributes, outputs=[ir.Value(name=name)], name=name)
            self.graph.insert_before(one.softmax, node)
            self._made[made_of] = node.outputs[0]
        return self._made[made_of]


__all__ = ["FusedAttentions", "fuse_attention"]
