"""Output projections of a prepared graph as plain matrices: where their weight and bias are, and how they are laid out.

Shapes: R rows in the order of the tensor that the projection multiplies (the order of gates), D columns.

    MatMul, Gemm, Conv of size 1, Einsum; weight behind Transpose, Cast, Identity   ->   weight[R, D], bias[D] in float64
    a weight of integers, behind DequantizeLinear or in an integer product          ->   refused, at that node
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.anatomy import AttentionBlock, Linear
from axformer_passes.blocks.positions import gated_block, projection_of
from axformer_passes.blocks.shared import BlockKind
from axformer_passes.errors import RecogniseError
from axformer_passes.graph import anchor, find, fresh, initializer, origin
from axformer_passes.operators import LINEAR, Carrier, IntArray, data_side, operands, spread_rows
from axformer_passes.recognise import Examined, Labelling

FloatArray = npt.NDArray[np.float64]
_WITH_BIAS = frozenset({"Gemm", "Conv"})
"""Operators that take a bias in slot 2."""
Layout = Literal["rows", "columns", "flat", "picked"]


@dataclasses.dataclass(frozen=True)
class Projection:
    """One output projection.

    node            the contraction
    weight, bias    initializers; bias None: there is none
    positions       per head (neuron) its rows
    order           int64[R]: place of each row among the weight's own
    rows, columns   the labelled axes of `weight`
    alpha, beta     Gemm's factors of product and bias, else 1
    column_axis     of the output, from the right; None where the columns lie on several
    why_no_bias     what stands in the way of giving it a bias, else None
    """

    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    positions: tuple[tuple[int, ...], ...]
    order: IntArray
    rows: Carrier
    columns: Carrier
    alpha: float
    beta: float
    column_axis: int | None

    @property
    def why_no_bias(self) -> str | None:
        """The reason in words, None where a bias can be given."""
        if self.node.outputs[0].is_graph_output():
            return "its output is an output of the graph"
        if self.node.op_type in _WITH_BIAS and len(self.node.inputs) > 2 and self.node.inputs[2] is not None:
            return f"input 2 of its {self.node.op_type} is not a constant of {self.columns.size} values"
        return "its columns lie on several axes" if self.column_axis is None else None

    def weight_matrix(self) -> FloatArray:
        """float64[R, D]: y = x @ this (+ bias)."""
        assert self.weight.const_value is not None
        own = np.asarray(self.weight.const_value.numpy(), dtype=np.float64)
        axes = (*self.rows.axes, *self.columns.axes)
        matrix = np.moveaxis(own, axes, range(len(axes))).reshape(self.rows.size, self.columns.size)
        return np.asarray(matrix[self.order] * self.alpha)

    def bias_vector(self) -> FloatArray | None:
        """float64[D], or None."""
        if self.bias is None or self.bias.const_value is None:
            return None
        return np.asarray(self.bias.const_value.numpy(), dtype=np.float64).reshape(-1) * self.beta

    def laid_out(self, matrix: FloatArray) -> FloatArray:
        """Inverse of `weight_matrix`: float64[R, D] in the axes of the initializer."""
        assert self.weight.const_value is not None
        own = np.empty_like(matrix)
        own[self.order] = matrix / self.alpha
        axes, rank = (*self.rows.axes, *self.columns.axes), len(self.weight.const_value.shape)
        shape = (*self.rows.shape, *self.columns.shape, *[1] * (rank - len(axes)))
        return np.moveaxis(own.reshape(shape), range(len(axes)), axes)


def projection(examined: Examined, layer: int, kind: BlockKind) -> Projection:
    """The output projection of a block. Raises: RecogniseError where its weight is no matrix of floats that can be written."""
    block = getattr(examined.anatomy.layers[layer], kind)
    where = f"layer {layer}, {'attention' if isinstance(block, AttentionBlock) else 'feed-forward'}"
    return projection_at(examined, projection_of(block)[1], where, gated_block(examined, layer, block).positions)


def classifier(examined: Examined, output: str) -> Projection:
    """The last linear layer before the graph output `output`: what lies between is an addition of constants, a cast, a reshape.

    Raises: RecogniseError where there is none, or its weight is no matrix of floats that can be written.
    """
    graph, products = examined.labelling.model.graph, examined.labelling.product_at
    value: ir.Value | None = find(graph, output)
    while value is not None:
        node = value.producer()
        product = products.get(str(value.name))
        if product is not None and product.rows is not None and product.columns is not None:
            rows = product.rows.size
            return projection_at(examined, str(value.name), "the classifier", tuple((i,) for i in range(rows)))
        through = node is not None and node.op_type in ("Add", "Identity", "Cast", "Reshape", "Squeeze")
        open_inputs = [v for v in node.inputs if v is not None and origin(v) is None] if node and through else []
        value = open_inputs[0] if len(open_inputs) == 1 or (open_inputs and node and node.op_type != "Add") else None
    raise RecogniseError(f"{output}: no linear layer with learned weights stands right before this output")


def projection_at(examined: Examined, output: str, where: str, positions: tuple[tuple[int, ...], ...]) -> Projection:
    """The contraction with a weight that makes `output`; `positions`: per head (neuron) its rows.

    Raises: RecogniseError where its weight is no matrix of floats that can be written; `where` names it.
    """
    labelling = examined.labelling
    node, product = find(labelling.model.graph, output).producer(), labelling.product_at[output]
    assert node is not None and product.rows is not None and product.columns is not None
    side = data_side(node)
    _require_floats(operands(node)[1 - side], node, where)
    weight = labelling.model.graph.initializers[product.rows.initializer]
    size = weight.const_value.size if weight.const_value is not None else 0
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    if size != product.rows.size * product.columns.size or alpha == 0 or beta == 0:
        raise RecogniseError(
            f"{where}: {output}: its weight is not a matrix of {product.rows.size} by {product.columns.size}"
        )
    axis = _column_axis(labelling, output, product.columns)
    spread = spread_rows(product, np.ndim(labelling.values[str(operands(node)[side].name)]))
    return Projection(
        node=node,
        weight=weight,
        bias=_bias(node, axis, product.columns.size, where),
        positions=positions,
        order=spread.reshape(-1) - product.rows.first,
        rows=product.rows,
        columns=product.columns,
        alpha=alpha,
        beta=beta,
        column_axis=axis,
    )


def input_of(place: Projection) -> str:
    """Name of the tensor that a projection multiplies."""
    value = operands(place.node)[data_side(place.node)]
    assert value is not None
    return str(value.name)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What an output projection reads, before it is quantised.

    name       the tensor
    width      R
    channels   its axes that the projection sums over; the others are tokens
    layout     how its tokens lie: "rows" [B, S], "columns" [S, B], "flat" [B * S], "picked" [B] (one token of each row, as behind a
               narrowed read-out); None: not B rows of S tokens
    """

    name: str
    width: int
    channels: tuple[int, ...]
    layout: Layout | None

    def by_token(self, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[tokens, R] of the tensor, rows of the weight in order."""
        tokens = [axis for axis in range(tensor.ndim) if axis not in self.channels]
        return tensor.transpose([*tokens, *self.channels]).reshape(-1, self.width)

    def token_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Sizes of the axes that are tokens."""
        return tuple(n for axis, n in enumerate(shape) if axis not in self.channels)

    def arranged(self, real: npt.NDArray[Any]) -> npt.NDArray[Any] | None:
        """real[B, S] in the order of `by_token`; None where the tensor's tokens are other ones. A picked token is real."""
        if self.layout is None:
            return None
        if self.layout == "picked":
            return np.ones(len(real), dtype=bool)
        return (real.T if self.layout == "columns" else real).reshape(-1)


def inputs_of(examined: Examined, layer: int, kind: BlockKind) -> Inputs:
    """What the output projection of a block reads. The layout of its tokens is told by the probe."""
    block = getattr(examined.anatomy.layers[layer], kind)
    return inputs_of_linear(examined, block.output if isinstance(block, AttentionBlock) else block.down)


def inputs_of_linear(examined: Examined, linear: Linear) -> Inputs:
    """What one projection reads."""
    labelling, product = examined.labelling, examined.labelling.product_at[linear.output]
    assert product.rows is not None
    shape = np.shape(labelling.values[linear.input])
    spread = spread_rows(product, len(shape)).shape
    channels = tuple(axis for axis, n in enumerate(spread) if n != 1) or (len(shape) - 1,)
    tokens = tuple(n for axis, n in enumerate(shape) if axis not in channels and n != 1)
    return Inputs(linear.input, product.rows.size, channels, _layout(labelling, tokens))


def _layout(labelling: Labelling, tokens: tuple[int, ...]) -> Layout | None:
    ids = next((array.shape for array in labelling.feeds.values() if array.ndim == 2), None)
    if ids is None:
        return None
    batch, length = ids
    if tokens == tuple(n for n in (batch, length) if n != 1):
        return "rows"
    if tokens == (length, batch):
        return "columns"
    if tokens == (batch,):
        return "picked"
    return "flat" if tokens == (batch * length,) else None


def give_bias(examined: Examined, place: Projection) -> ir.Value:
    """Give a projection without bias one of zeros, in place; returns its initializer [D] (further axes of size 1 behind D)."""
    graph, node, out = examined.labelling.model.graph, place.node, place.node.outputs[0]
    assert place.why_no_bias is None and place.column_axis is not None
    dtype = np.asarray(examined.labelling.values[str(out.name)]).dtype
    base = f"{place.weight.name}_bias"
    if node.op_type in _WITH_BIAS:
        bias = initializer(graph, base, np.zeros(place.columns.size, dtype))
        node.resize_inputs(3)
        node.replace_input_with(2, bias)
        return bias
    bias = initializer(graph, base, np.zeros((place.columns.size, *[1] * (-1 - place.column_axis)), dtype))
    added = ir.Value(name=fresh(graph, f"{out.name}_biased"), shape=out.shape, type=out.type)
    out.replace_all_uses_with(added)
    graph.insert_after(node, ir.node("Add", [out, bias], outputs=[added]))
    for known in (examined.labelling.values, examined.labelling.of):
        known[str(added.name)] = known[str(out.name)]
    return bias


def _require_floats(value: ir.Value, node: ir.Node, where: str) -> None:
    """No quantisation between an operand and its initializer, and none in the product itself."""
    stop: ir.Node | None = None
    behind = value.producer()
    while behind is not None and stop is None:
        stop = behind if behind.op_type in LINEAR else None
        source = behind.inputs[0]
        behind = source.producer() if source is not None else None
    found = origin(value)
    assert found is not None and found.value.const_value is not None
    if stop is None and not found.value.const_value.dtype.is_floating_point():
        stop = node
    if stop is not None:
        raise RecogniseError(
            f"{where}: its weight {found.value.name!r} is quantised ({stop.op_type} {anchor(stop)!r}), expected floats to "
            "write new weights into; compensate the unquantised model and quantise the result"
        )


def _column_axis(labelling: Labelling, output: str, columns: Carrier) -> int | None:
    """The axis of `output` (from the right) along which its labels are the columns'."""
    labels = labelling.of[output]
    for axis in reversed(range(labels.ndim)):
        if labels.shape[axis] == columns.size and (np.moveaxis(labels, axis, -1) == columns.labels.reshape(-1)).all():
            return axis - labels.ndim
    return None


def _bias(node: ir.Node, axis: int | None, size: int, where: str) -> ir.Value | None:
    """The initializer [D] that is added to each column: slot 2, or the constant of the one Add that reads the product."""
    operand = node.inputs[2] if node.op_type in _WITH_BIAS and len(node.inputs) > 2 else None
    own = axis if node.op_type != "Conv" else -1
    if operand is None:
        uses = list(node.outputs[0].uses())
        if len(uses) != 1 or uses[0].node.op_type != "Add" or node.outputs[0].is_graph_output():
            return None
        operand, own = uses[0].node.inputs[1 - uses[0].idx], axis
    found = origin(operand)
    if found is None or own is None or operand is None or found.value.const_value is None:
        return None
    shape = [int(found.value.const_value.shape[a]) for a in found.axes]  # type: ignore[arg-type]
    if len(shape) < -own or shape[own] != size or math.prod(shape) != size:
        return None
    _require_floats(operand, node, where)
    return found.value
