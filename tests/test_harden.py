"""Hard attention: exactly K survive, ties go to the lower index, padding never wins, a large K changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from small_graphs import D, Sketch
from zoo import CASES, build, onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.cut.hard_attention import harden, require_hardenable
from axformer_passes.errors import PlanError
from axformer_passes.io.files import load_model, serialized
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


@pytest.mark.matrix
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
