"""Inner projections of a block, which read the residual stream: queries, keys and values, up and gate.

Each is `y = x @ weight[R, C] (+ bias[C])` with all of the stream in its rows and heads or neurons in its columns. What shares one
matrix (packed queries, keys and values) is one projection, and goes by the first of its roles.

What cannot be written (a quantised weight, one that several products read, rows that a cut takes) is passed over: these weights may
be given anew, they need not.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from axformer_passes.anatomy import AttentionBlock, Block, Linear
from axformer_passes.blocks.projections import Inputs, Projection, inputs_of_linear, projection_at
from axformer_passes.blocks.shared import kind_of
from axformer_passes.errors import RecogniseError
from axformer_passes.plan import Plan
from axformer_passes.recognise import Examined

IntArray = npt.NDArray[np.int64]
Role = Literal["query", "key", "value", "up", "up2"]
"""up2 is the second of a gated form, in the order of the graph."""
ROLES: tuple[Role, ...] = get_args(Role)


@dataclasses.dataclass(frozen=True)
class Inner:
    """One inner projection: its role, its matrix, what it reads, and the class of each column."""

    role: Role
    place: Projection
    inputs: Inputs
    classes: IntArray

    def kept(self, gone: Iterable[int]) -> IntArray:
        """int64[K]: the columns that stay without the classes `gone`, ascending."""
        return np.flatnonzero(~np.isin(self.classes, list(gone)))


def inner_projections(examined: Examined, layer: int, block: Block) -> list[Inner]:
    """Those of one block that can be written, in the order of their roles."""
    found, seen = list[Inner](), set[str]()
    for role, linear in _linears(block):
        if linear.output not in seen:
            seen.add(linear.output)
            one = _inner(examined, layer, block, role, linear)
            found += [one] if one is not None else []
    readers = Counter(product.weight for product in examined.labelling.products)
    return [one for one in found if readers[str(one.place.weight.name)] == 1]


def gone_classes(examined: Examined, plan: Plan, layer: int, block: Block) -> frozenset[int] | None:
    """The classes of heads or neurons that `plan` takes from a block; None where nothing of its inside is left."""
    if kind_of(block) == "attention":
        removed, units, classes = plan.attention_blocks, plan.heads, examined.head_classes[layer]
    else:
        removed, units, classes = plan.feed_forward_blocks, plan.neurons, examined.neuron_classes[layer]
    gone = units.get(layer, frozenset())
    return None if layer in removed or len(gone) == len(classes) else frozenset(classes[i] for i in gone)


def _linears(block: Block) -> list[tuple[Role, Linear]]:
    if isinstance(block, AttentionBlock):
        return [("query", block.query), ("key", block.key), ("value", block.value)]
    return [(role, linear) for role, linear in zip(ROLES[3:], block.up, strict=False)]


def _inner(examined: Examined, layer: int, block: Block, role: Role, linear: Linear) -> Inner | None:
    labelling = examined.labelling
    product = labelling.product_at.get(linear.output)
    if product is None or product.rows is None or product.columns is None:
        return None
    try:
        place = projection_at(examined, linear.output, f"layer {layer}, {role}", ())
    except RecogniseError:
        return None
    cuttable = set().union(*examined.head_classes, *examined.neuron_classes)
    if cuttable & set(labelling.of_carrier(product.rows).tolist()):
        return None
    return Inner(role, place, inputs_of_linear(examined, linear), labelling.of_carrier(product.columns))


__all__ = ["ROLES", "Inner", "Role", "gone_classes", "inner_projections"]
