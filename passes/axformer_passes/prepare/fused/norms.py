"""Normalisations with what stands before them: SkipLayerNormalization, SkipSimplifiedLayerNormalization, EmbedLayerNormalization.

    SkipLayerNormalization(x, skip, gamma, beta, bias)   -> sum = (x + bias) + skip -> LayerNormalization(sum)
    EmbedLayerNormalization(ids, segments, tables, ...)  -> Gather + Slice + Gather -> LayerNormalization; mask -> ReduceSum

The bias is that of the projection before it and is added to that side, so that a block is taken out with its bias.
"""

from __future__ import annotations

import onnx_ir as ir

from axformer_passes.graph import origin
from axformer_passes.prepare.recipes import FusedNode, Made, Recipe, Ref, fused

_PROJECTIONS = frozenset({"MatMul", "Gemm", "FusedMatMul", "MatMulInteger", "MatMulNBits"})
_FLOAT = ir.DataType.FLOAT


def layer_norm(recipe: Recipe, x: Ref, gamma: Ref, beta: Ref | None, dtype: ir.DataType) -> Made:
    """(x - mean) / sqrt(variance + epsilon) * gamma (+ beta) over the last axis; primitive before operator set 17."""
    epsilon = recipe.form.number("epsilon", 1e-5 if recipe.form.op_type == "" else 1e-12)
    if recipe.form.opset >= 17:
        inputs = (x, gamma) if beta is None else (x, gamma, beta)
        return recipe("LayerNormalization", *inputs, axis=-1, epsilon=epsilon)
    wide = _wide(recipe, x, dtype)
    centred = recipe("Sub", wide, recipe.reduced("ReduceMean", wide, -1, 1))
    return _normed(recipe, centred, gamma, beta, dtype, epsilon)


def rms_norm(recipe: Recipe, x: Ref, gamma: Ref, dtype: ir.DataType) -> Made:
    """x / sqrt(mean(x^2) + epsilon) * gamma over the last axis; primitive before operator set 23."""
    epsilon = recipe.form.number("epsilon", 1e-12)
    if recipe.form.opset >= 23:
        return recipe("RMSNormalization", x, gamma, axis=-1, epsilon=epsilon)
    return _normed(recipe, _wide(recipe, x, dtype), gamma, None, dtype, epsilon)


def _wide(recipe: Recipe, x: Ref, dtype: ir.DataType) -> Ref:
    """In single precision, as the kernels compute."""
    return x if dtype == _FLOAT else recipe("Cast", x, to=int(_FLOAT))


def _normed(recipe: Recipe, x: Ref, gamma: Ref, beta: Ref | None, dtype: ir.DataType, epsilon: float) -> Made:
    variance = recipe.reduced("ReduceMean", recipe("Mul", x, x), -1, 1)
    root = recipe("Sqrt", recipe("Add", variance, recipe.fixed(epsilon, _FLOAT)))
    out = recipe("Div", x, root)
    if dtype != _FLOAT:
        out = recipe("Cast", out, to=int(dtype))
    out = recipe("Mul", out, gamma, role="normed")
    return out if beta is None else recipe("Add", out, beta, role="shifted")


def _summed(form: FusedNode, recipe: Recipe, bias: int) -> Made:
    """x + skip, the bias first on the side of the projection."""
    sides = [recipe.given(0), recipe.given(1)]
    if form.has(bias):
        side = form.fact("projection", lambda: int(not _lacks_bias(form.value(0)) and _lacks_bias(form.value(1))))
        sides[side] = recipe("Add", sides[side], recipe.given(bias), role="biased")
    return recipe("Add", *sides, role="sum")


def _lacks_bias(value: ir.Value) -> bool:
    """Is it a product with weights to which no bias was added: the side that the node's bias was taken from?"""
    while (node := value.producer()) is not None:
        if node.op_type in _PROJECTIONS:
            return node.op_type != "Gemm" or len(node.inputs) < 3 or node.inputs[2] is None
        computed = [v for v in node.inputs if v is not None and origin(v) is None]
        if len(computed) != 1 or node.op_type not in ("Cast", "Identity", "Mul", "Reshape"):
            return False
        value = computed[0]
    return False


@fused("com.microsoft::SkipLayerNormalization")
def _skip_layer_norm(form: FusedNode, recipe: Recipe) -> None:
    """Inputs: x, skip, gamma, beta, bias. Outputs: y, mean, inverse deviation, sum; the middle two have no lowering."""
    total = _summed(form, recipe, 4)
    beta = recipe.given(3) if form.has(3) else None
    recipe.finish(layer_norm(recipe, total, recipe.given(2), beta, form.dtype(2)))
    recipe.finish(total, 3)


@fused("com.microsoft::SkipSimplifiedLayerNormalization")
def _skip_rms_norm(form: FusedNode, recipe: Recipe) -> None:
    """Inputs: x, skip, gamma, bias. Outputs as above."""
    total = _summed(form, recipe, 3)
    recipe.finish(rms_norm(recipe, total, recipe.given(2), form.dtype(2)))
    recipe.finish(total, 3)


@fused("com.microsoft::EmbedLayerNormalization")
def _embed_layer_norm(form: FusedNode, recipe: Recipe) -> None:
    """Inputs: ids, segments, word, position and segment tables, gamma, beta, mask, position ids. Outputs: y, lengths, sum."""
    ids, positions = recipe.given(0), recipe.given(3)
    total: Ref = recipe("Gather", recipe.given(2), ids, role="words", axis=0)
    if form.has(8):
        places: Ref = recipe("Gather", positions, recipe.given(8), role="positions", axis=0)
    else:
        places = recipe("Slice", positions, recipe.fixed([0]), recipe.size(ids, 1), role="positions")
    total = recipe("Add", total, places, role="sum")
    if form.has(1) and form.has(4):
        segments = recipe("Gather", recipe.given(4), recipe.given(1), role="segments", axis=0)
        total = recipe("Add", total, segments, role="sum")
    recipe.finish(layer_norm(recipe, total, recipe.given(5), recipe.given(6), form.dtype(5)))
    recipe.finish(total, 2)
    if form.has(7):
        recipe.finish(recipe.reduced("ReduceSum", recipe.given(7), 1, 0), 1)
