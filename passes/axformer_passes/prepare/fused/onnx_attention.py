"""Attention of ONNX (operator sets 23 to 25).

Shapes: B batch, S query tokens, T key tokens, H query heads, G key/value heads (H = G * R), E head size, V value size.

    Attention(q, k, v, mask)   -> q[B,H,S,E], k[B,G,T,E], v[B,G,T,V] -> each key/value head R times -> attend -> [B,H,S,V]

A query that may see no key gets 0, not 0/0. Past state, used second outputs and windows have no lowering.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.prepare.fused.attend import additive, by_heads, causal, joined, scale_of, scaled_scores
from axformer_passes.prepare.recipes import FusedNode, Lowered, Made, Recipe, Ref, fused, width_of


def repeated(recipe: Recipe, x: Ref, share: int | Ref, heads: int | Ref) -> Made:
    """[B,T,G,E] -> [B,H,T,E]: each key/value head for its `share` queries; both counts may be computed (int64[1])."""
    wide = recipe.unsqueeze(x, [3])
    if isinstance(share, int) and isinstance(heads, int):
        times, target = recipe.fixed([1, 1, 1, share, 1]), recipe.fixed([0, 0, heads, -1])
    else:
        assert not isinstance(share, int) and not isinstance(heads, int)
        times = recipe("Concat", recipe.fixed([1, 1, 1]), share, recipe.fixed([1]), axis=0)
        target = recipe("Concat", recipe.fixed([0, 0]), heads, recipe.fixed([-1]), axis=0)
    spread = recipe("Reshape", recipe("Expand", wide, times), target, role="repeated")
    return recipe("Transpose", spread, perm=[0, 2, 1, 3])


def _narrowed(found: Lowered) -> dict[str, ir.Attr]:
    if "query_heads" not in found.members:
        return {}
    heads, groups = found.target("query_heads", 2), found.target("key_heads", 2)
    return {"q_num_heads": ir.AttrInt64("q_num_heads", heads), "kv_num_heads": ir.AttrInt64("kv_num_heads", groups)}


@fused("Attention", narrow=_narrowed)
def _attention(form: FusedNode, recipe: Recipe) -> None:
    """Inputs: q, k, v, mask, past_key, past_value, and from operator set 24 on the key lengths."""
    form.refuse(any(form.has(slot) for slot in range(4, len(form.inputs))), "past state or key lengths")
    windows = [form.integer(f"{side}_window_size", -1) for side in ("left", "right")]
    form.refuse(windows != [-1, -1] or "softmax_precision" in form.attributes, "windows or softmax_precision")
    dtype, wide = form.dtype(0), form.rank(0) == 3
    q, k, v = _operands_3d(form, recipe) if wide else _operands_4d(form, recipe)
    size = -1 if wide else form.fact("head size", lambda: width_of(form.value(0))) or -1
    scores = scaled_scores(recipe, q, k, scale_of(recipe, q, size, dtype))
    context = in_context(form, recipe, scores, v, _masks(form, recipe, q, k, dtype), dtype)
    recipe.finish(joined(recipe, context) if wide else context)


def in_context(form: FusedNode, recipe: Recipe, scores: Ref, v: Ref, masks: list[Ref], dtype: ir.DataType) -> Made:
    """Softmax(cap(scores) + masks) @ v; rows that see nothing are 0."""
    cap = form.number("softcap", 0.0)
    if cap != 0.0:
        limit = recipe.fixed(cap, dtype)
        scores = recipe("Mul", recipe("Tanh", recipe("Div", scores, limit)), limit, role="capped")
    for mask in masks:
        scores = recipe("Add", scores, mask, role="masked")
    probabilities: Ref = recipe("Softmax", scores, axis=-1)
    if masks:
        nothing = recipe("IsNaN", probabilities)
        probabilities = recipe("Where", nothing, recipe.fixed(0, dtype), probabilities, role="seen")
    return recipe("MatMul", probabilities, v, role="context")


def _operands_3d(form: FusedNode, recipe: Recipe) -> tuple[Ref, Ref, Ref]:
    heads, groups = form.integer("q_num_heads"), form.integer("kv_num_heads")
    form.refuse(heads < 1 or groups < 1 or heads % groups != 0, f"{heads} query heads, {groups} key heads")
    query = by_heads(recipe, recipe.given(0), heads, -1, "query_heads")
    if heads == groups:
        key, value = (
            by_heads(recipe, recipe.given(i), groups, -1, f"{n}_heads") for i, n in ((1, "key"), (2, "value"))
        )
        return query, key, value
    pair = []
    for slot, name in ((1, "key"), (2, "value")):
        split = recipe("Reshape", recipe.given(slot), recipe.fixed([0, 0, groups, -1]), role=f"{name}_heads")
        pair.append(repeated(recipe, split, heads // groups, heads))
    return query, pair[0], pair[1]


def _operands_4d(form: FusedNode, recipe: Recipe) -> tuple[Ref, Ref, Ref]:
    """4-D inputs have their heads already; how often keys are repeated is computed where no shape says it is once."""
    query, pair = recipe.given(0), [recipe.given(1), recipe.given(2)]
    if form.fact("alike", lambda: _axis(form, 0) is not None and _axis(form, 0) == _axis(form, 1)):
        return query, pair[0], pair[1]
    heads = recipe.size(query, 1)
    share = recipe("Div", heads, recipe.size(pair[0], 1), role="share")
    key, value = (repeated(recipe, recipe("Transpose", x, perm=[0, 2, 1, 3]), share, heads) for x in pair)
    return query, key, value


def _axis(form: FusedNode, slot: int) -> int | None:
    """The stated number of heads of a 4-D input."""
    shape = form.value(slot).shape
    return shape[1] if shape is not None and isinstance(shape[1], int) else None


def _masks(form: FusedNode, recipe: Recipe, q: Ref, k: Ref, dtype: ir.DataType) -> list[Ref]:
    masks: list[Ref] = []
    if form.has(3):
        given = recipe.given(3)
        boolean = form.dtype(3) == ir.DataType.BOOL
        masks.append(additive(recipe, given, -np.inf, dtype) if boolean else given)
    if form.integer("is_causal"):
        masks.append(additive(recipe, causal(recipe, recipe.size(q, 2), recipe.size(k, 2)), -np.inf, dtype))
    return masks
