"""ONNX's own Attention (operator set 23): its lowering against onnx's reference evaluator, and the forms that have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from small_graphs import E, H, Sketch

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.prepare.fused.lowering import NOT_LOWERED, lower

Array = npt.NDArray[Any]
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
def test_the_steps_of_attention_say_what_the_reference_says(form: str, mask: str, causal: int, shapes: bool) -> None:
    """The oracle is onnx's own reference evaluator."""
    proto, feeds = attention(form, mask, causal, shapes)
    model = ir.from_proto(proto)
    lower(model)
    result = ir.to_proto(model)
    onnx.checker.check_model(result, full_check=True)
    assert {n.op_type for n in result.graph.node}.isdisjoint({"Attention"})
    (wanted,) = ReferenceEvaluator(proto).run(None, feeds)
    found = run_once(result.SerializeToString(), feeds)["y"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("attributes", "inputs", "outputs", "reason"),
    [
        ({"softmax_precision": 1}, 3, 1, "windows or softmax_precision"),
        ({}, 6, 1, "past state or key lengths"),
        ({}, 3, 4, "output 3 is read"),
    ],
)
def test_a_form_without_a_lowering_stays_and_says_why(
    attributes: dict[str, Any], inputs: int, outputs: int, reason: str
) -> None:
    names = ["q", "k", "v", "", "pk", "pv"][:inputs]
    out_names = ["out", "", "", "scores"][:outputs]
    node = helper.make_node("Attention", names, out_names, **attributes)
    infos = [helper.make_tensor_value_info(n, 1, [2, H, 4, E]) for n in names if n]
    outs = [helper.make_tensor_value_info(n, 1, [2, H, 4, None]) for n in out_names if n]
    graph = helper.make_graph([node], "g", infos, outs)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10))
    lower(model)
    (kept,) = model.graph
    assert kept.op_type == "Attention"
    assert reason in kept.meta[NOT_LOWERED]
