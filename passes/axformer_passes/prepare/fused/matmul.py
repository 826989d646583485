"""Products with what stands around them: FusedMatMul, TransposeMatMul, FusedMatMulActivation, FusedGemm, GemmFastGelu.

FusedMatMul(a, b)              -> Transpose -> MatMul -> Mul alpha
FusedMatMulActivation(a, b)    -> the same -> activation
FusedGemm(a, b, c)             -> Gemm -> activation
GemmFastGelu(x, w, bias)       -> MatMul -> Add -> GeluTanh
"""

from __future__ import annotations

from axformer_passes.prepare.fused.activations import fast_gelu
from axformer_passes.prepare.recipes import FusedNode, Recipe, Ref, fused

_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Elu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "LeakyRelu": ("alpha",), "LogSoftmax": ("axis",), "Relu": (),
    "Sigmoid": (), "Softmax": ("axis",), "Softplus": (), "Softsign": (), "Tanh": (), "ThresholdedRelu": ("alpha",),
}  # fmt: skip
"""Operators that may be an `activation`, with the attributes that `activation_...` states for them."""


def _activated(form: FusedNode, recipe: Recipe, x: Ref) -> None:
    kind = form.attributes["activation"].as_string()
    form.refuse(kind not in _ACTIVATIONS, f"activation {kind}")
    given = {name: form.attributes.get(f"activation_{name}") for name in _ACTIVATIONS[kind]}
    attributes = {name: attr.value for name, attr in given.items() if attr is not None}
    recipe.finish(recipe(kind, x, role="activation", **attributes))


def _transposed(form: FusedNode, recipe: Recipe, slot: int) -> Ref:
    """The operand with its last two axes exchanged (trans), its first axis moved before the last (transBatch), or both."""
    side, x = "AB"[slot], recipe.given(slot)
    trans, batch = form.integer(f"trans{side}"), form.integer(f"transBatch{side}")
    if not (trans or batch):
        return x
    rank = form.rank(slot)
    if rank < 2:
        return x
    perm = [*range(1, rank - 1), 0, rank - 1] if batch else list(range(rank))
    if trans:
        perm[-2], perm[-1] = perm[-1], perm[-2]
    return recipe("Transpose", x, perm=perm)


def _product(form: FusedNode, recipe: Recipe) -> Ref:
    alpha = form.number("alpha", 1.0)
    product = recipe("MatMul", _transposed(form, recipe, 0), _transposed(form, recipe, 1), role="product")
    return product if alpha == 1.0 else recipe("Mul", product, recipe.fixed(alpha, form.dtype(0)), role="scaled")


@fused("com.microsoft::FusedMatMul", "com.microsoft::TransposeMatMul")
def _fused_matmul(form: FusedNode, recipe: Recipe) -> None:
    recipe.finish(_product(form, recipe))


@fused("com.microsoft::FusedMatMulActivation")
def _fused_matmul_activation(form: FusedNode, recipe: Recipe) -> None:
    _activated(form, recipe, _product(form, recipe))


@fused("com.microsoft::FusedGemm")
def _fused_gemm(form: FusedNode, recipe: Recipe) -> None:
    own = ("alpha", "beta", "transA", "transB")
    attributes = {name: attr.value for name, attr in form.attributes.items() if name in own}
    inputs = [recipe.given(slot) for slot in range(len(form.inputs)) if form.has(slot)]
    _activated(form, recipe, recipe("Gemm", *inputs, role="product", **attributes))


@fused("com.microsoft::GemmFastGelu")
def _gemm_fast_gelu(form: FusedNode, recipe: Recipe) -> None:
    product = recipe("MatMul", recipe.given(0), recipe.given(1), role="product")
    if form.has(2):
        product = recipe("Add", product, recipe.given(2), role="biased")
    recipe.finish(fast_gelu(recipe, product))
