"""Axes that a node names, and tokens that must not lie on them."""

from __future__ import annotations

import onnx_ir as ir

from axformer_passes.graph import constant
from axformer_passes.registry import Probes, Stop, TokenRows


def apart(rows: TokenRows, axes: list[int]) -> None:
    if any(rows.touches(axis) for axis in axes):
        raise Stop("it mixes tokens")


def axes_named(probes: Probes, node: ir.Node, slot: int = 1) -> list[int]:
    """The axes that a node names, as an input or attribute. Raises: Stop where it names none, or computes them."""
    if len(node.inputs) > slot and node.inputs[slot] is not None:
        given = constant(node.inputs[slot])
        if given is not None:
            return [int(a) for a in given.reshape(-1)]
    elif "axes" in node.attributes:
        return [int(a) for a in node.attributes.get_ints("axes")]
    raise Stop("it does not say its axes")
