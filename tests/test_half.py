"""Half precision: float16 graphs, float16 weights behind a Cast, and bfloat16, which ONNX Runtime's CPU provider does not run.

Two comparisons. The graph as it is, in its own arithmetic, agrees to what that arithmetic can say. And its float32 twin (the
same numbers, every tensor float32) agrees to 1e-5 with the oracle on the twin of the source: that shows the cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_oracle import masked_graph_outputs, run_as_declared
from onnx import TensorProto, helper, numpy_helper
from surgery import assert_close, gated_outputs, removed
from test_matrix import PLANS
from zoo import ZooModel, build
from zoo_rewrites import in_bfloat16, retyped

from axformer_onnx.result.verification import verify
from axformer_onnx.runtime.sessions import fallback_note, make_session, run_once
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_passes.errors import ModelError
from axformer_passes.io import Detached
from axformer_passes.io.files import load_model, save_model, serialized
from axformer_passes.plan import Plan
from axformer_passes.probe.float32_twin import BFLOAT16, HALVES, holds, widened, widening
from axformer_passes.recognise.examination import examine, recognise

BASE = "torchscript-eager-17"
FORMS = ("fp16", "fp16io", "wfp16", "bf16")
HALF_TOLERANCE = 0.05
"""float16 rounds to 2**-11 at every operator, some hundred of them in a row; random weights amplify it to about 1e-2."""
_SHAPES = ((1, 1), (2, 7), (3, 12))


def twin(model: ZooModel, folder: Path) -> ZooModel:
    """The model whose file is the float32 twin."""
    path = folder / "twin.onnx"
    path.write_bytes(in_float32(model.path.read_bytes()))
    return dataclasses.replace(model, file=path)


def in_float32(content: bytes) -> bytes:
    """The float32 twin, by the zoo's own means."""
    model = onnx.ModelProto.FromString(content)
    for half in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        model = retyped(model, half, TensorProto.FLOAT)
    return bytes(model.SerializeToString())


@pytest.mark.sampled(6)
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.__name__)
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_removed_equals_gated_equals_masked(
    form: str, plan: Callable[[ZooModel], Plan], tmp_path: Path
) -> None:
    three_ways(build("bert", f"{BASE}+{form}"), plan, tmp_path)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("plan", [PLANS[1], PLANS[5], PLANS[-1]], ids=lambda plan: plan.__name__)
@pytest.mark.parametrize("case", ["vit+fp16io", "electra+bf16", "distilbert+fp16", "minilm+bf16"])
def test_other_families_in_half_precision(case: str, plan: Callable[[ZooModel], Plan], tmp_path: Path) -> None:
    family, form = case.split("+")
    three_ways(build(family, f"{BASE}+{form}"), plan, tmp_path)


def three_ways(model: ZooModel, plan: Callable[[ZooModel], Plan], folder: Path) -> None:
    """removed = gated = the oracle, tightly in float32; in float16 itself as far as it goes."""
    wide, wanted = twin(model, folder), plan(model)
    graph = serialized(removed(model, wanted))
    stages = StageSessions(load_model(wide.path), threads=1, optimize=False)
    for batch, length in _SHAPES:
        feeds = model.feeds(batch, length)
        expected = masked_graph_outputs(wide, feeds, wanted)[0]
        assert_close(run_as_declared(in_float32(graph), feeds)[0], expected, f"removed, {batch} x {length}")
        assert_close(gated_outputs(stages, wanted, feeds)[0], expected, f"gated, {batch} x {length}")
        if "bf16" not in model.exporter:
            found = run_as_declared(graph, feeds)[0].astype(np.float64)
            same = masked_graph_outputs(model, feeds, wanted)[0]
            assert float(np.abs(found - same).max()) <= HALF_TOLERANCE * float(np.abs(same).max())


@pytest.mark.parametrize("form", ["fp16", "fp16io", "wfp16"])
def test_gates_of_a_half_precision_graph_work_in_its_own_types(form: str) -> None:
    model = build("bert", f"{BASE}+{form}")
    plan = Plan().without_heads(0, [1]).without_neurons(1, range(9)).without_attention(1).with_hard_attention(2, 2)
    stages, feeds = StageSessions(load_model(model.path), threads=1, optimize=False), model.feeds(2, 7)
    expected = masked_graph_outputs(model, feeds, plan)[0]
    found = gated_outputs(stages, plan, feeds)[0]
    assert found.dtype == expected.dtype
    assert float(np.abs(found.astype(np.float64) - expected).max()) <= HALF_TOLERANCE * float(np.abs(expected).max())
    kinds = {block.dtype for stage in stages.stages for block in stage.blocks}
    assert kinds == {"float32" if form == "wfp16" else "float16"}


