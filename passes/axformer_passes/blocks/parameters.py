"""How many weights and biases blocks hold, and how many leave the file with a plan.

A file holds one copy of an initializer for every way in which it is cut: layers that share weights and lose the same heads read one
copy, layers that lose different ones read one each. Norms are not counted, and neither is who else may read a weight (tied
embeddings): those figures are measured on the file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Iterator, Set

from axformer_passes.anatomy import Anatomy, AttentionBlock, Block, FeedForwardBlock, Layer, Linear
from axformer_passes.blocks.shared import expanded, linears
from axformer_passes.plan import Plan


def linear_parameters(linear: Linear) -> int:
    """Weights and biases of one projection."""
    return (linear.rows + (linear.bias is not None)) * linear.columns


def head_parameters(block: AttentionBlock) -> int:
    """Columns of query, key and value with their biases, and rows of the output projection, for one head."""
    return _unit_parameters(block, block.heads)


def neuron_parameters(block: FeedForwardBlock) -> int:
    """Columns of the up projections with their biases (gated forms have two, side by side or apart), and a row of down."""
    return _unit_parameters(block, block.neurons)


def block_parameters(block: Block) -> int:
    """Everything that goes when the block goes, the output bias included (norms are not counted)."""
    return sum(map(linear_parameters, linears(block)))


def removed_parameters(anatomy: Anatomy, plan: Plan) -> int:
    """Weights and biases of the blocks that the file has less of under `plan`; negative where copies make it grow."""
    plan = expanded(plan, anatomy)
    touched = {*plan.heads, *plan.neurons, *plan.attention_blocks, *plan.feed_forward_blocks}
    blocks = [block for i in touched for block in anatomy.layers[i].blocks]
    names = {name for block in blocks for name in _names(block)}
    return _held(anatomy.layers, Plan(), names) - _held(anatomy.layers, plan, names)


def parameters_by_layer(anatomy: Anatomy) -> list[int]:
    """Weights and biases of each layer's blocks; what several layers read counts in the first of them."""
    seen, counts = set[str](), []
    for layer in anatomy.layers:
        names = {name for block in layer.blocks for name in _names(block)} - seen
        counts.append(_held([layer], Plan(), names))
        seen |= names
    return counts


@dataclasses.dataclass(frozen=True)
class _Use:
    """One projection's use of an initializer.

    node   the output of the node that reads it: the parts of a fused projection have one node, and one copy
    kept   numbers of this part of it that stay
    cut    what goes: equal cuts of one initializer are one copy; None: nothing is read any more
    """

    initializer: str
    node: str
    kept: int
    cut: Hashable


def _unit_parameters(block: Block, units: int) -> int:
    *inner, last = linears(block)
    return (sum(map(linear_parameters, inner)) + last.rows * last.columns) // units


def _names(block: Block) -> set[str]:
    return {name for x in linears(block) for name in (x.weight, x.bias) if name is not None}


def _held(layers: Iterable[Layer], plan: Plan, names: Set[str]) -> int:
    """Numbers in all copies of the initializers `names` under an expanded plan."""
    nodes: dict[tuple[str, str], list[_Use]] = {}
    for layer in layers:
        for block in layer.blocks:
            if not names.isdisjoint(_names(block)):
                for use in _uses(layer, block, plan):
                    if use.initializer in names:
                        nodes.setdefault((use.initializer, use.node), []).append(use)
    copies = {
        (name, tuple(use.cut for use in uses)): sum(use.kept for use in uses)
        for (name, _), uses in nodes.items()
        if any(use.cut is not None for use in uses)
    }
    return sum(copies.values())


def _uses(layer: Layer, block: Block, plan: Plan) -> Iterator[_Use]:
    attention = isinstance(block, AttentionBlock)
    units = block.heads if isinstance(block, AttentionBlock) else block.neurons
    ids = (plan.heads if attention else plan.neurons).get(layer.index, frozenset())
    gone = layer.index in (plan.attention_blocks if attention else plan.feed_forward_blocks)
    *inner, last = linears(block)
    for linear in (*inner, last):
        columns = None if gone else (("columns", ids) if ids and linear is not last else ())
        rows = None if gone else (("rows", ids) if ids else ())
        for name, size, cut in (
            (linear.weight, linear.rows * linear.columns, rows if linear is last else columns),
            (linear.bias, linear.columns, columns),
        ):
            if name is not None:
                yield _Use(name, linear.output, size - size * len(ids) // units if cut else size, cut)


__all__ = [
    "block_parameters",
    "head_parameters",
    "linear_parameters",
    "neuron_parameters",
    "parameters_by_layer",
    "removed_parameters",
]
