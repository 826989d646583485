"""Hard attention: exactly K survive, ties go to the lower index, padding never wins, a large K changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from small_graphs import D, E, H, Sketch
from surgery import assert_close
from zoo import CASES, build, onnx_outputs

from axformer_onnx.runtime import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.decompose import decompose_attention
from axformer_passes.errors import PlanError, RecogniseError
from axformer_passes.files import load_model, serialized
from axformer_passes.harden import harden, require_hardenable
from axformer_passes.plan import MODES, Hard, Mode, Plan

Array = npt.NDArray[Any]


def hardened_softmax(k: int, mode: Mode, opset: int = 17) -> bytes:
    """Softmax alone, x[R,T] -> p[R,T], hardened."""
    g = Sketch(opset)
    proto = g.model({"x": ["rows", "tokens"]}, g("Softmax", "x", axis=-1), ["rows", "tokens"])
    proto.ir_version = 6
    model = ir.from_proto(proto)
    harden(model.graph, "t0_0", Hard(k, mode), np.dtype(np.float32))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return serialized(model)


def expected(x: Array, k: int, mode: Mode) -> Array:
    """Row by row, by a stable sort: float64[R,T]."""
    out = np.zeros(x.shape)
    for row, scores in enumerate(x.astype(np.float64)):
        exp = np.exp(scores - scores.max())
        order = sorted(range(len(scores)), key=lambda i: (-x[row, i], i))[:k]
        out[row, order] = exp[order] / (exp[order].sum() if mode == "renormalised" else exp.sum())
    return out


SCORES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0]),  # few values: most rows have ties
)


@pytest.mark.parametrize("opset", [11, 13, 17, 23])
@pytest.mark.parametrize("mode", MODES)
@settings(derandomize=True, deadline=None, database=None, max_examples=25)
@given(x=SCORES, k=st.integers(1, 10))
def test_exactly_k_survive_and_ties_go_to_the_lower_index(mode: Mode, opset: int, x: Array, k: int) -> None:
    (found,) = onnx_outputs(hardened_softmax(k, mode, opset), {"x": x})
    assert ((found > 0).sum(axis=1) == min(k, x.shape[1])).all()
    np.testing.assert_allclose(found, expected(x, k, mode), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mode", MODES)
def test_survivors_of_equal_scores_are_the_first_ones(mode: Mode) -> None:
    (found,) = onnx_outputs(hardened_softmax(3, mode), {"x": np.zeros((2, 40), np.float32)})
    assert [np.flatnonzero(row).tolist() for row in found] == [[0, 1, 2]] * 2
    assert found[0, 0] == np.float32(1 / 40 if mode == "truncated" else 1 / 3)


@pytest.mark.parametrize("mode", MODES)
def test_topk_asks_for_the_order_that_promises_the_lower_index(mode: Mode) -> None:
    """Unsorted, a provider may pick any of equal scores; this one's CPU kernel happens not to."""
    (node,) = (n for n in onnx.load_from_string(hardened_softmax(3, mode)).graph.node if n.op_type == "TopK")
    assert {a.name: a.i for a in node.attribute} == {"axis": -1, "largest": 1, "sorted": 1}


@pytest.mark.parametrize("lowest", [-10_000.0, float(np.finfo(np.float32).min), -np.inf])
@pytest.mark.parametrize("mode", MODES)
def test_padding_never_beats_a_real_token(mode: Mode, lowest: float) -> None:
    """Real scores far apart, padding in front, more survivors than real tokens."""
    x = np.array([[lowest, lowest, -80.0, 0.0, lowest, 3.0]], np.float32)
    (found,) = onnx_outputs(hardened_softmax(2, mode), {"x": x})
    assert np.flatnonzero(found[0]).tolist() == [3, 5]
    (found,) = onnx_outputs(hardened_softmax(5, mode), {"x": x})
    assert found[0, [0, 1, 4]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-6)


@pytest.mark.parametrize(("family", "exporter"), [c for c in CASES if c[1] in ("torchscript-sdpa-14", "dynamo-20")])
@pytest.mark.parametrize("mode", MODES)
def test_a_k_beyond_the_sequence_changes_no_bit(family: str, exporter: str, mode: Mode) -> None:
    model = build(family, exporter)
    plan = Plan()
    for layer in range(model.layers):
        plan = plan.with_hard_attention(layer, 24, mode)
    graph = serialized(apply_plan(load_model(model.path), plan, run_once))
    for length in (1, 2, 23, 24):
        feeds = model.feeds(2, length)
        np.testing.assert_array_equal(onnx_outputs(graph, feeds)[0], onnx_outputs(model.path, feeds)[0])


