"""How far picks of tokens move up: which tensors are narrowed, and where the picks stand afterwards.

A tensor is narrowed where all that read it want the same rows of it, and the operator that makes it can be asked for them. What it
needs of its inputs is wanted there, and so on upwards. Reading its shape is no reason against it.
"""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from axformer_passes.graph import anchor, find
from axformer_passes.operators import Probes, Stop, TokenRows, record_of
from axformer_passes.readout.picks import Pick, upstream

_SHAPED = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


@dataclasses.dataclass(frozen=True)
class Narrowing:
    """What is narrowed, in graph order.

    wanted    rows that are left of each narrowed tensor
    needs     {slot: rows} that each narrowed node, and each pick, reads
    sources   for each narrowed tensor, one of which rows are taken, and its token axis: it still has all tokens
    stops     why a pick moved no further, one sentence each
    """

    wanted: dict[ir.Value, TokenRows]
    needs: dict[ir.Node, dict[int, TokenRows]]
    sources: dict[ir.Value, tuple[ir.Value, int]]
    stops: tuple[str, ...]

    def is_ready(self, value: ir.Value | None, rows: TokenRows) -> bool:
        """Holds a narrowed tensor these rows, perhaps among others?"""
        wanted = None if value is None else self.wanted.get(value)
        return wanted is not None and dataclasses.replace(wanted, tokens=rows.tokens) == rows


