"""`If` nodes: one whose condition is always the same gives way to the branch that is taken; any other stays as it is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import small_graphs as draw
from onnx import TensorProto, helper
from small_graphs import D, H, Sketch, Weights, attend, separate
from surgery import assert_close
from zoo import onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.errors import PlanError
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise


def guarded(test: str, negated: bool) -> draw.Writer:
    """Scores behind `If`: one branch passes them on, the other halves them. `test` says what is compared with what."""

    def scores(g: Sketch, s: str) -> str:
        shape = g("Shape", s)
        last, before = (g("Gather", shape, g.weight(np.array(i))) for i in (3, 2))
        batch = g("Gather", shape, g.weight(np.array(0)))
        other = {"tokens": before, "one": g.weight(np.array(1)), "batch": batch}[test]
        equal = g("Equal", batch if test == "one" else last, other)
        condition = g("Not", equal) if negated else equal
        same = helper.make_node("Identity", [s], ["passed"])
        half = [
            helper.make_node("Constant", [], ["two"], value_float=2.0),
            helper.make_node("Div", [s, "two"], ["halved"]),
        ]
        info = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("passed", "halved")}
        passing = helper.make_graph([same], "passing", [], [info["passed"]])
        halving = helper.make_graph(half, "halving", [], [info["halved"]])
        then, other_branch = (halving, passing) if negated else (passing, halving)
        return str(g("If", condition, then_branch=then, else_branch=other_branch))

    return lambda g, w, x: attend(g, w, separate(g, w, x), scores)


def model(test: str, negated: bool, w: Weights) -> ir.Model:
    """One layer with the guarded attention."""
    return ir.from_proto(draw.layer(guarded(test, negated), draw.plain, w))


@pytest.mark.parametrize("negated", [False, True])
def test_a_test_of_one_size_against_itself_gives_way_to_its_branch(negated: bool) -> None:
    w = draw.weights()
    result = apply_plan(model("tokens", negated, w), Plan().without_heads(0, [1]), run_once)
    assert "If" not in {node.op_type for node in result.graph}
    for shape in ((1, 1), (2, 5), (3, 4)):
        x = np.random.default_rng(0).normal(size=(*shape, D)).astype(np.float32)
        assert_close(onnx_outputs(ir.to_proto(result).SerializeToString(), {"x": x})[0], w.answer(x, heads=[1]))


@pytest.mark.parametrize("test", ["one", "batch"])
def test_sizes_that_may_be_equal_decide_nothing(test: str) -> None:
    """A batch of one, or as many rows as tokens: the probe meets neither."""
    w = draw.weights()
    source = model(test, False, w)
    anatomy = recognise(source, run_once)
    assert [layer.attention for layer in anatomy.layers] == [None]
    assert any("from inside a subgraph" in refusal.reason for refusal in anatomy.refused)
    result = apply_plan(source, Plan().without_neurons(0, [1]), run_once)
    x = np.random.default_rng(0).normal(size=(4, 4, D)).astype(np.float32)
    halved = (lambda s: s) if test == "batch" else (lambda s: s / 2)
    found = onnx_outputs(ir.to_proto(result).SerializeToString(), {"x": x})[0]
    assert_close(found, w.answer(x, neurons=[1], scores=halved))
    with pytest.raises(PlanError, match="no attention block"):
        apply_plan(source, Plan().without_heads(0, [1]), run_once)


def test_the_source_keeps_its_if() -> None:
    source = model("tokens", True, draw.weights())
    before = ir.to_proto(source).SerializeToString(deterministic=True)
    apply_plan(source, Plan().without_heads(0, [H - 1]), run_once)
    assert ir.to_proto(source).SerializeToString(deterministic=True) == before
