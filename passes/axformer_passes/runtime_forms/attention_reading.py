"""Which attentions are, number for number, what one `MultiHeadAttention` computes: read off the graph, whoever wrote it.

    q[B,S,H*E] -> by heads -> x k[B,T,H*E] by heads -> * scale -> + masks -> Softmax -> x v[B,T,H*V] by heads -> joined [B,S,H*V]

Shapes: B batch, S query tokens, T key tokens, H heads, E head size, V head size of values.

That query, key, value and output are split and joined by heads, and nothing else, is decided by where each number comes from
(`blocks.provenance`), in probes of several batch sizes and lengths; names and operators do not matter. So H is what is left in
that very layer. What cannot be shown to be so is left as it is, with the reason: rotary embeddings, keys that several heads
share, hard attention, absorbed keys and values, products of integers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from axformer_passes.blocks import Trail, Trails, Unfollowed
from axformer_passes.graph import anchor, constant
from axformer_passes.operators import record_of
from axformer_passes.probe import Array, Facts, known

_HIDDEN = -1e30
"""A score at or below it is masked: what is added to it leaves it where it is, and its probability is zero."""


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """An addend of the scores: a tensor that broadcasts to [B,H,S,T]; of a condition: 0, or `fill` where it `hides`.

    fill    None: `value` is added as it is
    hides   the truth value of the condition where a score is hidden
    """

    value: ir.Value
    fill: float | None = None
    hides: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class ReadAttention:
    """One attention that `MultiHeadAttention` computes.

    query, key, value   [B,S,H*E], [B,T,H*E], [B,T,H*V]
    masks               what is added to the scores, in order
    output              [B,S,H*V], the heads joined
    """

    softmax: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    heads: int
    scale: float
    masks: tuple[Mask, ...]
    output: ir.Value


def read_attentions(model: ir.Model, facts: Facts) -> tuple[list[ReadAttention], tuple[str, ...]]:
    """(those in graph order; why each other Softmax is left)."""
    sizes, fixed = known(model.graph, facts)
    single = _is_float32_alone(model.graph)
    found, left = list[ReadAttention](), list[str]()
    for node in model.graph:
        if node.op_type != "Softmax" or node.domain:
            continue
        try:
            found.append(_Reading(facts, (frozenset(sizes), fixed), node, single).attention())
        except Unfollowed as why:
            left.append(f"Softmax {anchor(node)!r}: {why}")
    return found, tuple(left)


def _is_float32_alone(graph: ir.Graph) -> bool:
    """No tensor of another floating-point type: a Cast of probabilities to float32 does nothing."""
    others = {kind for kind in ir.DataType if kind.is_floating_point()} - {ir.DataType.FLOAT}
    held = {value.dtype for value in (*graph.inputs, *graph.initializers.values())}
    cast = {ir.DataType(node.attributes.get_int("to", 1)) for node in graph.all_nodes() if node.op_type == "Cast"}
    return others.isdisjoint(held | cast)


def _is_product(node: ir.Node | None) -> bool:
    """Of activations."""
    if node is None or node.op_type != "MatMul" or node.domain:
        return False
    return all(constant(value) is None for value in node.inputs)


def _is_number(value: ir.Value) -> bool:
    array = constant(value)
    return array is not None and array.size == 1


class _Reading:
    """What the probes say of the attention around one Softmax."""

    def __init__(
        self, facts: Facts, known: tuple[frozenset[ir.Value], dict[ir.Value, Array]], softmax: ir.Node, single: bool
    ) -> None:
        self.facts, self.softmax, self.single = facts, softmax, single
        self.sizes, self.fixed = known

    def attention(self) -> ReadAttention:
        """Raises: Unfollowed."""
        context = self._context()
        scores = self.softmax.inputs[0]
        assert scores is not None
        product, scale, masks = self._scores(scores)
        heads, query, factor = self._by_heads(product, 0, turned=False)
        key_heads, key, key_factor = self._by_heads(product, 1, turned=True)
        value_heads, value, value_factor = self._by_heads(context, 1, turned=False)
        if not heads == key_heads == value_heads:
            raise Unfollowed(f"{heads} heads of queries, {key_heads} of keys, {value_heads} of values")
        if value_factor != 1.0:
            raise Unfollowed(f"its values are multiplied by {value_factor:g}")
        scale *= factor * key_factor
        if not (math.isfinite(scale) and scale):
            raise Unfollowed(f"its scores are multiplied by {scale:g}")
        for mask in masks:
            self._check_mask(mask, product, heads)
        return ReadAttention(self.softmax, query, key, value, heads, scale, masks, self._joined(context, heads))

    # -- from the softmax to both products ---------------------------------------------------------------------------

    def _context(self) -> ir.Node:
        """The product of probabilities and values."""
        rank = len(self._shapes(self.softmax.outputs[0])[0])
        if self.softmax.attributes.get_int("axis", -1) not in (-1, rank - 1):
            raise Unfollowed("it goes over another axis than the last")
        probabilities = self.softmax.outputs[0]
        user = self._only_reader(probabilities, "its probabilities")
        while user.op_type == "Identity" or (self.single and self._casts_nothing(user)):
            probabilities = user.outputs[0]
            user = self._only_reader(probabilities, "its probabilities")
        if not _is_product(user) or user.inputs[0] is not probabilities:
            raise Unfollowed(
                f"its probabilities are read by {user.op_type} {anchor(user)!r}, not by a product with values"
            )
        return user

    @staticmethod
    def _casts_nothing(node: ir.Node) -> bool:
        return node.op_type == "Cast" and node.attributes.get_int("to", 0) == int(ir.DataType.FLOAT)

    @staticmethod
    def _only_reader(value: ir.Value, what: str) -> ir.Node:
        """But for those that read its size alone."""
        uses = [use for use in value.uses() if use.node.op_type != "Shape"]
        if len(uses) != 1 or value.is_graph_output():
            raise Unfollowed(f"{what} have {len(uses) + value.is_graph_output()} readers, expected 1")
        return uses[0].node

    def _scores(self, value: ir.Value) -> tuple[ir.Node, float, tuple[Mask, ...]]:
        """(query x key, the factor behind it, what is added behind that, in the order of the graph)."""
        scale, masks = 1.0, list[Mask]()
        while not _is_product(node := value.producer()):
            if node is None:
                raise Unfollowed(f"its scores are the input {value.name!r}")
            behind, factor, mask = self._step(node)
            if mask is not None and scale != 1.0:
                raise Unfollowed("its scores are scaled after a mask was added")
            scale *= factor
            masks += [mask] if mask is not None else []
            value = behind
        assert node is not None
        return node, scale, tuple(reversed(masks))

    def _step(self, node: ir.Node) -> tuple[ir.Value, float, Mask | None]:
        """One operator between the product and the softmax: (the scores before it, factor, mask)."""
        if node.domain or node.op_type not in ("Add", "Mul", "Div", "Where", "Reshape", "Identity"):
            raise Unfollowed(f"its scores pass {node.op_type} {anchor(node)!r}")
        before, out = [v for v in node.inputs if v is not None], self._shapes(node.outputs[0])
        if node.op_type in ("Mul", "Div"):
            for slot in (1, 0) if node.op_type == "Mul" else (1,):
                number = self._number(before[slot])
                if number:
                    return before[1 - slot], number if node.op_type == "Mul" else 1.0 / number, None
            raise Unfollowed(f"its scores are scaled by no constant number ({node.op_type} {anchor(node)!r})")
        if node.op_type == "Where":
            return self._hidden(node, before)
        if node.op_type == "Add":
            leading = [slot for slot in (0, 1) if self._leads(before[slot])]
            if len(leading) != 1 or self._shapes(before[leading[0]]) != out:
                raise Unfollowed(f"which side of Add {anchor(node)!r} is the scores is not clear")
            return before[leading[0]], 1.0, Mask(before[1 - leading[0]])
        if any(a[-2:] != b[-2:] for a, b in zip(self._shapes(before[0]), out, strict=True)):
            raise Unfollowed(f"{node.op_type} {anchor(node)!r} moves its scores")
        return before[0], 1.0, None

    def _number(self, value: ir.Value) -> float | None:
        """One number that is always the same, written down or computed."""
        array = self.fixed.get(value, constant(value))
        return float(array.reshape(())) if array is not None and array.size == 1 else None

    def _hidden(self, node: ir.Node, inputs: list[ir.Value]) -> tuple[ir.Value, float, Mask]:
        for slot in (1, 2):
            fill, scores = self._number(inputs[slot]), inputs[3 - slot]
            if fill is not None and fill <= _HIDDEN and self._shapes(scores) == self._shapes(node.outputs[0]):
                return scores, 1.0, Mask(inputs[0], fill, hides=slot == 1)
        raise Unfollowed(f"Where {anchor(node)!r} puts no constant below {_HIDDEN:g} in the place of scores")

    def _leads(self, value: ir.Value) -> bool:
        """To a product of activations, by steps that scores take?"""
        node = value.producer()
        while node is not None and not _is_product(node):
            if node.op_type not in ("Add", "Mul", "Div", "Where", "Reshape", "Identity"):
                return False
            inputs = [v for v in node.inputs if v is not None and constant(v) is None]
            if node.op_type in ("Add", "Where"):
                return any(self._leads(v) for v in inputs)
            node = inputs[0].producer() if inputs else None
        return node is not None

    def _check_mask(self, mask: Mask, product: ir.Node, heads: int) -> None:
        for shape, scores in zip(self._shapes(mask.value), self._shapes(product.outputs[0]), strict=True):
            whole = (math.prod(scores[:-2]) // heads, heads, *scores[-2:])
            aligned = (1,) * (4 - len(shape)) + shape
            if len(shape) > 4 or any(a not in (1, b) for a, b in zip(aligned, whole, strict=True)):
                raise Unfollowed(f"its mask {mask.value.name!r} of shape {list(shape)} is none of scores {list(whole)}")
            if len(scores) == 3 and len(shape) == 3 and shape[0] != 1:
                raise Unfollowed(f"its mask {mask.value.name!r} has rows for batch and heads in one")

    # -- by heads ----------------------------------------------------------------------------------------------------

    def _by_heads(self, product: ir.Node, slot: int, *, turned: bool) -> tuple[int, ir.Value, float]:
        """(H, the tensor [B,S,H*E] that operand `slot` of a product is, split by heads, its factor)."""
        value, what = product.inputs[slot], "keys" if turned else ("queries", "values")[slot]
        assert value is not None
        why = f"its {what} are no tensor [batch, tokens, heads * size] that is split by heads"
        for base in self._behind(value):
            if any(len(shape) != 3 for shape in self._shapes(base)):
                continue
            try:
                found = [self._split(n, base, value, product, turned) for n in range(len(self.facts.shapes))]
            except Unfollowed as reason:
                why = f"its {what}: {reason}"
                continue
            if found[0] is not None and all(one == found[0] for one in found):
                return found[0][0], base, found[0][1]
        raise Unfollowed(why)

    def _behind(self, value: ir.Value) -> Iterator[ir.Value]:
        """`value` and what it is moved from, or scaled by a constant."""
        while True:
            yield value
            node = value.producer()
            if node is None:
                return
            record = record_of(node)
            inputs = [v for v in node.inputs if v is not None]
            if record.moves is not None and not record.joins:
                value = inputs[0]
            elif record.affine is not None and len(rest := [v for v in inputs if not _is_number(v)]) == 1:
                value = rest[0]
            else:
                return

    def _split(
        self, probe: int, base: ir.Value, value: ir.Value, product: ir.Node, turned: bool
    ) -> tuple[int, float] | None:
        """(H, factor) where `value` is `base` by heads, in one probe."""
        trails = Trails(self.facts, self.sizes, probe, base)
        prefix, (batch, tokens, width) = trails.shape(product.outputs[0])[:-2], trails.shape(base)
        trail = trails.of(value).onto((*prefix, *trails.shape(value)[-2:]))
        rows = math.prod(prefix)
        place = trail.place.reshape(rows, *trail.place.shape[-2:])
        place = place.transpose(0, 2, 1) if turned else place
        heads, rest = divmod(rows, max(batch, 1))
        if rest or not heads or place.shape[1] != tokens or heads * place.shape[2] != width:
            return None
        whole = np.arange(batch * tokens * width).reshape(batch, tokens, heads, -1).transpose(0, 2, 1, 3)
        factor = _one_factor(trail)
        return (heads, factor) if factor is not None and np.array_equal(place, whole.reshape(place.shape)) else None

    def _joined(self, context: ir.Node, heads: int) -> ir.Value:
        """The tensor [B,S,H*V] that the context becomes."""
        value = context.outputs[0]
        while any(len(shape) != 3 for shape in self._shapes(value)) or not self._is_joined(value, context, heads):
            user = self._only_reader(value, "its context vectors")
            if record_of(user).moves is None or user.inputs[0] is not value or len(user.outputs) != 1:
                raise Unfollowed(f"its context vectors pass {user.op_type} {anchor(user)!r} before they are joined")
            value = user.outputs[0]
        return value

    def _is_joined(self, value: ir.Value, context: ir.Node, heads: int) -> bool:
        for probe in range(len(self.facts.shapes)):
            trails = Trails(self.facts, self.sizes, probe, context.outputs[0])
            trail, (*prefix, tokens, size) = trails.of(value), trails.shape(context.outputs[0])
            batch = math.prod(prefix) // heads
            whole = np.arange(trail.place.size).reshape(batch, heads, tokens, size).transpose(0, 2, 1, 3)
            if not trail.moves_alone or not np.array_equal(trail.place, whole.reshape(batch, tokens, heads * size)):
                return False
        return True

    def _shapes(self, value: ir.Value) -> list[tuple[int, ...]]:
        shapes = [shape for shape in self.facts.all_shapes(value) if shape is not None]
        if len(shapes) != len(self.facts.shapes):
            raise Unfollowed(f"the shape of {value.name!r} is not known")
        return shapes


def _one_factor(trail: Trail) -> float | None:
    """What every number is multiplied with; None where something is added, or factors differ."""
    factors = np.unique(trail.factor)
    return float(factors[0]) if factors.size == 1 and not trail.offset.any() else None


__all__ = ["Mask", "ReadAttention", "read_attentions"]