def needed(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
    """{slot: rows} that `rows` of the node's outputs are made of. Raises: Stop."""
    own = record_of(node).tokens
    if own is None:
        raise Stop("not token by token")
    found = own(probes, node, rows)
    if any(one.by_row and one.onto is None and one.batch is None for one in found.values()):
        raise Stop("its batch lies in no axis of its own")
    return found


def narrowing(probes: Probes, starts: list[Pick]) -> Narrowing:
    """Move the picks up as far as they go. A node that could be asked, but whose inputs cannot be narrowed, is left whole."""
    whole: dict[ir.Node, str] = {}
    while True:
        found = _walk(probes, [pick for pick in starts if pick.node not in whole], whole)
        refused = _refused(probes, found)
        if not refused:
            dropped = tuple(f"{node.op_type} {anchor(node)!r}: {why}" for node, why in whole.items())
            return dataclasses.replace(found, stops=tuple(dict.fromkeys((*found.stops, *dropped))))
        whole.update(refused)


def _walk(probes: Probes, starts: list[Pick], whole: dict[ir.Node, str]) -> Narrowing:
    wanted: dict[ir.Value, TokenRows] = {}
    needs: dict[ir.Node, dict[int, TokenRows]] = {pick.node: {0: pick.rows} for pick in starts}
    stops: list[str] = []
    for node in reversed(list(probes.model.graph)):
        if node in needs:
            continue
        try:
            rows = _of_outputs(node, needs)
            if rows is None:
                continue
            if node in whole:
                raise Stop(whole[node])
            found = needed(probes, node, rows)
        except Stop as stop:
            stops.append(f"{node.op_type} {anchor(node)!r}: {stop}")
            continue
        needs[node] = found
        wanted.update((value, rows) for value in node.outputs)
    order = {node: needs[node] for node in probes.model.graph if node in needs}
    return Narrowing(wanted, order, _sources(probes, wanted, order), tuple(stops))


def _of_outputs(node: ir.Node, needs: dict[ir.Node, dict[int, TokenRows]]) -> TokenRows | None:
    """The rows that are wanted of all outputs of a node; None where nobody wants rows. Raises: Stop where others want more."""
    asked: list[TokenRows] = []
    reason = ""
    for value in node.outputs:
        if value.is_graph_output():
            reason = f"{value.name!r} is an output with all its tokens"
        for user, slot in value.uses():
            rows = needs.get(user, {}).get(slot)
            if rows is not None:
                asked.append(rows)
            elif user.op_type != "Shape" or user.graph is not node.graph:
                reason = reason or f"{user.op_type} {anchor(user)!r} reads all its tokens"
    if not asked:
        return None
    if reason:
        raise Stop(reason)
    together = _together(asked)
    if together is None or together.onto is not None or min(together.count) <= together.kept:
        raise Stop("its tokens are read in different ways")
    return together


def _together(asked: list[TokenRows]) -> TokenRows | None:
    """One narrowing for all; constant tokens may differ."""
    tokens = {rows.tokens for rows in asked}
    first = asked[0]
    if any(dataclasses.replace(rows, tokens=first.tokens) != first for rows in asked):
        return None
    if len(tokens) == 1:
        return first
    if any(rows.by_row or rows.merged for rows in asked):
        return None
    return dataclasses.replace(
        first, tokens=tuple(sorted({t for rows in asked for t in rows.tokens if isinstance(t, int)}))
    )


def _sources(
    probes: Probes, wanted: dict[ir.Value, TokenRows], needs: dict[ir.Node, dict[int, TokenRows]]
) -> dict[ir.Value, tuple[ir.Value, int]]:
    sources: dict[ir.Value, tuple[ir.Value, int]] = {}
    for node, slots in needs.items():
        for slot, rows in slots.items():
            value = node.inputs[slot]
            source = None
            if value in wanted:
                source = sources.get(value)
            elif value is not None and not rows.merged:
                source = value, rows.axis
            elif value is not None:
                inner = unmerged(probes, value, rows)
                source = None if inner is None else sources.get(inner[0], (inner[0], inner[1].axis))
            if source is not None:
                sources.update((out, source) for out in node.outputs if out in wanted)
                break
    return sources


def unmerged(probes: Probes, value: ir.Value, rows: TokenRows) -> tuple[ir.Value, TokenRows] | None:
    """The tensor before batch and tokens were joined in one axis, and its rows; None where that cannot be told."""
    while rows.merged:
        node = value.producer()
        if node is None or node.op_type not in _SHAPED or node.inputs[0] is None:
            return None
        try:
            rows = needed(probes, node, rows)[0]
        except Stop:
            return None
        value = node.inputs[0]
    return value, rows


def _refused(probes: Probes, found: Narrowing) -> dict[ir.Node, str]:
    """{node: why} of those whose inputs cannot be narrowed after all; what follows from them is asked again without them."""
    return _not_placed(probes, found) or _not_counted(found) or _circular(probes, found)


def _not_placed(probes: Probes, found: Narrowing) -> dict[ir.Node, str]:
    """Nodes that read rows of an axis that holds batch and tokens, which cannot be picked there."""
    refused = {}
    for node, slots in found.needs.items():
        for slot, rows in slots.items():
            value = node.inputs[slot]
            assert value is not None
            if rows.merged and not found.is_ready(value, rows) and unmerged(probes, value, rows) is None:
                refused[node] = f"{value.name!r} has batch and tokens in one axis, and is read by others too"
    return refused


def _not_counted(found: Narrowing) -> dict[ir.Node, str]:
    """Nodes at which the tokens begin (an Expand), where a Shape behind them would have nothing to count them by."""
    refused = {}
    for value in found.wanted:
        if value in found.sources or not any(user.op_type == "Shape" for user in value.consumers()):
            continue
        node = value.producer()
        while node is not None:
            first = node
            node = next((v.producer() for slot in found.needs[first] if (v := node.inputs[slot]) in found.wanted), None)
        refused[first] = "the number of its tokens is read where no tensor has them all"
    return refused


def _circular(probes: Probes, found: Narrowing) -> dict[ir.Node, str]:
    """Picks by a position for each row that depends on what they would narrow."""
    readers: dict[str, ir.Node] = {}
    for node, slots in found.needs.items():
        readers.update({rows.tokens: node for rows in slots.values() if isinstance(rows.tokens, str)})
    refused = {}
    for name, node in readers.items():
        maker = find(probes.model.graph, name).producer()
        if maker is not None and any(other in found.needs for other in upstream([maker])):
            refused[node] = f"{name!r}, the token to read, depends on what would be narrowed"
    return refused
