"""com.microsoft Attention, QAttention and MultiHeadAttention.

    Attention(x[B,S,D], weights[D,2HE+HV], bias)   -> MatMul -> Add -> Split -> q, k, v by heads -> attend -> y[B,S,HV]
    QAttention(x_quantized, weights, ...)          -> MatMulInteger -> Cast -> Mul -> Mul -> Add -> Split -> ...
    MultiHeadAttention(q, k, v, bias[2HE+HV])      -> q + bias[:HE], k + bias[HE:2HE], v + bias[2HE:] -> by heads -> attend

Past state, rotary embedding inside the node, 4-D masks and used second outputs have no lowering.
"""

from __future__ import annotations

import onnx_ir as ir

from axformer_passes.prepare.fused.attend import (
    additive,
    attended,
    by_heads,
    causal,
    joined,
    lowest,
    scale_of,
    scaled_scores,
    within,
)
from axformer_passes.prepare.fused.quantized import integer_product
from axformer_passes.prepare.recipes import FusedNode, Lowered, Made, Recipe, Ref, fused, width_of


def _narrowed(found: Lowered) -> dict[str, ir.Attr]:
    heads = found.target("query_heads", 2)
    attributes = {"num_heads": ir.AttrInt64("num_heads", heads)}
    if "parts" in found.members and "qkv_hidden_sizes" in found.form.attributes:
        attributes["qkv_hidden_sizes"] = ir.AttrInt64s("qkv_hidden_sizes", found.sizes("parts"))
    return attributes


@fused("com.microsoft::Attention", narrow=_narrowed)
def _attention(form: FusedNode, recipe: Recipe) -> None:
    """Inputs: x, weights, bias, mask_index, past, attention_bias, past_sequence_length."""
    form.refuse(form.has(4) or form.has(6) or form.integer("do_rotary") != 0, "past state or rotary embedding")
    projected: Ref = recipe("MatMul", recipe.given(0), recipe.given(1), role="projection")
    if form.has(2):
        projected = recipe("Add", projected, recipe.given(2), role="biased")
    dtype = form.dtype(1)
    bias = recipe.given(5) if form.has(5) else None
    _self_attention(form, recipe, projected, _sizes(form), dtype, (3, bias))


@fused("com.microsoft::QAttention", narrow=_narrowed)
def _qattention(form: FusedNode, recipe: Recipe) -> None:
    """Inputs: x, weights, bias, x_scale, weight_scale, mask_index, x_zero_point, weight_zero_point, past."""
    form.refuse(form.has(8) or form.integer("do_rotary") != 0, "past state or rotary embedding")
    dtype = form.dtype(3)
    projected = integer_product(recipe, 0, 1, (6, 7), (3, 4), dtype)
    projected = recipe("Add", projected, recipe.given(2), role="biased")
    _self_attention(form, recipe, projected, _sizes(form), dtype, (5, None))


