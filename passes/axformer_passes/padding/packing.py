"""Put the tokens that are computed side by side, and back, in place.

Shapes: B rows, S tokens of the longest, N that are computed, D and `rest` what a token has.

    computed[B,S] = place < number of ones            in rows whose mask is 1 .. 1 0 .. 0; all in others
    places[1,N]   = NonZero(computed as [B*S])
    slot[B,S]     = CumSum(computed as [B*S]) - 1     where they lie among the N; of padding that of the token before it
    x[1,N,D]      = Gather(x as [B*S,D], places)      before the first operator that works on each token alone
    x[B,S,D]      = Gather(x as [N,D], slot)          before one that does not: padding holds what the token before it holds

So only padding behind the text is removed: a row that is padded in front, has holes, or has no token at all is computed as a whole,
and the answer is the source's under every mask. A single position that is read (the last one) is computed whatever the mask says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from axformer_passes.cut import opened
from axformer_passes.graph import constant, fresh, initializer
from axformer_passes.operators import TokenRows, record_of
from axformer_passes.padding.region import Region, Tokens, of_positions

_INTEGERS = ir.TensorType(ir.DataType.INT64)
_FLAGS = ir.TensorType(ir.DataType.BOOL)
LEAST_OPSET = 11
"""Of CumSum and Range."""


def pack(tokens: Tokens, found: Region, always: Iterable[int | ir.Value]) -> None:
    """Edit the probed graph. `always`: positions that are computed whatever the mask says; int[B]: one for each row."""
    _Packing(tokens, found, always).carry_out()


class _Packing:
    def __init__(self, tokens: Tokens, found: Region, always: Iterable[int | ir.Value]) -> None:
        self.tokens = tokens
        self.found = found
        self.graph = tokens.probes.model.graph
        self.first = next(iter(self.graph))
        self.made = {value for node in found for value in node.outputs}
        self._constants: dict[tuple[tuple[int, ...], tuple[int, ...]], ir.Value] = {}
        self._packed: dict[tuple[ir.Value, bool], ir.Value] = {}
        self._index(always)

    def carry_out(self) -> None:
        rows = {value: one for value in self.made if value.name and (one := self.tokens.rows(value)) is not None}
        for node in self.found:
            self._enter(node)
        for node in self.found:
            for value in node.outputs:
                if value in rows:
                    self._leave(value, rows[value])
                    value.shape = opened(value.shape)
        self.graph.sort()  # which token is read may be computed behind the first lookup

    # -- where the tokens are -------------------------------------------------------------------------------------

    def _index(self, always: Iterable[int | ir.Value]) -> None:
        whole, mask = self._whole, self.tokens.mask
        self.sizes = self("Shape", mask)
        self.length = self("Gather", self.sizes, whole(1))
        places = self("Range", whole(0), self.length, whole(1))
        kept = self("Less", places, self._limit(), kind=_FLAGS)
        for one in always:
            kept = self("Or", kept, self("Equal", places, self._position(one), kind=_FLAGS), kind=_FLAGS)
        flags = self("Reshape", self("Cast", kept, to=int(ir.DataType.INT64)), whole([-1]))
        self.places = self("NonZero", flags)
        self.columns = self("Mod", self.places, self.length)
        self.slots = self("Sub", self("CumSum", flags, whole(0)), whole(1))
        self.slot = self("Reshape", self.slots, self.sizes)

    def _limit(self) -> ir.Value:
        """[B,1]: how many tokens of a row are computed. Where the mask is 1 .. 1 0 .. 0, its ones; else all."""
        whole = self._whole
        given = self("Cast", self.tokens.mask, kind=_FLAGS, to=int(ir.DataType.BOOL))
        counted = self("CumSum", self("Cast", given, to=int(ir.DataType.INT64)), whole(1))
        total = self("Gather", counted, whole([-1]), axis=1)
        number = self("Cast", given, kind=ir.TensorType(ir.DataType.FLOAT), to=int(ir.DataType.FLOAT))
        zero = self("ArgMin", number, axis=1, keepdims=1)  # the first; 0 where there is none
        text = self(
            "And", self("Equal", zero, total, kind=_FLAGS), self("Greater", zero, whole(0), kind=_FLAGS), kind=_FLAGS
        )
        return self("Where", text, total, self.length)

    def _position(self, one: int | ir.Value) -> ir.Value:
        """From the start."""
        if isinstance(one, int):
            return self._whole(one) if one >= 0 else self("Add", self.length, self._whole(one))
        wide = self("Reshape", self("Cast", one, to=int(ir.DataType.INT64)), self._whole([-1, 1]))
        return self("Mod", self("Add", wide, self.length), self.length)

    # -- in --------------------------------------------------------------------------------------------------------

    def _enter(self, node: ir.Node) -> None:
        """Its inputs, as far as they are not there already, and the shape that it states."""
        for slot, rows in self.found[node].items():
            value = node.inputs[slot]
            assert value is not None
            if value not in self.made:
                node.replace_input_with(slot, self._real(node, value, rows))
        if record_of(node).told:
            made = self.tokens.rows(node.outputs[0])
            assert made is not None
            rest = self.tokens.rest(node.outputs[0], made)
            node.replace_input_with(1, self._whole([*self._open(made), *rest]))
            node.attributes.pop("allowzero", None)

    def _real(self, node: ir.Node, value: ir.Value, rows: TokenRows) -> ir.Value:
        key = value, of_positions(rows)
        if key not in self._packed:
            rest = list(self.tokens.probes.shape(value)[0][rows.axis + 1 :])
            merged = rows.merged and not key[1]
            places = self("Reshape", self.places, self._whole([-1])) if merged else self.places
            flat = value if merged else self._moved(node, "Reshape", value, self._whole([-1, *rest]))
            self._packed[key] = self._moved(node, "Gather", flat, self.columns if key[1] else places)
        return self._packed[key]

    # -- out -------------------------------------------------------------------------------------------------------

    def _leave(self, value: ir.Value, rows: TokenRows) -> None:
        """Whoever does not work on real tokens reads all of them."""
        uses = [use for use in value.uses() if use.node not in self.found]
        flat = whole = None
        for user, slot in uses:
            if user.op_type == "Shape" and user.graph is self.graph:
                self._count(user, value, rows)
                continue
            flat = flat or self._flat(value, rows)
            if self._is_pick(user, slot, rows):
                index = user.inputs[1]
                assert index is not None
                taken = self._moved(user, "Gather", self.slot, index, kind=_INTEGERS, axis=1)
                user.replace_input_with(0, flat)
                user.replace_input_with(1, taken)
                user.attributes["axis"] = ir.AttrInt64("axis", 0)
                continue
            whole = whole or self._behind(value, "Gather", flat, self.slots if rows.merged else self.slot)
            user.replace_input_with(slot, whole)

    def _is_pick(self, user: ir.Node, slot: int, rows: TokenRows) -> bool:
        """Gather(x[B,S,D], the same tokens for all rows, axis=1)."""
        index = constant(user.inputs[1]) if user.op_type == "Gather" and slot == 0 else None
        return index is not None and not rows.merged and index.ndim < 2 and user.attributes.get_int("axis", 0) == 1

    def _flat(self, value: ir.Value, rows: TokenRows) -> ir.Value:
        rest = self.tokens.rest(value, rows)
        return value if rows.merged else self._behind(value, "Reshape", value, self._whole([-1, *rest]))

    def _count(self, user: ir.Node, value: ir.Value, rows: TokenRows) -> None:
        """Sizes that are read are those of all tokens."""
        rest = self.tokens.rest(value, rows)
        front = self.sizes
        if rows.merged:
            front = self._moved(user, "ReduceProd", front, kind=_INTEGERS, keepdims=1)
        found = self._moved(user, "Concat", front, self._whole(rest), kind=_INTEGERS, axis=0) if rest else front
        entries = list(range(rows.axis + 1 + len(rest)))
        start, end = user.attributes.get_int("start", 0), user.attributes.get_int("end", len(entries))
        if entries[start:end] != entries:
            found = self._moved(user, "Gather", found, self._whole(entries[start:end]), kind=_INTEGERS, axis=0)
        user.outputs[0].replace_all_uses_with(found)

    # -- pieces ----------------------------------------------------------------------------------------------------

    def _open(self, rows: TokenRows) -> list[int]:
        return [-1] if rows.merged else [1, -1]

    def __call__(
        self, operator: str, *inputs: ir.Value, kind: ir.TypeProtocol = _INTEGERS, **attributes: Any
    ) -> ir.Value:
        """A new node before all others, and its output."""
        return self._made(self.first, operator, inputs, str(self.tokens.mask.name), kind, attributes)

    def _moved(
        self, before: ir.Node, operator: str, *inputs: ir.Value, kind: ir.TypeProtocol | None = None, **attributes: Any
    ) -> ir.Value:
        """A new node before that one; it makes what its first input is, unless `kind` says otherwise."""
        return self._made(before, operator, inputs, str(inputs[0].name), kind or inputs[0].type, attributes)

    def _made(
        self,
        before: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value],
        base: str,
        kind: ir.TypeProtocol | None,
        attributes: dict[str, Any],
    ) -> ir.Value:
        out = ir.Value(name=fresh(self.graph, f"{base}_{operator.lower()}"), type=kind)
        self.graph.insert_before(before, ir.node(operator, inputs, attributes, outputs=[out], name=out.name))
        return out

    def _behind(self, value: ir.Value, operator: str, *inputs: ir.Value) -> ir.Value:
        """A new node behind the one that makes `value`, of its type."""
        out = ir.Value(name=fresh(self.graph, f"{value.name}_{operator.lower()}"), type=value.type)
        maker = inputs[0].producer()
        assert maker is not None
        self.graph.insert_after(maker, ir.node(operator, inputs, outputs=[out], name=out.name))
        return out

    def _whole(self, numbers: int | Sequence[int]) -> ir.Value:
        """A constant of integers."""
        array = np.array(numbers, np.int64)
        key = array.shape, tuple(array.reshape(-1).tolist())
        if key not in self._constants:
            self._constants[key] = initializer(self.graph, f"{self.tokens.mask.name}_number", array)
        return self._constants[key]


__all__ = ["LEAST_OPSET", "pack"]
