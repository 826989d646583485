"""Each fused operator's lowering says what ONNX Runtime's kernel of that operator answers, and lifts to the node it was."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from fused_nodes import WIDTH, Array, B, D, E, Fused, H, S

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.io.files import serialized
from axformer_passes.prepare.fused.lifting import lift
from axformer_passes.prepare.fused.lowering import lower

RNG = np.random.default_rng(7)


def normal(*shape: int) -> Array:
    """float32 of about one."""
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: Any) -> Array:
    """int32."""
    return np.array(values, dtype=np.int32)


X, W, BIAS = normal(B, S, D), normal(D, 3 * WIDTH), normal(3 * WIDTH)
PADDED = ints([1, 1, 1, 0, 0], [1, 1, 1, 1, 1])
HIDDEN = ints([0, 0, 0, 0, 0], [1, 1, 1, 1, 0])
SQUARE = (RNG.random((B, S, S)) < 0.6).astype(np.int32)
SQUARE[0, 2] = 0
Q, K, V = normal(B, S, WIDTH), normal(B, S, WIDTH), normal(B, S, WIDTH)


def attention(mask: Array | None = None, bias: Array | None = None, **attributes: Any) -> Fused:
    """com.microsoft Attention on X."""
    inputs = (X, W, BIAS, mask, None, bias)
    return Fused("Attention", inputs, (1, 2), {"num_heads": H, **attributes})


def multi_head(*inputs: Array | None, **attributes: Any) -> Fused:
    """com.microsoft MultiHeadAttention; a bias is a constant."""
    return Fused("MultiHeadAttention", inputs, (3,), {"num_heads": H, **attributes})


ATTENTIONS = {
    "plain": attention(),
    "no bias": Fused("Attention", (X, W, None), (1,), {"num_heads": H}),
    "scale": attention(scale=0.3),
    "mask [B,T]": attention(PADDED),
    "mask [B,T], a row hidden": attention(HIDDEN),
    "mask [B,T], weak": attention(PADDED, mask_filter_value=-2.0),
    "mask [B,S,T]": attention(SQUARE),
    "lengths [B]": attention(ints(3, 5)),
    "lengths [B], one is 0": attention(ints(0, 4)),
    "lengths and starts [2B]": attention(ints(5, 4, 2, 0)),
    "causal": attention(unidirectional=1),
    "causal, mask [B,T]": attention(PADDED, unidirectional=1),
    "causal, mask [B,S,T]": attention(SQUARE, unidirectional=1),
    "causal, lengths": attention(ints(3, 5), unidirectional=1),
    "bias [1,H,S,T]": attention(None, normal(1, H, S, S)),
    "bias [B,H,S,T] and mask": attention(PADDED, normal(B, H, S, S)),
    "values of another size": Fused(
        "Attention",
        (X, normal(D, 2 * WIDTH + 2 * H), normal(2 * WIDTH + 2 * H)),
        (1, 2),
        {"num_heads": H, "qkv_hidden_sizes": [WIDTH, WIDTH, 2 * H]},
    ),
    "operator set 11": Fused("Attention", (X, W, BIAS, PADDED), (1, 2), {"num_heads": H}, opset=11),
}
MULTI_HEADS = {
    "separate": multi_head(Q, K, V),
    "separate, bias": multi_head(Q, K, V, BIAS),
    "mask [B,T]": multi_head(Q, K, V, BIAS, PADDED),
    "mask [B,T], a row hidden": multi_head(Q, K, V, None, HIDDEN),
    "mask [B,S,T]": multi_head(Q, K, V, None, SQUARE),
    "lengths [B]": multi_head(Q, K, V, None, ints(3, 5)),
    "bias [1,H,S,T]": multi_head(Q, K, V, None, None, normal(1, H, S, S)),
    "bias [B,1,S,T], mask": multi_head(Q, K, V, BIAS, PADDED, normal(B, 1, S, S)),
    "causal": multi_head(Q, K, V, unidirectional=1),
    "causal, mask": multi_head(Q, K, V, BIAS, PADDED, unidirectional=1),
    "scale": multi_head(Q, K, V, scale=0.2),
    "values of another size": dataclasses.replace(
        multi_head(Q, K, normal(B, S, 2 * H), normal(2 * WIDTH + 2 * H)), sized=True
    ),
    "cross": multi_head(normal(B, 3, WIDTH), K, V, BIAS),
    "cross, ready keys": multi_head(normal(B, 3, WIDTH), normal(B, H, S, E), normal(B, H, S, E)),
    "cross, ready keys, bias": multi_head(normal(B, 3, WIDTH), normal(B, H, S, E), normal(B, H, S, E), BIAS),
    "operator set 11": Fused("MultiHeadAttention", (Q, K, V, BIAS), (3,), {"num_heads": H}, opset=11),
}
GAMMA, BETA, ROW = normal(D), normal(D), normal(D)


def skip(*inputs: Array | None, outputs: tuple[str, ...] = ("y",), opset: int = 17, simplified: bool = False) -> Fused:
    """SkipLayerNormalization or its simplified form, weights constant."""
    name = "SkipSimplifiedLayerNormalization" if simplified else "SkipLayerNormalization"
    return Fused(name, inputs, (2, 3, 4)[: len(inputs) - 2], {"epsilon": 1e-5}, outputs, opset=opset)


IDS, SEGMENTS = RNG.integers(0, 9, (B, S)).astype(np.int32), RNG.integers(0, 2, (B, S)).astype(np.int32)
TABLES = (normal(9, D), normal(8, D), normal(2, D), GAMMA, BETA)


def embed(
    *more: Array | None, segments: bool = True, outputs: tuple[str, ...] = ("y", "_unread"), opset: int = 17
) -> Fused:
    """EmbedLayerNormalization; tables are constants."""
    tables = TABLES if segments else (*TABLES[:2], None, *TABLES[3:])
    inputs = (IDS, SEGMENTS if segments else None, *tables, *more)
    return Fused("EmbedLayerNormalization", inputs, (2, 3, 4, 5, 6), {"epsilon": 1e-5}, outputs, opset=opset)


NORMS = {
    "skip": skip(X, normal(B, S, D), GAMMA, BETA),
    "skip, bias": skip(X, normal(B, S, D), GAMMA, BETA, ROW),
    "skip, no beta": skip(X, normal(B, S, D), GAMMA),
    "skip [S,D]": skip(X, normal(S, D), GAMMA, BETA),
    "skip, sum": skip(X, normal(B, S, D), GAMMA, BETA, ROW, outputs=("y", "", "", "sum")),
    "skip, operator set 11": skip(X, normal(B, S, D), GAMMA, BETA, ROW, opset=11),
    "simplified": skip(X, normal(B, S, D), GAMMA, simplified=True),
    "simplified, bias, sum": skip(X, normal(B, S, D), GAMMA, ROW, outputs=("y", "", "", "sum"), simplified=True),
    "simplified, operator set 23": skip(X, normal(B, S, D), GAMMA, simplified=True, opset=23),
    "embed": embed(),
    "embed, no segments": embed(segments=False),
    "embed, lengths": embed(PADDED, outputs=("y", "int_lengths")),
    "embed, lengths, sum": embed(PADDED, outputs=("y", "int_lengths", "sum")),
    "embed, positions": embed(None, np.broadcast_to(ints(3, 1, 2, 0, 5), (B, S)).copy()),
    "embed, operator set 11": embed(PADDED, outputs=("y", "int_lengths"), opset=11),
}
ACTIVATIONS = {
    "BiasGelu": Fused("BiasGelu", (X, ROW), (1,)),
    "BiasGelu, operator set 20": Fused("BiasGelu", (X, ROW), (1,), opset=20),
    "FastGelu": Fused("FastGelu", (X, ROW), (1,)),
    "FastGelu, operator set 20": Fused("FastGelu", (X, ROW), (1,), opset=20),
}
BYTES = RNG.integers(0, 255, (B, S, D)).astype(np.uint8)
SIGNED = RNG.integers(-128, 127, (D, 3 * WIDTH)).astype(np.int8)
ZERO, STEP, STEPS = np.array(120, np.uint8), np.array(0.02, np.float32), RNG.random(3 * WIDTH).astype(np.float32) / 50
PRODUCTS = {
    "DynamicQuantizeMatMul": Fused("DynamicQuantizeMatMul", (X, SIGNED, STEP), (1, 2)),
    "DynamicQuantizeMatMul, columns, bias": Fused(
        "DynamicQuantizeMatMul", (X, SIGNED, STEPS, np.zeros(3 * WIDTH, np.int8), BIAS), (1, 2, 3, 4)
    ),
    "MatMulIntegerToFloat": Fused(
        "MatMulIntegerToFloat", (BYTES, SIGNED, STEP, STEPS, ZERO, None, BIAS), (1, 2, 3, 4, 6)
    ),
    "QAttention": Fused(
        "QAttention", (BYTES, SIGNED, BIAS, STEP, STEP, ints(3, 5), ZERO, np.array(3, np.int8)), (1, 2, 3, 4, 6, 7),
        {"num_heads": H},
    ),
    "QAttention, columns, mask [B,T], causal": Fused(
        "QAttention", (BYTES, SIGNED, BIAS, STEP, STEPS, PADDED, ZERO), (1, 2, 3, 4, 6),
        {"num_heads": H, "unidirectional": 1},
    ),
}  # fmt: skip
MATRICES = {
    "FusedMatMul": Fused("FusedMatMul", (X, normal(D, 5)), (1,)),
    "FusedMatMul, alpha, transB": Fused("FusedMatMul", (X, normal(5, D)), (1,), {"alpha": 0.25, "transB": 1}),
    "FusedMatMul, transA": Fused("FusedMatMul", (normal(B, H, S, 4), normal(B, H, S, 6)), (), {"transA": 1}, rank=4),
    "FusedMatMul, transBatchA": Fused(
        "FusedMatMul", (normal(S, B, H, 4), normal(B, H, 4, 6)), (), {"transBatchA": 1}, rank=4
    ),
    "FusedMatMul, transBatchB, transB": Fused(
        "FusedMatMul", (normal(B, H, S, 4), normal(6, B, H, 4)), (), {"transBatchB": 1, "transB": 1, "alpha": 2.0}, rank=4
    ),
    "TransposeMatMul": Fused("TransposeMatMul", (X, normal(5, D)), (1,), {"transB": 1}),
    "FusedGemm, Relu": Fused(
        "FusedGemm", (normal(S, D), normal(D, 5), normal(5)), (1, 2), {"activation": "Relu", "beta": 0.5}, rank=2
    ),
    "FusedGemm, LeakyRelu, no bias": Fused(
        "FusedGemm", (normal(S, D), normal(5, D)), (1,),
        {"activation": "LeakyRelu", "activation_alpha": 0.3, "transB": 1}, rank=2,
    ),
    "FusedGemm, Tanh": Fused(
        "FusedGemm", (normal(S, D), normal(D, 5), normal(5)), (1, 2), {"activation": "Tanh", "alpha": 0.5}, rank=2
    ),
}  # fmt: skip
COS, SIN = np.cos(normal(16, 4)), np.sin(normal(16, 4))
PLACES = RNG.integers(0, 16, (B, S))


def rotary(*inputs: Array, rank: int = 3, **attributes: Any) -> Fused:
    """com.microsoft RotaryEmbedding with constant tables."""
    return Fused("RotaryEmbedding", (*inputs, COS, SIN), (2, 3), attributes, rank=rank)


def rotary_23(x: Array, *tables: Array, rank: int = 3, **attributes: Any) -> Fused:
    """RotaryEmbedding of operator set 23."""
    constants = (1, 2) if len(tables) == 3 else ()
    return Fused("RotaryEmbedding", (x, *tables), constants, attributes, domain="", opset=23, rank=rank, sized=True)


ROTARIES = {
    "halves": rotary(normal(B, S, 32), PLACES),
    "interleaved": rotary(normal(B, S, 32), PLACES, interleaved=1),
    "an offset": rotary(normal(B, S, 32), np.array([3])),
    "4-D": rotary(normal(B, H, S, 8), PLACES, rank=4),
    "partial": dataclasses.replace(rotary(normal(B, S, 48), PLACES, num_heads=4, rotary_embedding_dim=8), sized=True),
    "standard": rotary_23(normal(B, S, 32), COS, SIN, PLACES, num_heads=4),
    "standard, 4-D, interleaved": rotary_23(normal(B, H, S, 8), COS, SIN, PLACES, rank=4, interleaved=1),
    "standard, no positions": rotary_23(normal(B, H, S, 8), COS[PLACES], SIN[PLACES], rank=4),
    "standard, partial": rotary_23(normal(B, H, S, 12), COS, SIN, PLACES, rank=4, rotary_embedding_dim=8),
}
G, T = 2, 7
SEEN = RNG.random((S, T)) < 0.6
SEEN[2] = False


def grouped(shape: str, mask: Array | None = None, groups: int = G, sized: bool = True, **attributes: Any) -> Fused:
    """Attention of operator set 23: H query heads, `groups` key heads, values of another size."""
    inputs = (normal(B, H, S, E), normal(B, groups, T, E), normal(B, groups, T, E + 1), mask)
    if shape == "3-D":
        inputs = (*(x.transpose(0, 2, 1, 3).reshape(B, x.shape[2], -1) for x in inputs[:3]), mask)  # type: ignore[union-attr,assignment]
        attributes |= {"q_num_heads": H, "kv_num_heads": groups}
    return Fused("Attention", inputs, (), attributes, domain="", opset=23, rank=int(shape[0]), sized=sized)


STANDARD = {
    "4-D": grouped("4-D", groups=H),
    "4-D, unknown sizes": grouped("4-D", groups=H, sized=False),
    "4-D, grouped": grouped("4-D"),
    "4-D, grouped, unknown sizes": grouped("4-D", sized=False),
    "3-D": grouped("3-D", groups=H),
    "3-D, grouped": grouped("3-D", sized=False),
    "scale": grouped("4-D", scale=0.3),
    "bool mask [S,T], a row hidden": grouped("4-D", SEEN),
    "bool mask [B,1,S,T]": grouped("3-D", np.broadcast_to(SEEN, (B, 1, S, T)).copy()),
    "float mask [H,S,T]": grouped("4-D", normal(H, S, T)),
    "float mask [1,1,S,T]": grouped("3-D", normal(1, 1, S, T), groups=H),
    "causal": grouped("4-D", is_causal=1),
    "causal, float mask": grouped("3-D", normal(B, 1, S, T), is_causal=1),
    "causal, bool mask": grouped("4-D", SEEN, groups=H, is_causal=1),
    "softcap": grouped("3-D", softcap=1.5),
    "softcap, mask": grouped("4-D", SEEN, softcap=1.5),
}


def group_query(*more: Array | None, packed: bool = False, **attributes: Any) -> Fused:
    """com.microsoft GroupQueryAttention, 4 heads of 16 on 2 key heads, without past; the first row has 3 tokens."""
    parts = normal(B, S, 64), normal(B, S, 32), normal(B, S, 32)
    inputs = (np.concatenate(parts, axis=-1), None, None) if packed else parts
    constants = (7, 8) if more else ()
    return Fused(
        "GroupQueryAttention", (*inputs, None, None, ints(2, S - 1), ints(S), *more), constants,
        {"num_heads": 4, "kv_num_heads": 2, **attributes}, ("y", "_key", "_value"), sized=True,
    )  # fmt: skip


TALL_COS, TALL_SIN = np.cos(normal(16, 8)), np.sin(normal(16, 8))
GROUPED = {
    "plain": group_query(),
    "not causal": group_query(causal=0),
    "scale": group_query(scale=0.2),
    "window": group_query(local_window_size=2),
    "softcap": group_query(softcap=1.5),
    "in one tensor": group_query(packed=True),
    "rotary": group_query(TALL_COS, TALL_SIN, do_rotary=1),
    "rotary, in one tensor, interleaved": group_query(
        TALL_COS, TALL_SIN, packed=True, do_rotary=1, rotary_interleaved=1
    ),
    "bias": group_query(None, None, None, normal(1, 4, S, S)),
}
CASES = {
    f"{table}: {name}": case
    for table, cases in {
        "Attention": ATTENTIONS,
        "MultiHeadAttention": MULTI_HEADS,
        "norm": NORMS,
        "activation": ACTIVATIONS,
        "product": PRODUCTS,
        "matrix": MATRICES,
        "rotary": ROTARIES,
        "Attention-23": STANDARD,
        "GroupQueryAttention": GROUPED,
    }.items()
    for name, case in cases.items()
}


def answers(model: ir.Model, case: Fused) -> list[Array]:
    """What ONNX Runtime says without optimisations."""
    return list(run_once(serialized(model), case.feeds).values())


def assert_equal(found: list[Array], expected: list[Array]) -> None:
    """Within 1e-5 of the largest value: float32 sums in another order."""
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("name", CASES)
def test_the_steps_say_what_the_kernel_says(name: str) -> None:
    case = CASES[name]
    model = case.model()
    expected = answers(model, case)
    lower(model)
    assert "the node" not in [node.name for node in model.graph]
    assert_equal(answers(model, case), expected)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize("name", CASES)
def test_what_was_not_changed_lifts_to_the_very_node(name: str) -> None:
    case = CASES[name]
    model = case.model()
    before = serialized(model)
    lower(model)
    assert lift(model) == 1
    model.graph.meta.clear()
    assert serialized(model) == before


def test_a_form_without_a_lowering_stays() -> None:
    past = normal(2, B, H, 3, E)
    case = Fused("Attention", (X, W, BIAS, None, past), (1, 2), {"num_heads": H}, ("y", "present"))
    model = case.model()
    before = serialized(model)
    lower(model)
    assert serialized(model) == before


@pytest.mark.parametrize("name", [name for name in CASES if "DynamicQuantize" not in name])
def test_in_half_precision_the_constants_of_the_steps_are_half_too(name: str) -> None:
    case = CASES[name]
    halves = (a.astype(np.float16) if a is not None and a.dtype == np.float32 else a for a in case.inputs)
    model = dataclasses.replace(case, inputs=tuple(halves)).model()
    lower(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    assert lift(model) == 1
