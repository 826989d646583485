"""What blocks consist of: their projections as matrices, positions of heads and neurons, shared weights, parameters and cost;
and which projection the numbers of a tensor come from.

Takes what `recognise` found and answers questions about one block at a time; nothing is edited but the bias of a projection.
"""

from __future__ import annotations

from axformer_passes.blocks.cost import macs, shares
from axformer_passes.blocks.inner import ROLES, Inner, Role, gone_classes, inner_projections
from axformer_passes.blocks.parameters import (
    block_parameters,
    head_parameters,
    linear_parameters,
    neuron_parameters,
    parameters_by_layer,
    removed_parameters,
)
from axformer_passes.blocks.positions import GatedBlock, gated_block, gated_place, projection_of, row_labels
from axformer_passes.blocks.projections import (
    Inputs,
    Projection,
    classifier,
    give_bias,
    input_of,
    inputs_of,
    projection,
    projection_at,
)
from axformer_passes.blocks.provenance import (
    Matrix,
    Trail,
    Trails,
    Unfollowed,
    base_of,
    is_constant,
    matrix_of,
    product_behind,
    way,
)
from axformer_passes.blocks.shared import (
    BlockKind,
    SharedGroup,
    expanded,
    kind_of,
    linears,
    ranges,
    shared_groups,
    sharing,
    words,
)

__all__ = [
    "ROLES",
    "BlockKind",
    "GatedBlock",
    "Inner",
    "Inputs",
    "Matrix",
    "Projection",
    "Role",
    "SharedGroup",
    "Trail",
    "Trails",
    "Unfollowed",
    "base_of",
    "block_parameters",
    "classifier",
    "expanded",
    "gated_block",
    "gated_place",
    "give_bias",
    "gone_classes",
    "head_parameters",
    "inner_projections",
    "input_of",
    "inputs_of",
    "is_constant",
    "kind_of",
    "linear_parameters",
    "linears",
    "macs",
    "matrix_of",
    "neuron_parameters",
    "parameters_by_layer",
    "product_behind",
    "projection",
    "projection_at",
    "projection_of",
    "ranges",
    "removed_parameters",
    "row_labels",
    "shared_groups",
    "shares",
    "sharing",
    "way",
    "words",
]
