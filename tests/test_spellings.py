"""Further ways to write the same layer: Einsum, batch x heads on one axis with computed companions, counts in integer chains."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as draw
from onnx import TensorProto
from small_graphs import D, E, H, Heads, Sketch, Weights, linear, separate
from surgery import assert_close, gated_outputs
from zoo import onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_passes.apply import apply_plan
from axformer_passes.plan import Plan
from axformer_passes.prepare.walkable import prepared

PLANS = (
    Plan().without_heads(0, [1]),
    Plan().without_heads(0, [0, 2]).without_neurons(0, [1, 2]),
    Plan().without_heads(0, range(H)),
    Plan().without_heads(0, [3]).with_hard_attention(0, 2, "renormalised"),
)


def assert_layer(proto: onnx.ModelProto, w: Weights, scores: Callable[[draw.Array], draw.Array] = lambda s: s) -> None:
    """Removed = gated = NumPy, for each plan, at sizes unlike those of the probe."""
    source = ir.from_proto(proto)
    stages = StageSessions(source, threads=1)
    for plan in PLANS:
        cut = ir.to_proto(apply_plan(source, plan, run_once))
        onnx.checker.check_model(cut, full_check=True)
        for shape in ((1, 1), (2, 5), (3, 4)):
            x = np.random.default_rng(sum(shape)).normal(size=(*shape, D)).astype(np.float32)
            expected = answer(w, x, plan, scores)
            assert_close(onnx_outputs(cut.SerializeToString(), {"x": x})[0], expected, str(plan.to_json()))
            assert_close(gated_outputs(stages, plan, {"x": x})[0], expected, str(plan.to_json()))


def answer(w: Weights, x: draw.Array, plan: Plan, scores: Callable[[draw.Array], draw.Array]) -> draw.Array:
    """What NumPy says of the layer under `plan`."""

    def hard(s: draw.Array) -> draw.Array:
        s = scores(s)
        if 0 not in plan.hard_attention:
            return s
        rank = np.argsort(np.argsort(-s, axis=-1, kind="stable"), axis=-1)
        return np.where(rank < plan.hard_attention[0].k, s, -np.inf)

    return w.answer(x, plan.heads.get(0, ()), plan.neurons.get(0, ()), hard)


# -- Einsum -----------------------------------------------------------------------------------------------------------

EINSUMS: dict[str, tuple[str, str, str, str]] = {
    "heads apart": ("bsd,dhe->bshe", "bshe,bthe->bhst", "bhst,bthe->bshe", "bshe,hed->bsd"),
    "heads first": ("bsd,dhe->bhse", "bhse,bhte->bhst", "bhst,bhte->bhse", "bhse,hed->bsd"),
    "weights first": ("dhe,bsd->bhse", "bhse,bhte->bhst", "bhst,bhte->bhse", "hed,bhse->bsd"),
    "width before heads": ("bsd,deh->besh", "besh,beth->bhst", "bhst,beth->bshe", "bshe,dhe->bsd"),
    "tokens first (XLNet)": ("bsd,dhe->sbhe", "sbhe,tbhe->bhst", "bhst,tbhe->sbhe", "sbhe,dhe->bsd"),
}


def by_einsum(equations: tuple[str, str, str, str]) -> draw.Writer:
    """Projections, scores, context and output by these equations; weights in the shape that they ask for."""
    project, score, mix, out = equations

    def write(g: Sketch, w: Weights, x: str) -> str:
        letters = {"d": D, "h": H, "e": E}
        into, result = project.split("->")[0].split(","), project.split("->")[1]
        slot = 0 if "h" in into[0] else 1
        bias_shape = [letters.get(c, 1) if c in "he" else 1 for c in result]

        def projected(n: str) -> str:
            weight = w[f"w{n}"].reshape(D, H, E).transpose(["dhe".index(c) for c in into[slot]])
            operands = [g.weight(weight.copy()), x] if slot == 0 else [x, g.weight(weight.copy())]
            order = ["he".index(c) for c in result if c in "he"]
            bias = w[f"b{n}"].reshape(H, E).transpose(order).reshape(bias_shape)
            return str(g("Add", g("Einsum", *operands, equation=project), g.weight(bias.copy())))

        q, k, v = (projected(n) for n in "qkv")
        scores = g("Mul", g("Einsum", q, k, equation=score), g.weight(np.float32(E**-0.5)))
        context = g("Einsum", g("Softmax", scores, axis=-1), v, equation=mix)
        outward = out.split("->")[0].split(",")
        side = 0 if "d" in outward[0] else 1
        weight = w["wo"].reshape(H, E, D).transpose(["hed".index(c) for c in outward[side]])
        operands = [g.weight(weight.copy()), context] if side == 0 else [context, g.weight(weight.copy())]
        return str(g("Add", g("Einsum", *operands, equation=out), g.weight(w["bo"])))

    return write


@pytest.mark.parametrize("name", EINSUMS)
def test_attention_by_einsum(name: str) -> None:
    w = draw.weights()
    assert_layer(draw.layer(by_einsum(EINSUMS[name]), draw.plain, w), w)


# -- weights that a Concat puts together (onnxscript's fusions) -------------------------------------------------------


def _together(g: Sketch, w: Weights) -> str:
    return str(g("Concat", *(g.weight(w[f"w{n}"]) for n in "qkv"), axis=1))


def projected_together(g: Sketch, w: Weights, x: str) -> str:
    """One product, split in three."""
    y = g("Add", g("MatMul", x, _together(g, w)), g.weight(w.fused("bq", "bk", "bv")))
    parts = g("Split", y, g.weight(np.array([H * E] * 3)), axis=-1, outputs=3)
    q, k, v = (g.transpose(g.reshape(p, 0, 0, -1, E), 0, 2, 1, 3) for p in parts)
    return draw.attend(g, w, (q, k, v))


def fused_together(g: Sketch, w: Weights, x: str) -> str:
    """com.microsoft Attention."""
    bias = g.weight(w.fused("bq", "bk", "bv"))
    context = g("Attention", x, _together(g, w), bias, domain="com.microsoft", num_heads=H)
    return linear(g, context, w["wo"], w["bo"])


@pytest.mark.parametrize("attention", [projected_together, fused_together], ids=lambda f: f.__name__)
def test_weights_that_a_concat_puts_together(attention: draw.Writer) -> None:
    w = draw.weights()
    assert_layer(draw.layer(attention, draw.plain, w), w)


def test_a_matrix_that_others_read_too_is_not_put_together() -> None:
    """It would be written twice."""
    w = draw.weights()
    g = Sketch()
    parts = [g.weight(w[f"w{n}"]) for n in "qkv"]
    y = g("Add", g("MatMul", "x", g("Concat", *parts, axis=1)), g("MatMul", "x", g("Concat", *parts, axis=1)))
    prepared_graph = prepared(ir.from_proto(g.model({"x": ["b", "s", D]}, y, ["b", "s", 3 * H * E]))).graph
    assert [node.op_type for node in prepared_graph].count("Concat") == 2


# -- batch x heads on one axis ----------------------------------------------------------------------------------------


def flat(g: Sketch, w: Weights, heads: Heads, bias: Callable[[Sketch, str, str], str]) -> str:
    """[B*H,S,E] products; `bias(g, batch, scores)` makes what is added to the scores."""
    count = g.weight(np.array([H]))
    batch = g("Gather", g("Shape", heads[0]), g.weight(np.array([0])))
    both = g("Mul", batch, count)
    q, k, v = (g("Reshape", part, g.sizes(part, both, 2, 3)) for part in heads)
    scores = g("Mul", g("MatMul", q, g.transpose(k, 0, 2, 1)), g.weight(np.float32(E**-0.5)))
    scores = g("Add", scores, bias(g, batch, scores))
    context = g("MatMul", g("Softmax", scores, axis=-1), v)
    split = g("Reshape", context, g("Concat", batch, count, g.sizes(context, 1, 2), axis=0))
    joined = g("Reshape", g.transpose(split, 0, 2, 1, 3), g.sizes("x", 0, 1, g.weight(np.array([-1]))))
    return linear(g, joined, w["wo"], w["bo"])


SLOPES = np.array([0.5, -1.0, 0.25, 2.0], np.float32)


def _positions(g: Sketch, like: str) -> str:
    """float[S]: 0, 1, 2 ... of the last axis."""
    length = g("Gather", g("Shape", like), g.weight(np.array(-1)))
    return str(g("Cast", g("Range", g.weight(np.array(0)), length, g.weight(np.array(1))), to=TensorProto.FLOAT))


def slopes_expanded(g: Sketch, batch: str, scores: str) -> str:
    """ALiBi (BLOOM): slopes x positions, [H,1,S] stretched to [B,H,1,S], then [B*H,1,S]."""
    bias = g("Mul", g.weight(SLOPES.reshape(H, 1, 1)), _positions(g, scores))
    wide = g("Expand", bias, g("Concat", batch, g.weight(np.array([H, 1, 1])), axis=0))
    return str(g("Reshape", wide, g("Concat", g.weight(np.array([-1, 1])), g.sizes(scores, 2), axis=0)))


def slopes_tiled(g: Sketch, batch: str, scores: str) -> str:
    """[H,1,S] tiled as often as the scores' own first axis says: B*H over the number of heads."""
    bias = g("Mul", g.weight(SLOPES.reshape(H, 1, 1)), _positions(g, scores))
    rows = g("Div", g.sizes(scores, 0), g.weight(np.array([H])))
    return str(g("Tile", bias, g("Concat", rows, g.weight(np.array([1, 1])), axis=0)))


