"""Carry a narrowing of tokens out, in place: pick rows where they are needed first, and work on them alone from there.

Reshape(x, target)      the target's entry for the tokens becomes how many stay
Shape(x)                the entry for the tokens becomes that of a tensor that still has them all
Gather(x, 0)            (the pick itself) takes what is left
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import numpy as np
import onnx_ir as ir

from axformer_passes.cut import opened
from axformer_passes.graph import constant, find, fresh, initializer
from axformer_passes.operators import Probes, TokenRows, record_of, retargeted
from axformer_passes.readout.walk import Narrowing, needed

_INTEGERS = ir.TensorType(ir.DataType.INT64)


def narrow_tokens(probes: Probes, found: Narrowing, ends: set[ir.Node]) -> tuple[str, ...]:
    """Edit the probed graph; `ends` are the picks themselves. The tensors of which rows are taken now, by name."""
    return _NarrowingEdit(probes, found, ends).carry_out()


class _NarrowingEdit:
    def __init__(self, probes: Probes, found: Narrowing, ends: set[ir.Node]) -> None:
        self.probes = probes
        self.found = found
        self.ends = ends
        self.graph = probes.model.graph
        self._taken: dict[tuple[ir.Value, TokenRows], ir.Value] = {}
        self._counts: dict[tuple[ir.Value, int], ir.Value] = {}
        self._places: dict[str, None] = {}

    def carry_out(self) -> tuple[str, ...]:
        for node in list(self.graph):
            source = node.inputs[0] if node.inputs else None
            if node.op_type == "Shape" and source in self.found.wanted:
                self._restore(node, source)
            for slot, rows in self.found.needs.get(node, {}).items():
                value = node.inputs[slot]
                assert value is not None
                node.replace_input_with(slot, self._rows_of(node, value, rows))
            if node in self.ends and node in self.found.needs:
                self._end(node, self.found.needs[node][0])
            elif node in self.found.needs and record_of(node).told:
                self._retarget(node, node, self.found.wanted[node.outputs[0]])
        for value in self.found.wanted:
            value.shape = opened(value.shape)
        if any(rows.by_row for rows in self.found.wanted.values()):
            self.graph.sort()  # which token to read may be computed behind what it is read of
        return tuple(self._places)

    # -- rows ----------------------------------------------------------------------------------------------------

    def _rows_of(self, node: ir.Node, value: ir.Value, rows: TokenRows) -> ir.Value:
        """`rows` of `value`, made in front of `node` unless they are there."""
        ready = self.found.is_ready(value, rows)
        if ready and self.found.wanted[value].tokens == rows.tokens:
            return value
        key = value, rows
        if key not in self._taken:
            if ready:
                self._taken[key] = self._of_narrowed(node, value, rows)
            elif rows.merged:
                self._taken[key] = self._twin(node, value, rows)
            else:
                self._places[str(value.name)] = None
                self._taken[key] = self._of_whole(node, value, rows)
        return self._taken[key]

    def _of_narrowed(self, node: ir.Node, value: ir.Value, rows: TokenRows) -> ir.Value:
        """Some of the constant tokens that are left."""
        left = self.found.wanted[value].tokens
        assert not isinstance(left, str) and not isinstance(rows.tokens, str)
        return self._gather(node, value, [left.index(t) for t in rows.tokens], rows.axis)

    def _twin(self, node: ir.Node, value: ir.Value, rows: TokenRows) -> ir.Value:
        """What joins batch and tokens in one axis, once again for the rows alone."""
        maker = value.producer()
        assert maker is not None and maker.inputs[0] is not None
        inner = needed(self.probes, maker, rows)[0]
        source = self._rows_of(node, maker.inputs[0], inner)
        out = ir.Value(name=fresh(self.graph, f"{value.name}_read"), type=value.type)
        twin = ir.Node(
            maker.domain, maker.op_type, [source, *maker.inputs[1:]], list(maker.attributes.values()), outputs=[out]
        )
        self.graph.insert_before(node, twin)
        if record_of(maker).told:
            self._retarget(twin, maker, rows)
        return out

    def _of_whole(self, node: ir.Node, value: ir.Value, rows: TokenRows) -> ir.Value:
        if not isinstance(rows.tokens, str):
            return self._gather(node, value, list(rows.tokens), rows.axis)
        tokens = self._tokens(node, rows.tokens)
        if rows.onto is not None:
            return self._onto_batch(node, value, rows, tokens, rows.onto)
        assert rows.batch is not None
        rank = self.probes.rank(value)
        front = [rows.batch, rows.axis, *(a for a in range(rank) if a not in (rows.batch, rows.axis))]
        moved = front != list(range(rank))
        value = self._step(node, "Transpose", value, like=value, perm=front) if moved else value
        places = self._step(node, "Reshape", tokens, self._whole(tokens, -1, 1, 1), like=tokens)
        taken = self._step(node, "GatherND", value, places, like=value, batch_dims=1)
        back = [front.index(a) for a in range(rank)]
        return self._step(node, "Transpose", taken, like=value, perm=back) if moved else taken

    def _onto_batch(
        self, node: ir.Node, value: ir.Value, rows: TokenRows, tokens: ir.Value, onto: tuple[int, int]
    ) -> ir.Value:
        """A token for each row of the batch, of a tensor that is the same for all: the batch gets an axis of its own."""
        rank, batch = onto
        lead = rank - self.probes.rank(value)
        taken = self._step(node, "Gather", value, tokens, like=value, axis=rows.axis)
        if lead:
            sizes = self._step(node, "Shape", taken, like=tokens)
            shape = self._step(node, "Concat", self._whole(value, *[1] * lead), sizes, like=tokens, axis=0)
            taken = self._step(node, "Reshape", taken, shape, like=value)
        perm = list(range(rank))
        perm[batch], perm[rows.axis + lead] = perm[rows.axis + lead], perm[batch]
        return self._step(node, "Transpose", taken, like=value, perm=perm)

    def _tokens(self, node: ir.Node, name: str) -> ir.Value:
        """int64[B]: the token that each row of the batch reads."""
        given = find(self.graph, name)
        cast = self._step(node, "Cast", given, to=int(ir.DataType.INT64))
        return self._step(node, "Reshape", cast, self._whole(given, -1), like=cast)

    def _gather(self, node: ir.Node, value: ir.Value, tokens: list[int], axis: int) -> ir.Value:
        array = constant(value)
        if array is not None and value.const_value is not None:
            made = initializer(self.graph, f"{value.name}_read", np.take(array, tokens, axis=axis))
            made.type = value.type
            return made
        return self._step(node, "Gather", value, self._whole(value, *tokens), like=value, axis=axis)

    # -- sizes ---------------------------------------------------------------------------------------------------

    def _retarget(self, node: ir.Node, source: ir.Node, rows: TokenRows) -> None:
        """Input 1 of `node`, which is `source` or its twin, asks for as many tokens as are left."""
        target = source.inputs[1]
        changes = retargeted(self.probes, source, rows)
        if target is None or not changes:
            return
        array = constant(target)
        if array is not None:
            new = array.copy()
            for entry, size in changes.items():
                new[entry] = size
            node.replace_input_with(1, initializer(self.graph, f"{target.name}_read", new))
            return
        length = self.probes.shape(target)[0][0]
        sizes = self._whole(target, *(changes.get(i, 0) for i in range(length)))
        node.replace_input_with(
            1, self._step(node, "Where", self._at(target, length, changes), sizes, target, like=target)
        )

    def _restore(self, node: ir.Node, source: ir.Value) -> None:
        """What a Shape reads off a narrowed tensor, as it was: the output of new nodes takes its name."""
        rows, rank = self.found.wanted[source], self.probes.rank(source)
        window = list(range(rank))[slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", rank))]
        if rows.axis not in window:
            return
        entry = window.index(rows.axis)
        out = node.outputs[0]
        bounds = {name: node.attributes.get_int(name) for name in ("start", "end") if name in node.attributes}
        now = self._step(node, "Shape", source, like=None, **bounds)
        at, count = self._at(out, len(window), [entry]), self._count(node, source)
        if rows.merged:
            ones, left = (
                self._whole(out, *(n if i == entry else 1 for i in range(len(window)))) for n in (1, rows.kept)
            )
            factor = self._step(node, "Where", at, count, ones)
            whole = self._step(node, "Div", self._step(node, "Mul", now, factor), left)
        else:
            whole = self._step(node, "Where", at, count, now)
        whole.name, out.name = out.name, fresh(self.graph, f"{out.name}_unused")
        out.replace_all_uses_with(whole, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)

    def _count(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """int64[1]: the number of tokens before any is picked."""
        key = self.found.sources[value]
        if key not in self._counts:
            shape = self._step(node, "Shape", key[0])
            self._counts[key] = self._step(node, "Gather", shape, self._whole(shape, key[1]), like=shape, axis=0)
        return self._counts[key]

    def _at(self, base: ir.Value, length: int, entries: Container[int]) -> ir.Value:
        """bool[length]: true at these entries."""
        found = np.array([i in entries for i in range(length)])
        return initializer(self.graph, f"{base.name}_at", found)

    # -- the picks themselves --------------------------------------------------------------------------------------

    def _end(self, node: ir.Node, rows: TokenRows) -> None:
        """Of its input nothing but what the pick takes is left."""
        index = constant(node.inputs[1])
        if node.op_type == "GatherND":
            node.op_type = "Gather"
            node.attributes.clear()
            node.attributes["axis"] = ir.AttrInt64("axis", rows.axis)
            node.replace_input_with(1, initializer(self.graph, f"{node.outputs[0].name}_at", np.array(0, np.int64)))
        elif node.op_type == "Slice":
            axes = constant(node.inputs[3])
            assert axes is not None
            entry = (axes % self.probes.rank(node.outputs[0])).tolist().index(rows.axis)
            for slot, bound in ((1, 0), (2, 1)):
                self._rewrite(node, slot, entry, bound)
        elif index is not None:
            node.replace_input_with(1, initializer(self.graph, f"{node.outputs[0].name}_at", np.zeros_like(index)))
        else:  # batch and tokens in one axis: one is left for each row, in order
            node.op_type = "Identity"
            node.attributes.clear()
            node.resize_inputs(1)

    def _rewrite(self, node: ir.Node, slot: int, entry: int, bound: int) -> None:
        value = node.inputs[slot]
        array = constant(value)
        assert value is not None and array is not None
        new = array.copy()
        new[entry] = bound
        node.replace_input_with(slot, initializer(self.graph, f"{value.name}_read", new))

    # -- new nodes -------------------------------------------------------------------------------------------------

    def _step(
        self,
        before: ir.Node,
        kind: str,
        *inputs: ir.Value,
        like: ir.Value | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """The output of a new node in front of `before`, of the type of `like` (None: 64-bit integers)."""
        kinds = _INTEGERS if like is None else like.type
        out = ir.Value(name=fresh(self.graph, f"{inputs[0].name}_read"), type=kinds)
        self.graph.insert_before(before, ir.node(kind, list(inputs), attributes, outputs=[out]))
        return out

    def _whole(self, base: ir.Value, *numbers: int) -> ir.Value:
        return initializer(self.graph, f"{base.name}_of", np.array(numbers, dtype=np.int64))
