"""Fused operators that ONNX Runtime runs on other devices alone: their steps say what their documentation says, in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from fused_nodes import WIDTH, Array, B, D, E, Fused, H, S
from scipy.special import erf

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.io.files import serialized
from axformer_passes.prepare.fused.lifting import lift
from axformer_passes.prepare.fused.lowering import lower

RNG = np.random.default_rng(11)


def normal(*shape: int) -> Array:
    """float32 of about one."""
    return RNG.normal(size=shape).astype(np.float32)


def softmax(x: Array) -> Array:
    """Over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def gelu(x: Array) -> Array:
    """By erf."""
    return x * (1 + erf(x / np.sqrt(2))) / 2


def fast_gelu(x: Array) -> Array:
    """By tanh."""
    return 0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3)))


def attend(q: Array, k: Array, v: Array) -> Array:
    """[B,S,H,E] each -> [B,S,H*E]."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    context = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(E)) @ v
    return context.transpose(0, 2, 1, 3).reshape(B, q.shape[2], WIDTH)


X, ROW, SKIP, W = normal(B, S, D), normal(D), normal(B, S, D), normal(D, 6)
SCORES, MASK = normal(B, H, S, S), normal(B, 1, 1, S)
QKV, Q, KV = normal(B, S, H, 3, E), normal(B, S, WIDTH), normal(B, S, H, 2, E)
HEADS = {"num_heads": H}
CASES: dict[str, tuple[Fused, Callable[[], Array]]] = {
    "BiasSoftmax": (
        Fused("BiasSoftmax", (SCORES, MASK), (), {"axis": 3, "is_inner_broadcast": 1}, rank=4),
        lambda: softmax(SCORES + MASK),
    ),
    "BiasSplitGelu": (
        Fused("BiasSplitGelu", (X, ROW), (1,)),
        lambda: (X + ROW)[..., : D // 2] * gelu((X + ROW)[..., D // 2 :]),
    ),
    "BiasDropout": (Fused("BiasDropout", (X, ROW, SKIP), (1,)), lambda: X + ROW + SKIP),
    "BiasDropout, no residual": (Fused("BiasDropout", (X, ROW), (1,)), lambda: X + ROW),
    "BiasAdd": (Fused("BiasAdd", (X, ROW, SKIP), (1,)), lambda: X + ROW + SKIP),
    "GemmFastGelu": (Fused("GemmFastGelu", (X, W, ROW[:6]), (1, 2)), lambda: fast_gelu(X @ W + ROW[:6])),
    "FusedMatMulActivation": (
        Fused("FusedMatMulActivation", (X, W), (1,), {"activation": "Relu", "alpha": 0.5}),
        lambda: np.maximum(0.5 * (X @ W), 0),
    ),
    "FusedMatMulActivation, Softmax": (
        Fused("FusedMatMulActivation", (X, W), (1,), {"activation": "Softmax", "activation_axis": -1}),
        lambda: softmax(X @ W),
    ),
    "MultiHeadAttention, one packed input": (
        Fused("MultiHeadAttention", (QKV,), (), HEADS),
        lambda: attend(QKV[..., 0, :], QKV[..., 1, :], QKV[..., 2, :]),
    ),
    "MultiHeadAttention, keys and values packed": (
        Fused("MultiHeadAttention", (Q, KV), (), HEADS),
        lambda: attend(Q.reshape(B, S, H, E), KV[..., 0, :], KV[..., 1, :]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_steps_say_what_the_documentation_says(name: str) -> None:
    case, wanted = CASES[name]
    model = case.model()
    lower(model)
    assert "the node" not in [node.name for node in model.graph]
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (found,) = run_once(serialized(model), case.feeds).values()
    np.testing.assert_allclose(found, wanted(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_what_was_not_changed_lifts_to_the_very_node(name: str) -> None:
    case, _ = CASES[name]
    model = case.model()
    before = serialized(model)
    lower(model)
    assert lift(model) == 1
    model.graph.meta.clear()
    assert serialized(model) == before


def test_a_softmax_over_several_axes_and_a_dropout_that_may_train_stay() -> None:
    several = Fused("BiasSoftmax", (SCORES, MASK), (), {"axis": 2, "is_inner_broadcast": 1}, rank=4)
    training = Fused("BiasDropout", (X, ROW, None, None, np.array(True)), (1,))
    for case in (several, training):
        model = case.model()
        lower(model)
        assert [node.op_type for node in model.graph] == [case.op_type]
