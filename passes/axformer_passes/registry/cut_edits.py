"""The state of a cut, as the rules of operators see it: what stays of every tensor, and the integers before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.registry.classes import IntArray


class Cutting(Protocol):
    """One cut, under way."""

    graph: ir.Graph
    opset: int

    def labels(self, value: ir.Value | None) -> IntArray | None:
        """The labels of a tensor before the cut; None where it has none."""

    def kept(self, value: ir.Value | None) -> Mapping[int, IntArray]:
        """Positions that stay, per axis of `value` that loses some; {} where nothing goes."""

    def shape(self, value: ir.Value | None) -> tuple[int, ...]:
        """The probed shape after the cut."""

    def before(self, value: ir.Value | None) -> npt.NDArray[Any]:
        """The integers that a tensor holds before the cut."""

    def after(self, value: ir.Value | None) -> npt.NDArray[Any]:
        """The integers that it holds after the cut, of the shapes after it."""

    def follows_already(self, value: ir.Value) -> bool:
        """Do its integers come out otherwise after the cut, of themselves?"""

    def follow(self, node: ir.Node, slot: int, axis: int, keep: IntArray) -> None:
        """Narrow input `slot` to the positions `keep` of `axis` (from the right), unless it is labelled, broadcast or narrow."""

    def scale(self, node: ir.Node, target: ir.Value, factors: npt.NDArray[np.int64]) -> None:
        """Input 1 of `node` becomes target * factors[1] / factors[0], `target` as it was before the cut."""


CutRule = Callable[[Cutting, ir.Node], None]
"""Edits the node whose labelled inputs or outputs lose positions, in place. Raises: RecogniseError where it cannot."""


def follow_beside(cut: Cutting, node: ir.Node, places: tuple[tuple[int, int, int], ...]) -> None:
    """Operands without labels that go with the output's channels.

    places   (slot, axis of the output, axis of the operand from the right)
    """
    labels, kept = cut.labels(node.outputs[0]), cut.kept(node.outputs[0])
    if labels is None:
        return
    for slot, axis, own in places:
        keep = kept.get(axis % labels.ndim)
        if slot < len(node.inputs) and node.inputs[slot] is not None and keep is not None:
            cut.follow(node, slot, own, keep)


def follow_all(cut: Cutting, node: ir.Node, skip: int | None = None) -> None:
    """Every operand without labels loses what the output loses, on the same axis; not on axis `skip`."""
    labels = cut.labels(node.outputs[0])
    for axis, keep in cut.kept(node.outputs[0]).items():
        for slot, value in enumerate(node.inputs):
            if value is not None and axis != skip and labels is not None:
                cut.follow(node, slot, axis - labels.ndim, keep)


__all__ = ["CutRule", "Cutting", "follow_all", "follow_beside"]
