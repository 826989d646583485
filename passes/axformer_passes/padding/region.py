"""Which operators can work on real tokens alone, and which of them should.

Shapes: B rows, S tokens of the longest, N real ones, `rest` the same at every batch and length.

    x[B,S,*rest]  ->  x[1,N,*rest]      batch and tokens in front
    x[B*S,*rest]  ->  x[N,*rest]        ... in one axis

An operator can where its outputs are of these shapes and every token of them is made of the same token of its inputs
(`@tokens` of its record). An input may also have the tokens without the batch (positions), or neither (weights).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import onnx_ir as ir

from axformer_passes.graph import origin
from axformer_passes.operators import Probes, Stop, TokenRows, record_of


@dataclasses.dataclass(frozen=True)
class Tokens:
    """How the tensors of a probed graph hold the tokens of its batch. `mask`: its input [B,S]."""

    probes: Probes
    mask: ir.Value

    @property
    def count(self) -> tuple[int, ...]:
        """S in each probe."""
        return tuple(shape[1] for shape in self.probes.shape(self.mask))

    def rows(self, value: ir.Value | None) -> TokenRows | None:
        """Real tokens of a tensor that has batch and tokens in front; None where it has not. Raises: Stop."""
        pairs = list(zip(self.probes.shape(value), self.probes.shape(self.mask), strict=True))
        if all(s[:2] == sizes for s, sizes in pairs) and self._fixed(value, 2):
            return TokenRows(1, 0, str(self.mask.name), self.count)
        if all(s[:1] == (math.prod(sizes),) for s, sizes in pairs) and self._fixed(value, 1):
            return TokenRows(0, 0, str(self.mask.name), self.count)
        return None

    def rest(self, value: ir.Value, rows: TokenRows) -> list[int]:
        """The sizes behind the tokens."""
        return list(self.probes.shape(value)[0][rows.axis + 1 :])

    def takes(self, value: ir.Value | None, rows: TokenRows) -> bool:
        """Can these rows be taken of this tensor? Raises: Stop."""
        if not of_positions(rows):
            own = self.rows(value)
            return own is not None and (own.axis, own.batch) == (rows.axis, rows.batch)
        shapes = self.probes.shape(value)
        alone = all(math.prod(s[: rows.axis]) == 1 for s in shapes)
        counted = tuple(s[rows.axis] for s in shapes) == self.count
        return alone and counted and self._fixed(value, rows.axis + 1)

    def _fixed(self, value: ir.Value | None, behind: int) -> bool:
        return len({shape[behind:] for shape in self.probes.shape(value)}) == 1

    def read(self, node: ir.Node) -> dict[int, TokenRows]:
        """{slot: rows of that input} of which real tokens of a node's outputs are made; empty where it does not do that."""
        record = record_of(node)
        if record.tokens is None or (record.told and not record.orderly):
            return {}  # what repeats its input in a stated shape would have to state another
        try:
            outs = [self.rows(value) for value in node.outputs if value.name]
            rows = outs[0]
            if rows is None or any(out != rows for out in outs) or any(map(self._stays, node.outputs)):
                return {}
            found = record.tokens(self.probes, node, rows)
            for slot, value in enumerate(node.inputs):
                fits = self.takes(value, found[slot]) if slot in found else value is None or self._fixed(value, 0)
                if not fits:
                    return {}
        except Stop:
            return {}
        return {} if all(map(of_positions, found.values())) else found

    def _stays(self, value: ir.Value) -> bool:
        """Outputs hold all tokens, and one number a token is no work."""
        rows = self.rows(value) if value.name else None
        return value.is_graph_output() or (rows is not None and math.prod(self.rest(value, rows)) == 1)


def of_positions(rows: TokenRows) -> bool:
    """Are these rows of a tensor that is the same for every row of the batch?"""
    return rows.batch is None or rows.onto is not None


Region = dict[ir.Node, dict[int, TokenRows]]
"""{node: {slot: rows}} that work on real tokens, in graph order."""


def region(tokens: Tokens) -> Region:
    """The operators that shall work on real tokens alone."""
    found = {node: reads for node in tokens.probes.model.graph if (reads := tokens.read(node))}
    while edge := [node for node in found if _is_edge(node, found)]:
        for node in edge:
            del found[node]
    worth = {node for part in _parts(found) if any(map(is_product, part)) for node in part}
    return {node: reads for node, reads in found.items() if node in worth}


def is_product(node: ir.Node) -> bool:
    """Does it multiply with weights?"""
    return record_of(node).cost is not None and any(origin(value) is not None for value in node.inputs)


def _is_edge(node: ir.Node, found: Region) -> bool:
    """Is it better left outside?

    * a mere move before the first or behind the last operator
    * a lookup before the first product whose rows others read, too: those next to a token may count, as in a convolution
    * what meets a tensor behind the last product that no operator inside makes: hidden * mask sums up what padded tokens
      hold, too, so that it must see a mask with zeros
    """
    users = {user for value in node.outputs for user, _ in value.uses()}
    makers = [value.producer() for slot in found[node] if (value := node.inputs[slot]) is not None]
    first, last = not any(maker in found for maker in makers), not any(user in found for user in users)
    if record_of(node).orderly:
        return first or last
    if record_of(node).cost is not None:
        return False
    if first and any(user not in found and user.op_type != "Shape" for user in users):
        return True
    of_batch = [slot for slot, rows in found[node].items() if not of_positions(rows)]
    return last and len(of_batch) > 1 and not all(_is_made(node.inputs[slot], found) for slot in of_batch)


def _is_made(value: ir.Value | None, found: Region) -> bool:
    return value is not None and value.producer() in found


def _parts(found: Region) -> Iterator[set[ir.Node]]:
    """Nodes that are connected by tensors of real tokens."""
    left = dict.fromkeys(found)
    while left:
        start, _ = left.popitem()
        part, queue = {start}, [start]
        while queue:
            for other in _neighbours(queue.pop(), found):
                if other in left:
                    del left[other]
                    part.add(other)
                    queue.append(other)
        yield part


def _neighbours(node: ir.Node, found: Region) -> Iterator[ir.Node]:
    for slot in found[node]:
        value = node.inputs[slot]
        maker = value.producer() if value is not None else None
        if maker is not None and maker in found:
            yield maker
    for value in node.outputs:
        for user, slot in value.uses():
            if slot in found.get(user, {}):
                yield user


__all__ = ["Region", "Tokens", "is_product", "of_positions", "region"]