@pytest.mark.parametrize("form", FORMS)
def test_the_anatomy_in_half_precision_is_that_in_float32(form: str) -> None:
    found, plain = (recognise(load_model(build("bert", e).path), run_once) for e in (f"{BASE}+{form}", BASE))
    assert not found.refused
    for layer, other in zip(found.layers, plain.layers, strict=True):
        assert layer.attention is not None and other.attention is not None
        assert layer.attention.scale == pytest.approx(other.attention.scale, rel=1e-2)
        assert layer.attention.output.input == other.attention.output.input
        assert layer.feed_forward is not None and other.feed_forward is not None
        assert layer.feed_forward.up[0].bias is not None


def test_probed_values_of_a_bfloat16_model_have_its_types() -> None:
    labelling = examine(load_model(build("bert", f"{BASE}+bf16").path), run_once).labelling
    softmax = labelling.values[str(labelling.softmaxes[0].outputs[0].name)]
    assert softmax.dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("form", ["fp16", "bf16"])
def test_verify_compares_in_float32_and_still_finds_a_wrong_graph(form: str, tmp_path: Path) -> None:
    model = build("bert", f"{BASE}+{form}")
    plan = Plan().without_heads(1, [0]).with_hard_attention(0, 2)
    save_model(removed(model, plan), tmp_path / "right.onnx")
    assert verify(model.path, tmp_path / "right.onnx", plan) < 1e-5
    save_model(removed(model, Plan().without_heads(1, [1]).with_hard_attention(0, 2)), tmp_path / "wrong.onnx")
    with pytest.raises(Exception, match="differs from the source under the plan"):
        verify(model.path, tmp_path / "wrong.onnx", plan)


def test_a_bfloat16_session_without_kernels_runs_in_float32_and_says_so() -> None:
    model = build("bert", f"{BASE}+bf16")
    session = make_session(model.path, threads=1)
    assert "float32" in (fallback_note(session, "cpu") or "")
    assert fallback_note(make_session(build("bert", BASE).path, threads=1), "cpu") is None


def test_the_float32_twin_is_that_of_the_zoo() -> None:
    """Two programs, one twin: initializers, casts, inputs, outputs."""
    proto = onnx.load(build("bert", f"{BASE}+bf16").path)
    assert holds(proto) and holds(proto, HALVES)
    found, expected = widened(proto, BFLOAT16), retyped(proto, TensorProto.BFLOAT16, TensorProto.FLOAT)
    assert not holds(found)
    feeds = build("bert", BASE).feeds(2, 5)
    for a, b in zip(*(run_as_declared(m.SerializeToString(), feeds) for m in (found, expected)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_float32_model_has_no_twin_and_keeps_its_error() -> None:
    proto = onnx.load(build("bert", BASE).path)
    assert not holds(proto, HALVES)
    assert in_bfloat16(proto) != proto


def test_constants_in_every_place_are_widened() -> None:
    """Subgraphs, Constant and ConstantOfShape values, functions."""
    half = numpy_helper.from_array(np.ones(1, np.float16), "h")
    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=half)], "inner", [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT16, [1])],
    )  # fmt: skip
    nodes = [
        helper.make_node("If", ["p"], ["a"], then_branch=inner, else_branch=inner),
        helper.make_node("ConstantOfShape", ["s"], ["b"], value=half),
        helper.make_node("f", ["b"], ["b2"], domain="local"),
        helper.make_node("Add", ["a", "b2"], ["y"]),
    ]
    body = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT16)]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("p", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1])], [numpy_helper.from_array(np.array([1]), "s")],
    )  # fmt: skip
    functions = [helper.make_function("local", "f", ["x"], ["y"], body, opsets[:1])]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)
    found = widened(model)
    assert holds(model, HALVES) and not holds(found, HALVES)
    onnx.checker.check_model(found, full_check=True)
    assert run_once(found.SerializeToString(), {"p": np.array(True)})["y"] == 2


def test_the_source_is_left_as_it_is() -> None:
    path = build("bert", f"{BASE}+bf16").path
    before = path.read_bytes()
    model = load_model(path)
    recognise(model, run_once)
    assert path.read_bytes() == before
    assert any(v.dtype == ir.DataType.BFLOAT16 for v in model.graph.initializers.values())


def test_a_bfloat16_model_whose_types_contradict_each_other_is_refused_in_one_line() -> None:
    """Found by fuzzing: the twin ran, and shape inference failed on the model itself."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("w", TensorProto.BFLOAT16, [4, 3])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])

    def refuses(given: Any, feeds: Any) -> dict[str, Any]:
        if given.proto.graph.output[0].type.tensor_type.elem_type == TensorProto.BFLOAT16:
            raise RuntimeError("no kernels")
        return {"y": feeds["x"]}

    with pytest.raises(ModelError, match=r"the model.s types contradict each other: .*elem type"):
        widening(refuses)(Detached(model, None, {}), {"x": np.ones((1, 4), np.float32)})
