"""Shapes and indices: integers that carry no channels."""

from __future__ import annotations

import onnx_ir as ir
from onnx import NodeProto

from axformer_passes.registry import (
    Unrounding,
    Walk,
    channels,
    unrounded,
)


@channels("Shape", "Size", "NonZero", "ConstantOfShape", "Range", "OneHot")
def _no_labels(walk: Walk, node: ir.Node) -> None:
    """Shapes and indices carry no channels; their values are evaluated again after a cut."""


@unrounded("Shape", "Size")
def _same_shape(twin: Unrounding, node: NodeProto) -> list[NodeProto]:
    """Integers and their floats are of one shape."""
    return [node]