def _sizes(form: FusedNode) -> tuple[int, ...]:
    """Widths of query, key and value in the columns of the weights."""
    width = form.size(1, 1)
    if "qkv_hidden_sizes" in form.attributes:
        sizes = tuple(form.attributes["qkv_hidden_sizes"].as_ints())
        form.refuse(len(sizes) != 3 or sum(sizes) != width, f"qkv_hidden_sizes {sizes} of {width} columns")
        return sizes
    form.refuse(width % 3 != 0, f"{width} columns are not three equal parts")
    return (width // 3,) * 3


def _self_attention(
    form: FusedNode,
    recipe: Recipe,
    projected: Ref,
    sizes: tuple[int, ...],
    dtype: ir.DataType,
    extra: tuple[int, Ref | None],
) -> None:
    heads = form.integer("num_heads")
    form.refuse(heads < 1 or any(n % heads for n in sizes), f"{heads} heads of widths {sizes}")
    parts = recipe.split(projected, sizes)
    q, k, v = (
        by_heads(recipe, part, heads, size // heads, f"{name}_heads")
        for part, size, name in zip(parts, sizes, ("query", "key", "value"), strict=True)
    )
    scores = scaled_scores(recipe, q, k, scale_of(recipe, q, sizes[0] // heads, dtype))
    slot, bias = extra
    masks = ([bias] if bias is not None else []) + _masks(form, recipe, slot, q, k, dtype)
    recipe.finish(joined(recipe, attended(recipe, scores, v, masks), sizes[2]))


def _masks(form: FusedNode, recipe: Recipe, slot: int, q: Ref, k: Ref, dtype: ir.DataType) -> list[Ref]:
    """The mask at `slot` in any of its forms, and the causal one: each as an addend of the scores."""
    masks: list[Ref] = []
    if form.has(slot):
        fill = form.number("mask_filter_value", -10000.0)
        masks.append(additive(recipe, _allowed(form, recipe, slot, k), fill, dtype))
    if form.integer("unidirectional"):
        seen = causal(recipe, recipe.size(q, 2), recipe.size(k, 2))
        masks.append(additive(recipe, seen, lowest(dtype), dtype))
    return masks


def _allowed(form: FusedNode, recipe: Recipe, slot: int, k: Ref) -> Ref:
    """bool, broadcast over [B,H,S,T]: int[B,T], int[B,S,T]: what is not 0; int[B]: end positions; int[2B]: ends, then starts."""
    rank, mask = form.rank(slot), recipe.given(slot)
    form.refuse(rank not in (1, 2, 3), f"a mask with {rank} axes")
    if rank == 1:
        return _between(form, recipe, mask, k)
    zero = recipe.fixed(0, form.dtype(slot))
    return recipe.unsqueeze(recipe("Greater", mask, zero), [1, 2] if rank == 2 else [1])


def _between(form: FusedNode, recipe: Recipe, mask: Ref, k: Ref) -> Ref:
    keys = recipe.size(k, 2)
    if form.op_type == "MultiHeadAttention":
        return within(recipe, mask, keys)
    batch = recipe.size(k, 0)
    none = recipe("Expand", recipe.fixed(0, form.dtype(3 if form.op_type == "Attention" else 5)), batch)
    padded = recipe("Concat", mask, none, axis=0)
    ends = recipe("Slice", padded, recipe.fixed([0]), batch)
    starts = recipe("Slice", padded, batch, recipe("Add", batch, batch, role="twice"))
    return recipe("And", within(recipe, ends, keys), recipe("Not", within(recipe, starts, keys)))


@fused("com.microsoft::MultiHeadAttention", narrow=_narrowed)
def _multi_head(form: FusedNode, recipe: Recipe) -> None:
    """Inputs: query, key, value, bias, key_padding_mask, attention_bias, then past state."""
    form.refuse(any(form.has(slot) for slot in range(6, len(form.inputs))), "past state")
    q, k, v = _operands(form, recipe)
    dtype = form.dtype(0)
    size = _head_sizes(form)[0] if form.rank(0) == 3 and form.has(2) else -1
    scores = scaled_scores(recipe, q, k, scale_of(recipe, q, size, dtype))
    masks = ([recipe.given(5)] if form.has(5) else []) + _masks(form, recipe, 4, q, k, dtype)
    recipe.finish(joined(recipe, attended(recipe, scores, v, masks)))


def _operands(form: FusedNode, recipe: Recipe) -> tuple[Ref, Ref, Ref]:
    """q, k and v as [B,H,S,E] from separate inputs [B,S,H*E], packed ones [B,S,H,n,E] or ready ones [B,H,T,E]."""
    heads, ranks = form.integer("num_heads"), [form.rank(slot) if form.has(slot) else 0 for slot in range(3)]
    if 5 in ranks:
        form.refuse(
            ranks not in ([5, 0, 0], [3, 5, 0]) or form.has(3), f"packed inputs of ranks {ranks}, or with a bias"
        )
        packed = _unpacked(recipe, 3, 0, "query_heads") if ranks[0] == 5 else _unpacked(recipe, 2, 1, "key_heads")
        return tuple(
            packed if ranks[0] == 5 else [by_heads(recipe, recipe.given(0), heads, -1, "query_heads"), *packed]
        )  # type: ignore[return-value]
    form.refuse(ranks not in ([3, 3, 3], [3, 4, 4]), f"inputs of ranks {ranks}")
    x = [recipe.given(slot) for slot in range(3)]
    if form.has(3):
        for i, bias in enumerate(recipe.parts(3, _widths(form))[: 1 if ranks[1] == 4 else 3]):
            x[i] = recipe("Add", x[i], bias, role="biased")
    size, value_size = _head_sizes(form)
    query = by_heads(recipe, x[0], heads, size, "query_heads")
    if ranks[1] == 4:
        return query, x[1], x[2]
    return (
        query,
        by_heads(recipe, x[1], heads, size, "key_heads"),
        by_heads(recipe, x[2], heads, value_size, "value_heads"),
    )


def _unpacked(recipe: Recipe, count: int, slot: int, role: str) -> list[Made]:
    """[B,S,H,n,E] -> n times [B,H,S,E]; the Reshape says what is so already, and holds the number of heads."""
    target = recipe.fixed([0, 0, recipe.form.integer("num_heads"), count, -1])
    packed = recipe("Reshape", recipe.given(slot), target, role=role)
    parts = [recipe("Gather", packed, recipe.fixed(i), axis=3) for i in range(count)]
    return [recipe("Transpose", part, perm=[0, 2, 1, 3]) for part in parts]


def _head_sizes(form: FusedNode) -> tuple[int, int]:
    """(E, V), -1 where not known."""
    heads = form.integer("num_heads")

    def find() -> tuple[int, int]:
        q, v = width_of(form.value(0)), width_of(form.value(2)) if form.rank(2) == 3 else None
        if form.has(3):
            total = form.size(3, 0)
            v = v or (total // 3 if q is None else total - 2 * q)
            q = q or (total - v) // 2
        return (q // heads if q else -1), (v // heads if v else -1)

    return form.fact("head sizes", find)


def _widths(form: FusedNode) -> tuple[int, ...]:
    heads, (size, value_size) = form.integer("num_heads"), _head_sizes(form)
    return heads * size, heads * size, heads * value_size
