"""Rotary positions: RotaryEmbedding of com.microsoft and of ONNX (operator set 23).

Shapes: B batch, S tokens, H heads, E head size, R rotated width (R <= E), M positions in the tables.

    x[B,S,H,E], cos[B,S,1,R/2], sin[B,S,1,R/2]
    halves       a, b = x[.., :R/2], x[.., R/2:R]     -> (a cos - b sin, b cos + a sin)
    interleaved  a, b = x[.., 0:R:2], x[.., 1:R:2]    -> the same, interleaved again
"""

from __future__ import annotations

import onnx_ir as ir

from axformer_passes.graph import origin
from axformer_passes.prepare.recipes import FusedNode, Lowered, Made, Recipe, Ref, fused, width_of


def rotated(recipe: Recipe, x: Ref, cos: Ref, sin: Ref, half: int, rest: int, interleaved: bool) -> Made:
    """x[..,E] with its first 2 * half channels rotated; `rest` channels stay. cos and sin broadcast over x[.., :half]."""
    kept = None
    if rest:
        x, kept = recipe.split(x, (2 * half, rest), role="rotated_part")
    if interleaved:
        pairs = recipe("Reshape", x, recipe.fixed([0, 0, 0, half, 2]))
        a, b = (recipe("Gather", pairs, recipe.fixed(i), axis=4) for i in (0, 1))
    else:
        a, b = recipe.split(x, (half, half), role="halves")
    left = recipe("Sub", recipe("Mul", a, cos), recipe("Mul", b, sin))
    right = recipe("Add", recipe("Mul", b, cos), recipe("Mul", a, sin))
    if interleaved:
        parts = [recipe.unsqueeze(part, [4]) for part in (left, right)]
        out = recipe("Reshape", recipe("Concat", *parts, axis=4), recipe.fixed([0, 0, 0, 2 * half]), role="flat")
    else:
        out = recipe("Concat", left, right, axis=-1)
    return out if kept is None else recipe("Concat", out, kept, axis=-1, role="whole")


def _narrowed(found: Lowered) -> dict[str, ir.Attr]:
    if "heads" not in found.members or not found.form.integer("num_heads"):
        return {}
    return {"num_heads": ir.AttrInt64("num_heads", found.target("heads", 2))}


@fused("com.microsoft::RotaryEmbedding", narrow=_narrowed)
def _microsoft(form: FusedNode, recipe: Recipe) -> None:
    """Inputs: x, positions int64[1] or [B,S], cos[M,R/2], sin[M,R/2]. `scale` is for training alone."""
    form.refuse(form.integer("is_packed_batching") != 0, "ragged batches")
    positions = recipe.given(1)
    if form.rank(1) == 1:
        tokens = recipe.size(recipe.given(0), 1 if form.rank(0) == 3 else 2)
        positions = recipe.unsqueeze(recipe("Add", recipe.range(tokens), positions, role="positions"), [0])
    tables = [recipe("Gather", recipe.given(slot), positions, axis=0, role="table") for slot in (2, 3)]
    _rotary(form, recipe, tables, form.size(2, 1))


@fused("RotaryEmbedding", narrow=_narrowed)
def _standard(form: FusedNode, recipe: Recipe) -> None:
    """Inputs: x, cos, sin [M,R/2] with positions [B,S], or [B,S,R/2] without."""
    tables = [recipe.given(1), recipe.given(2)]
    if form.has(3):
        tables = [recipe("Gather", table, recipe.given(3), axis=0, role="table") for table in tables]
    _rotary(form, recipe, tables, _half(form))


def _half(form: FusedNode) -> int:
    width = form.integer("rotary_embedding_dim")
    if width:
        return width // 2

    def stated() -> int | None:
        value = form.value(1)
        found = origin(value)
        shape = found.value.shape if found is not None else value.shape
        return shape[-1] if shape is not None and isinstance(shape[-1], int) else None

    half = form.fact("half", stated)
    form.refuse(half is None, "the width of the tables is not known")
    assert half is not None
    return half


def _rotary(form: FusedNode, recipe: Recipe, tables: list[Ref] | list[Made], half: int) -> None:
    """By heads [B,S,H,E] where x is 3-D; a 4-D x is [B,H,S,E] and the tables get their axis for heads before S."""
    rank, heads, partial = form.rank(0), form.integer("num_heads"), form.integer("rotary_embedding_dim")
    form.refuse(rank not in (3, 4), f"an input with {rank} axes")
    size = _head_size(form, half) if partial else 2 * half
    x = recipe.given(0)
    if rank == 3:
        x = recipe("Reshape", x, recipe.fixed([0, 0, heads or -1, size]), role="heads")
    cos, sin = (recipe.unsqueeze(table, [2 if rank == 3 else 1]) for table in tables)
    interleaved = form.integer("interleaved") != 0
    out = rotated(recipe, x, cos, sin, half, size - 2 * half, interleaved)
    recipe.finish(recipe("Reshape", out, recipe.fixed([0, 0, -1]), role="joined") if rank == 3 else out)


def _head_size(form: FusedNode, half: int) -> int:
    def stated() -> int | None:
        width = width_of(form.value(0))
        if width is None:
            return None
        return width // form.integer("num_heads") if form.rank(0) == 3 else width

    size = form.fact("head size", stated)
    form.refuse(size is None or size < 2 * half, "partial rotation of heads whose size is not known")
    assert size is not None
    return size
