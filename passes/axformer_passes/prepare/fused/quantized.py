"""Products of integers: com.microsoft DynamicQuantizeMatMul and MatMulIntegerToFloat.

    DynamicQuantizeMatMul(a, b, b_scale, b_zero, bias)   -> DynamicQuantizeLinear(a), then as below
    MatMulIntegerToFloat(a, b, a_scale, b_scale, ...)    -> MatMulInteger -> Cast -> Mul a_scale -> Mul b_scale -> Add bias

The two scales are multiplied one after the other: that of the columns meets the columns alone, and is cut with them.
"""

from __future__ import annotations

import onnx_ir as ir

from axformer_passes.prepare.recipes import FusedNode, Made, Recipe, Ref, fused


def integer_product(
    recipe: Recipe, a: int, b: int, zeros: tuple[int, int], scales: tuple[int, int], dtype: ir.DataType
) -> Made:
    """(a - zero) @ (b - zero) * a_scale * b_scale of the inputs at these slots; a zero point may be left out."""
    zero_refs = [recipe.given(slot) if recipe.form.has(slot) else None for slot in zeros]
    return _scaled(recipe, recipe.given(a), recipe.given(b), zero_refs, [recipe.given(s) for s in scales], dtype)


def _scaled(recipe: Recipe, a: Ref, b: Ref, zeros: list[Ref | None], scales: list[Ref], dtype: ir.DataType) -> Made:
    while zeros and zeros[-1] is None:
        zeros = zeros[:-1]
    product = recipe("MatMulInteger", a, b, *zeros, role="projection")
    out = recipe("Cast", product, to=int(dtype))
    for scale in scales:
        out = recipe("Mul", out, scale, role="scaled_product")
    return out


@fused("com.microsoft::MatMulIntegerToFloat")
def _to_float(form: FusedNode, recipe: Recipe) -> None:
    """Inputs: a, b, a_scale, b_scale, a_zero_point, b_zero_point, bias."""
    out = integer_product(recipe, 0, 1, (4, 5), (2, 3), form.dtype(2))
    recipe.finish(recipe("Add", out, recipe.given(6), role="biased") if form.has(6) else out)


@fused("com.microsoft::DynamicQuantizeMatMul")
def _dynamic(form: FusedNode, recipe: Recipe) -> None:
    """Inputs: a, b, b_scale, b_zero_point, bias."""
    quantized = recipe("DynamicQuantizeLinear", recipe.given(0), outputs=3, role="quantized")
    scale, zero = Made(quantized.role, 1), Made(quantized.role, 2)
    zeros = [zero, recipe.given(3) if form.has(3) else None]
    out = _scaled(recipe, quantized, recipe.given(1), zeros, [scale, recipe.given(2)], form.dtype(0))
    recipe.finish(recipe("Add", out, recipe.given(4), role="biased") if form.has(4) else out)
