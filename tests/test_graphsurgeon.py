"""The edge to onnx-graphsurgeon: there and back, a pass inside a script, and what is said where it is not installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from surgery import assert_close
from torch_oracle import masked_outputs
from zoo import build, onnx_outputs

from axformer_onnx.errors import ModelError, PlanError, RuntimeFailure
from axformer_onnx.graphsurgeon import apply_to_graphsurgeon, from_graphsurgeon, to_graphsurgeon
from axformer_passes.io.files import load_model, save_model, serialized
from axformer_passes.plan import Plan

CASES = [("bert", "torchscript-sdpa-17"), ("distilbert", "dynamo-23"), ("gpt2", "dynamo-20")]


@pytest.fixture
def gs() -> Any:
    return pytest.importorskip("onnx_graphsurgeon", reason="the [graphsurgeon] extra is not installed")


@pytest.mark.parametrize(("family", "exporter"), CASES)
def test_there_and_back_is_the_same_model(family: str, exporter: str, gs: Any) -> None:
    model = build(family, exporter)
    source = onnx.load(model.path)
    graph = to_graphsurgeon(model.path)
    assert isinstance(graph, gs.Graph)
    back = ir.to_proto(from_graphsurgeon(graph))
    onnx.checker.check_model(back, full_check=True)
    feeds = model.feeds(2, 7)
    outputs = [onnx_outputs(p.SerializeToString(), feeds)[0] for p in (source, back)]
    np.testing.assert_array_equal(*outputs)
    assert back.ir_version == source.ir_version
    assert (back.producer_name, back.producer_version) == (source.producer_name, source.producer_version)
    assert {o.domain: o.version for o in back.opset_import}[""] == source.opset_import[0].version
    faces = [[(v.name, v.type.tensor_type) for v in (*p.graph.input, *p.graph.output)] for p in (source, back)]
    assert faces[0] == faces[1]


@pytest.mark.parametrize(("family", "exporter"), CASES)
def test_a_plan_is_carried_out_inside_a_graphsurgeon_script(
    family: str, exporter: str, gs: Any, tmp_path: Path
) -> None:
    model = build(family, exporter)
    plan = Plan().without_heads(0, [1, 2]).without_neurons(1, range(9)).without_attention(1).with_hard_attention(2, 3)
    graph = gs.import_onnx(onnx.load(model.path))
    names = [node.name for node in graph.nodes]
    graph = apply_to_graphsurgeon(graph, plan)
    assert [node.name for node in gs.import_onnx(onnx.load(model.path)).nodes] == names
    graph.outputs[0].name = "renamed_by_the_script"
    onnx.save(gs.export_onnx(graph.cleanup().toposort()), tmp_path / "out.onnx")
    feeds = model.feeds(2, 7)
    assert_close(onnx_outputs(tmp_path / "out.onnx", feeds)[0], masked_outputs(model, feeds, plan))


def test_the_graph_that_is_handed_in_is_left_alone(gs: Any) -> None:
    graph = to_graphsurgeon(build("bert", "dynamo-20").path)
    before = gs.export_onnx(graph).SerializeToString(deterministic=True)
    apply_to_graphsurgeon(graph, Plan().without_heads(0, [1]))
    assert gs.export_onnx(graph).SerializeToString(deterministic=True) == before


def test_nodes_in_any_order_and_external_data_are_taken(gs: Any, tmp_path: Path) -> None:
    model = build("bert", "dynamo-20")
    save_model(load_model(model.path), tmp_path / "m.onnx", single_file_limit=100)
    graph = to_graphsurgeon(tmp_path / "m.onnx")
    graph.nodes.reverse()
    feeds = model.feeds(2, 7)
    found = onnx_outputs(serialized(from_graphsurgeon(graph)), feeds)[0]
    np.testing.assert_array_equal(found, onnx_outputs(model.path, feeds)[0])


def test_a_graph_drawn_by_hand_gets_the_oldest_ir_version_that_will_do(gs: Any) -> None:
    x, y = (gs.Variable(n, np.float32, [2]) for n in "xy")
    graph = gs.Graph([gs.Node("Relu", inputs=[x], outputs=[y])], [x], [y], opset=17)
    assert from_graphsurgeon(graph).ir_version == 8


def test_a_graph_that_cannot_be_exported_is_one_clear_error(gs: Any) -> None:
    x, y = gs.Variable("x", np.float32, [2]), gs.Variable("y")
    graph = gs.Graph([gs.Node("Relu", inputs=[x], outputs=[y])], [x], [y], name="mine")
    with pytest.raises(ModelError, match="graph 'mine': onnx-graphsurgeon cannot export it"):
        from_graphsurgeon(graph)


def test_a_plan_that_does_not_fit_is_the_usual_error(gs: Any) -> None:
    with pytest.raises(PlanError, match="id 9 does not exist"):
        apply_to_graphsurgeon(to_graphsurgeon(build("bert", "dynamo-20").path), Plan().without_heads(0, [9]))


def test_without_the_extra_the_install_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_graphsurgeon", None)
    for call in (to_graphsurgeon, from_graphsurgeon):
        with pytest.raises(RuntimeFailure, match=r"pip install 'axformer-onnx\[graphsurgeon\]'"):
            call(load_model(build("bert", "dynamo-20").path))
