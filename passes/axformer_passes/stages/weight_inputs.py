"""Weights of output projections as run-time inputs: score any compensated plan without editing a graph.

    y = x @ weight + bias   ->   the same, weight and bias graph inputs that are called as the initializers were

A head or neuron that a plan removes has rows of zeros. Projections that cannot be written (`projection.py`), or that have no bias
of their own, stay as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.anatomy import Block
from axformer_passes.blocks import BlockKind, Projection, kind_of, projection
from axformer_passes.errors import RecogniseError
from axformer_passes.recognise import Examined

Array = npt.NDArray[Any]


def writable(examined: Examined, layer: int, kind: BlockKind) -> Projection | None:
    """The output projection of a block, if it is a matrix of floats to which new weights can be written."""
    try:
        place = projection(examined, layer, kind)
    except RecogniseError:
        return None
    return place if place.bias is not None or place.why_no_bias is None else None


def weight_feeds(place: Projection, weight: Array, bias: Array) -> dict[str, Array]:
    """What the inputs of one projection are fed for y = x @ weight[R, D] + bias[D], by name, in their own layout and type."""
    assert place.bias is not None and place.bias.const_value is not None and place.weight.const_value is not None
    shape = tuple(int(n) for n in place.bias.const_value.shape)  # type: ignore[arg-type]
    made = {place.weight: place.laid_out(weight), place.bias: (bias / place.beta).reshape(shape)}
    return {
        str(value.name): np.ascontiguousarray(array.astype(value.const_value.dtype.numpy()))  # type: ignore[union-attr]
        for value, array in made.items()
    }


def weigh_all(graph: ir.Graph, examined: Examined) -> None:
    """Turn weight and bias of every writable output projection of `graph`, a clone of the examined one, into inputs."""
    for layer in examined.anatomy.layers:
        for block in layer.blocks:
            _weigh(graph, examined, layer.index, block)


def _weigh(graph: ir.Graph, examined: Examined, layer: int, block: Block) -> None:
    place = writable(examined, layer, kind_of(block))
    if place is None or place.bias is None:
        return
    for name in (str(place.weight.name), str(place.bias.name)):
        value = graph.initializers.pop(name)
        tensor = value.const_value
        assert tensor is not None
        value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
        value.const_value = None
        graph.inputs.append(value)


__all__ = ["weigh_all", "weight_feeds", "writable"]
