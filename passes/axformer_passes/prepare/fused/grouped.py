"""com.microsoft GroupQueryAttention without past state: the whole prompt in one run, as classifiers use it.

Shapes: B batch, S tokens, H query heads, G key/value heads (H = G * R), E head size, M positions in the rotary tables.

    q[B,S,HE], k[B,S,GE], v[B,S,GE] (or one tensor of all three) -> by heads -> rotary -> each key/value head R times
      -> attend where j <= seqlens_k, j <= i (causal), j > i - window -> y[B,S,HE]
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.prepare.fused.attend import additive, causal, joined, scale_of, scaled_scores, within
from axformer_passes.prepare.fused.onnx_attention import in_context, repeated
from axformer_passes.prepare.fused.rotary import rotated
from axformer_passes.prepare.recipes import FusedNode, Lowered, Recipe, Ref, fused, width_of

_UNKNOWN = ("k_quant_type", "v_quant_type", "kv_cache_bit_width", "smooth_softmax", "sliding_window_cache")


def _narrowed(found: Lowered) -> dict[str, ir.Attr]:
    heads, groups = found.target("query_heads", 2), found.target("key_heads", 2)
    return {"num_heads": ir.AttrInt64("num_heads", heads), "kv_num_heads": ir.AttrInt64("kv_num_heads", groups)}


@fused("com.microsoft::GroupQueryAttention", narrow=_narrowed)
def _group_query(form: FusedNode, recipe: Recipe) -> None:
    """Inputs: q, k, v, past_key, past_value, seqlens_k, total, cos, sin, position ids, attention bias, ..."""
    form.refuse(form.has(3) or form.has(4), "past state")
    form.refuse(any(form.has(i) for i in range(11, len(form.inputs))), "sinks, quantised caches or norms of heads")
    for name in _UNKNOWN:
        attribute = form.attributes.get(name)
        plain = attribute is None or attribute.value in (0, -1, "NONE")
        form.refuse(not plain, f"attribute {name}")
    heads, groups, dtype = form.integer("num_heads"), form.integer("kv_num_heads"), form.dtype(0)
    form.refuse(heads < 1 or groups < 1 or heads % groups != 0, f"{heads} query heads on {groups} key heads")
    q, k, v = _by_heads(form, recipe, heads, groups)
    if form.integer("do_rotary"):
        cos, sin = _tables(form, recipe)
        half, size = form.size(7, 1), _head_size(form)
        form.refuse(size < 2 * half, "rotary embedding of heads whose size is not known")
        interleaved = form.integer("rotary_interleaved") != 0
        q, k = (rotated(recipe, x, cos, sin, half, size - 2 * half, interleaved) for x in (q, k))
    query = recipe("Transpose", q, perm=[0, 2, 1, 3])
    key, value = (repeated(recipe, x, heads // groups, heads) for x in (k, v))
    scores = scaled_scores(recipe, query, key, scale_of(recipe, query, _head_size(form), dtype))
    masks = ([recipe.given(10)] if form.has(10) else []) + [_mask(form, recipe, query, dtype)]
    recipe.finish(joined(recipe, in_context(form, recipe, scores, value, masks, dtype)))


def _head_size(form: FusedNode) -> int:
    """E, -1 where it is not known."""
    heads = form.integer("num_heads") + (0 if form.has(1) else 2 * form.integer("kv_num_heads"))

    def find() -> int:
        width = width_of(form.value(0))
        return width // heads if width else -1

    return form.fact("head size", find)


def _by_heads(form: FusedNode, recipe: Recipe, heads: int, groups: int) -> tuple[Ref, Ref, Ref]:
    """q[B,S,H,E], k[B,S,G,E], v[B,S,G,E]."""
    parts: list[Ref]
    if form.has(1):
        parts = [recipe.given(slot) for slot in range(3)]
    else:
        size = _head_size(form)
        form.refuse(size < 1, "query, key and value in one tensor of unknown width")
        parts = list(recipe.split(recipe.given(0), (heads * size, groups * size, groups * size)))
    counts = {"query": heads, "key": groups, "value": groups}
    size = _head_size(form)
    q, k, v = (
        recipe("Reshape", part, recipe.fixed([0, 0, count, size]), role=f"{name}_heads")
        for part, (name, count) in zip(parts, counts.items(), strict=True)
    )
    return q, k, v


def _tables(form: FusedNode, recipe: Recipe) -> tuple[Ref, Ref]:
    """cos and sin at the tokens' positions, with an axis for heads: [B or 1, S, 1, R/2]."""
    tokens = recipe.size(recipe.given(0), 1)
    tables: list[Ref] = []
    for slot in (7, 8):
        if form.has(9):  # the kernel counts on from the first position of the first row
            tables.append(recipe("Gather", recipe.given(slot), recipe.given(9), axis=0, role="table"))
            tables[-1] = recipe.unsqueeze(tables[-1], [2])
        else:
            rows = recipe("Slice", recipe.given(slot), recipe.fixed([0]), tokens, recipe.fixed([0]), role="table")
            tables.append(recipe.unsqueeze(rows, [1]))
    return tables[0], tables[1]


def _mask(form: FusedNode, recipe: Recipe, query: Ref, dtype: ir.DataType) -> Ref:
    tokens, one = recipe.size(query, 2), recipe.fixed(1, form.dtype(5))
    seen: Ref = within(recipe, recipe("Add", recipe.given(5), one, role="lengths"), tokens)
    if form.integer("causal", 1):
        seen = recipe("And", seen, causal(recipe, tokens, tokens))
    window = form.integer("local_window_size", -1)
    if window > 0:
        places = recipe.range(tokens)
        distance = recipe("Sub", recipe.unsqueeze(places, [1]), places, role="distance")
        seen = recipe("And", seen, recipe("Less", distance, recipe.fixed(window)))
    return additive(recipe, seen, -np.inf, dtype)
