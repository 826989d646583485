"""A quantised graph without rounding, as the rules of operators see it: what each becomes in the float32 twin (`prepare`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from onnx import NodeProto, TensorProto

from axformer_passes.registry.number_moves import Array


class Unrounding(Protocol):
    """A graph, node by node, in order.

    integers   names of tensors that are quantised activations; a rule adds its node's outputs
    weights    initializers, by name
    """

    integers: set[str]
    weights: Mapping[str, TensorProto]

    def weight(self, name: str, array: Array) -> str:
        """Add a weight to the twin; returns its name, which is `name`."""


UnroundedRule = Callable[[Unrounding, NodeProto], list[NodeProto]]
"""(twin, node) -> the nodes in its place. Raises: Stop where it computes with integers and has no twin."""

__all__ = ["UnroundedRule", "Unrounding"]