def test_hard_attention_below_operator_set_11_is_refused_with_what_to_do() -> None:
    g = Sketch(opset=10)
    model = ir.from_proto(g.model({"x": ["b", "s", D]}, g("Relu", "x"), ["b", "s", D]))
    with pytest.raises(PlanError, match=r"needs operator set 11.*the model has 10; export again"):
        require_hardenable(model, Plan().with_hard_attention(0, 3))


# -- the fused node, taken apart ------------------------------------------------------------------------------------

B, S, T, G = 2, 4, 6, 2
MASKS: dict[str, Callable[[np.random.Generator], Array] | None] = {
    "none": None,
    "float [S,T]": lambda rng: rng.normal(size=(S, T)).astype(np.float32),
    "float [B,1,S,T]": lambda rng: rng.normal(size=(B, 1, S, T)).astype(np.float32),
    "bool [B,1,S,T]": lambda rng: np.broadcast_to(np.arange(T) < np.array([T, 3]).reshape(B, 1, 1, 1), (B, 1, S, T)),
    "bool, rows that see nothing": lambda rng: np.arange(S * T).reshape(S, T) % (2 * T) < T,
    "bool [B,H,S,T]": lambda rng: (rng.random((B, H, S, T)) < 0.6) | (np.arange(T) == 0),
}
FORMS: dict[str, dict[str, Any]] = {
    "4-D": {},
    "4-D, scale": {"scale": 0.3},
    "3-D": {"q_num_heads": H, "kv_num_heads": H},
    "4-D, grouped": {},
    "3-D, grouped": {"q_num_heads": H, "kv_num_heads": G},
}


def attention(form: str, mask: str, causal: int, shapes: bool = True) -> tuple[onnx.ModelProto, dict[str, Array]]:
    rng = np.random.default_rng(3)
    groups = G if "grouped" in form else H
    counts = {"q": (H, S, E), "k": (groups, T, E), "v": (groups, T, E + 1)}
    feeds: dict[str, Array] = {n: rng.normal(size=(B, *s)).astype(np.float32) for n, s in counts.items()}
    if form.startswith("3-D"):
        feeds = {n: a.transpose(0, 2, 1, 3).reshape(B, a.shape[2], -1) for n, a in feeds.items()}
    build_mask = MASKS[mask]
    if build_mask is not None:
        feeds["mask"] = build_mask(rng)
    g = Sketch(23)
    y = g("Attention", *feeds, is_causal=causal, **FORMS[form])
    rank = 3 if form.startswith("3-D") else 4
    ins = {n: list(a.shape) if shapes else [f"{n}{i}" for i in range(a.ndim)] for n, a in feeds.items()}
    kinds = {"mask": TensorProto.BOOL} if mask.startswith("bool") else {}
    return g.model(ins, y, [None] * rank, **kinds), feeds


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shapes", [True, False], ids=["known shapes", "unknown shapes"])
def test_fused_attention_equals_its_primitive_operators(form: str, mask: str, causal: int, shapes: bool) -> None:
    """The oracle is onnx's own reference evaluator."""
    proto, feeds = attention(form, mask, causal, shapes)
    model = ir.from_proto(proto)
    decompose_attention(model.graph, next(n for n in model.graph if n.op_type == "Attention"))
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    assert {n.op_type for n in result.graph.node}.isdisjoint({"Attention"})
    (wanted,) = ReferenceEvaluator(proto).run(None, feeds)
    assert_close(onnx_outputs(result.SerializeToString(), feeds)[0], np.asarray(wanted), f"{form}, {mask}")


@pytest.mark.parametrize(
    ("attributes", "inputs", "reason"),
    [
        ({"softcap": 5.0}, 3, "softcap or softmax_precision"),
        ({"softmax_precision": 1}, 3, "softcap or softmax_precision"),
        ({}, 6, "past keys"),
    ],
)
def test_forms_without_a_decomposition_are_refused(attributes: dict[str, Any], inputs: int, reason: str) -> None:
    names = ["q", "k", "v", "", "pk", "pv"][:inputs]
    node = helper.make_node("Attention", names, ["out"], **attributes)
    infos = [helper.make_tensor_value_info(n, 1, [B, H, S, E]) for n in names if n]
    out = [helper.make_tensor_value_info("out", 1, [B, H, S, E])]
    graph = helper.make_graph([node], "g", infos, out)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    with pytest.raises(RecogniseError, match=f"out: Attention with {reason}"):
        decompose_attention(model.graph, next(iter(model.graph)))
    assert [n.op_type for n in model.graph] == ["Attention"]
