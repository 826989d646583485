"""Shapes and indices: integers that carry no channels."""

from __future__ import annotations

import onnx_ir as ir

from axformer_passes.registry import Walk, channels


@channels("Shape", "Size", "NonZero", "ConstantOfShape", "Range", "OneHot")
def _no_labels(walk: Walk, node: ir.Node) -> None:
    """Shapes and indices carry no channels; their values are evaluated again after a cut."""
