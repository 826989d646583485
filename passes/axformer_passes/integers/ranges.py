"""Static ranges: the step by which what a product reads is rounded, found on data beforehand.

    q = clip(rint(x / step), -128, 127),  x ~ q * step          one step for a tensor, symmetric about 0

Symmetric, because TensorRT takes no zero point but 0, and what every target takes makes one graph for all of them. 127 steps go to
the furthest number that was seen: a range that clips a few far numbers to round all others more finely is worse. Divergence of a
MiniLM model on 600 MNLI rows, all products rounded: .0045 (a 100,000th clipped: .0044), with the smallest error of the products
.0066, with a 10,000th clipped .0537; with dynamic ranges .0027.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from axformer_passes.anatomy import AttentionBlock, Block, Linear
from axformer_passes.blocks import Projection, kind_of, linears, projection_at
from axformer_passes.errors import RecogniseError
from axformer_passes.graph import find
from axformer_passes.integers.products import Rounding
from axformer_passes.integers.rounding import scaled_down
from axformer_passes.integers.smoothing import IntArray, Reach, by_activation, inner_shifts, input_shifts
from axformer_passes.precision import LEAST_STEP, Int8, Kind
from axformer_passes.recognise import Examined
from axformer_passes.stages import writable

LARGEST = 127
"""Of the integers."""
_LAST = ("output", "down")
"""Projections that read what is inside of a block."""


def with_steps(examined: Examined, int8: Int8, reach: Mapping[str, Reach]) -> Int8:
    """`int8` with "scales" for its blocks; reach: of what their products read, by name (`read_by_products`)."""
    scales = dict[str, dict[int, dict[str, float]]]()
    for layer in examined.anatomy.layers:
        for block in layer.blocks:
            kind = kind_of(block)
            for name, linear in projections_of(block) if int8.has(layer.index, kind) else ():
                node = find(examined.labelling.model.graph, linear.output).producer()
                own = reach.get(str(node.inputs[0].name)) if node is not None and node.inputs[0] is not None else None
                if own is not None:
                    shifts = rounding_at(examined, int8, (layer.index, kind, name), linear).shifts
                    scales.setdefault(kind, {}).setdefault(layer.index, {})[name] = _step(own, shifts)
    return dataclasses.replace(int8, scales=scales)


def _step(reach: Reach, shifts: IntArray | None) -> float:
    """A float32 number; 1 where all numbers are as good as 0."""
    far = np.maximum(reach.high, -reach.low)
    furthest = float((far if shifts is None else far * scaled_down(shifts)).max(initial=0.0))
    return step if (step := float(np.float32(furthest / LARGEST))) >= LEAST_STEP else 1.0


def projections_of(block: Block) -> list[tuple[str, Linear]]:
    """The projections of a block by the names that a plan's scales have, the output (down) projection last."""
    *inner, last = linears(block)
    if isinstance(block, AttentionBlock):
        return [*zip(("query", "key", "value"), inner, strict=True), ("output", last)]
    return [
        *((f"up{i or ''}", one) for i, one in zip((0, *range(2, 1 + len(inner))), inner, strict=True)),
        ("down", last),
    ]


def rounding_at(examined: Examined, int8: Int8, where: tuple[int, Kind, str], linear: Linear) -> Rounding:
    """How what a projection of the examined graph reads is rounded; where: (layer, kind, name)."""
    try:
        place = projection_at(examined, linear.output, linear.output, ())
    except RecogniseError:
        return Rounding(None, int8.scale_of(*where))
    shifts = shifts_at(examined, int8, where, place)
    return Rounding(None if shifts is None else by_activation(place, shifts), int8.scale_of(*where))


def shifts_at(examined: Examined, int8: Int8, where: tuple[int, Kind, str], place: Projection) -> IntArray | None:
    """int64[R] of a projection in the order of its `weight_matrix`; None: nothing is moved."""
    layer, kind, name = where
    if name not in _LAST:
        return input_shifts(int8, layer, kind, place)
    whole = writable(examined, layer, kind)
    return inner_shifts(int8, layer, kind, whole) if whole is not None else None


__all__ = ["projections_of", "rounding_at", "shifts_at", "with_steps"]