@pytest.mark.parametrize("bias", [slopes_expanded, slopes_tiled], ids=lambda f: f.__name__)
def test_computed_biases_of_batch_times_heads_lose_their_heads_at_every_batch_size(
    bias: Callable[[Sketch, str, str], str],
) -> None:
    w = draw.weights()
    proto = draw.layer(lambda g, w, x: flat(g, w, separate(g, w, x), bias), draw.plain, w)
    assert_layer(proto, w, lambda s: s + SLOPES.reshape(1, H, 1, 1) * np.arange(s.shape[-1]))


def test_an_index_table_of_every_head_follows() -> None:
    """Relative positions (DeBERTa): scores picked along the last axis by indices stretched over batch and heads."""
    w = draw.weights()

    def reversed_keys(g: Sketch, scores: str) -> str:
        positions = g("Cast", _positions(g, scores), to=TensorProto.INT64)
        last = g("Sub", g("Gather", g("Shape", scores), g.weight(np.array(-1))), g.weight(np.array(1)))
        batch = g("Gather", g("Shape", "x"), g.weight(np.array([0])))
        target = g("Concat", batch, g.weight(np.array([H])), g.sizes(scores, 2, 3), axis=0)
        return str(g("GatherElements", scores, g("Expand", g("Sub", last, positions), target), axis=3))

    proto = draw.layer(lambda g, w, x: draw.attend(g, w, separate(g, w, x), reversed_keys), draw.plain, w)
    assert_layer(proto, w, lambda s: s[..., ::-1])
