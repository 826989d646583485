"""What all attention operators have in common, in steps: heads, masks, scores, context.

Shapes: B batch, S query tokens, T key tokens, H heads, G key/value heads, E head size, V value head size.

    context[B,H,S,V] = Softmax(scale * q[B,H,S,E] @ k[B,H,T,E]^T + masks[.., S, T]) @ v[B,H,T,V]
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.prepare.recipes import Made, Recipe, Ref


def by_heads(recipe: Recipe, x: Ref, heads: int, size: int, role: str) -> Made:
    """[B,S,H*E] -> [B,H,S,E]; `size` -1: whatever is left."""
    split = recipe("Reshape", x, recipe.fixed([0, 0, heads, size]), role=role)
    return recipe("Transpose", split, perm=[0, 2, 1, 3])


def joined(recipe: Recipe, context: Ref, width: int = -1) -> Made:
    """[B,H,S,V] -> [B,S,H*V]."""
    return recipe(
        "Reshape", recipe("Transpose", context, perm=[0, 2, 1, 3]), recipe.fixed([0, 0, width]), role="joined"
    )


def scaled_scores(recipe: Recipe, q: Ref, k: Ref, scale: Ref) -> Made:
    """scale * q @ k^T."""
    product = recipe("MatMul", q, recipe("Transpose", k, perm=[0, 1, 3, 2]), role="scores")
    return recipe("Mul", product, scale, role="scaled")


def attended(recipe: Recipe, scores: Ref, v: Ref, masks: list[Ref]) -> Made:
    """Softmax(scores + masks) @ v."""
    for mask in masks:
        scores = recipe("Add", scores, mask, role="masked")
    return recipe("MatMul", recipe("Softmax", scores, axis=-1), v, role="context")


def scale_of(recipe: Recipe, q: Ref, size: int, dtype: ir.DataType) -> Ref:
    """The attribute `scale`, else 1 / sqrt(E); at run time where the head size is not known (`size` -1)."""
    given = recipe.form.number("scale", 0.0)
    if given != 0.0:
        return recipe.fixed(given, dtype)
    if size > 0:
        return recipe.fixed(1.0 / np.sqrt(size), dtype)
    root = recipe("Sqrt", recipe("Cast", recipe.size(q, -1), to=int(ir.DataType.FLOAT)))
    one = recipe("Reciprocal", root)
    return one if dtype == ir.DataType.FLOAT else recipe("Cast", one, to=int(dtype))


def additive(recipe: Recipe, allowed: Ref, fill: float, dtype: ir.DataType) -> Made:
    """bool -> 0 where allowed, `fill` elsewhere."""
    return recipe("Where", allowed, recipe.fixed(0, dtype), recipe.fixed(fill, dtype), role="mask")


def within(recipe: Recipe, lengths: Ref, keys: Ref) -> Made:
    """int[B] -> bool[B,1,1,T]: key j is real where j < length; `keys` int64[1] is T."""
    wide = recipe.unsqueeze(recipe("Cast", lengths, to=int(ir.DataType.INT64)), [1, 2, 3])
    return recipe("Less", recipe.range(keys), wide, role="within")


def causal(recipe: Recipe, queries: Ref, keys: Ref) -> Made:
    """bool[S,T]: query i sees the keys j <= i."""
    i, j = recipe.unsqueeze(recipe.range(queries), [1]), recipe.range(keys)
    return recipe("Not", recipe("Less", i, j), role="causal")


def lowest(dtype: ir.DataType) -> float:
    """The smallest number of a type: finite, so that adding it to a score is no number's end."""
    return float(dtype.min)
