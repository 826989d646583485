"""Activations with a bias or a second half: BiasGelu, FastGelu with bias, BiasSoftmax, BiasSplitGelu, BiasDropout, BiasAdd.

BiasGelu(x, bias)           -> Gelu(x + bias)
FastGelu(x, bias)           -> GeluTanh(x + bias)                     without a bias it is a primitive already
BiasSoftmax(x, bias)        -> Softmax(x + bias)                      over the last axis
BiasSplitGelu(x, bias)      -> left, right = x + bias: left * Gelu(right)
BiasDropout(x, bias, skip)  -> (x + bias) + skip                      where it does not train
"""

from __future__ import annotations

import math

import onnx_ir as ir

from axformer_passes.graph import constant
from axformer_passes.prepare.recipes import FusedNode, Made, Recipe, Ref, fused

_MS = "com.microsoft"


def gelu(recipe: Recipe, x: Ref, dtype: ir.DataType) -> Made:
    """x * P(normal <= x); before operator set 20 by Erf."""
    if recipe.form.opset >= 20:
        return recipe("Gelu", x)
    erf = recipe("Erf", recipe("Div", x, recipe.fixed(math.sqrt(2.0), dtype)))
    product = recipe("Mul", x, recipe("Add", erf, recipe.fixed(1, dtype)))
    return recipe("Mul", product, recipe.fixed(0.5, dtype))


def fast_gelu(recipe: Recipe, x: Ref) -> Made:
    """The approximation by tanh."""
    if recipe.form.opset >= 20:
        return recipe("Gelu", x, approximate="tanh")
    return recipe("FastGelu", x, domain=_MS)


@fused("com.microsoft::BiasGelu")
def _bias_gelu(form: FusedNode, recipe: Recipe) -> None:
    recipe.finish(gelu(recipe, recipe("Add", recipe.given(0), recipe.given(1), role="biased"), form.dtype(1)))


@fused("com.microsoft::FastGelu")
def _bias_fast_gelu(form: FusedNode, recipe: Recipe) -> None:
    recipe.finish(fast_gelu(recipe, recipe("Add", recipe.given(0), recipe.given(1), role="biased")))


@fused("com.microsoft::BiasSoftmax")
def _bias_softmax(form: FusedNode, recipe: Recipe) -> None:
    axis = form.integer("axis", 1)
    form.refuse(axis != -1 and axis != form.rank(0) - 1, f"axis {axis}, with others behind it")
    biased = recipe("Add", recipe.given(0), recipe.given(1), role="biased")
    recipe.finish(recipe("Softmax", biased, axis=-1))


@fused("com.microsoft::BiasSplitGelu")
def _bias_split_gelu(form: FusedNode, recipe: Recipe) -> None:
    width = form.size(1, 0)
    biased = recipe("Add", recipe.given(0), recipe.given(1), role="biased")
    left, right = recipe.split(biased, (width // 2, width // 2))
    recipe.finish(recipe("Mul", left, gelu(recipe, right, form.dtype(1)), role="gated"))


@fused("com.microsoft::BiasDropout")
def _bias_dropout(form: FusedNode, recipe: Recipe) -> None:
    """Inputs: x, bias, residual, ratio, training_mode."""
    if form.has(4):
        training = constant(form.value(4))
        form.refuse(training is None or bool(training.any()), "it may be training")
    out = recipe("Add", recipe.given(0), recipe.given(1), role="biased")
    recipe.finish(recipe("Add", out, recipe.given(2), role="sum") if form.has(2) else out)


@fused("com.microsoft::BiasAdd")
def _bias_add(form: FusedNode, recipe: Recipe) -> None:
    biased = recipe("Add", recipe.given(0), recipe.given(1), role="biased")
    recipe.finish(recipe("Add", biased, recipe.given(2), role="sum"))
