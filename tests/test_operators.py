"""The registry of operators: what is stated of an operator in one place takes it through every pass."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as draw
from small_graphs import D, F, Sketch, Weights
from surgery import assert_close
from test_readout_rules import narrow
from zoo import onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.blocks.cost import macs_by_node
from axformer_passes.cut.pruning import Prune
from axformer_passes.io.files import serialized
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import examine, recognise
from axformer_passes.registry.record import OPERATORS, Operator, channels, cost, record_of, tokens
from axformer_passes.registry.token_rows import Probes, TokenRows
from axformer_passes.registry.walk import Walk

SLOPES = np.linspace(-2, 2, F, dtype=np.float32)
GONE = [0, 4, 5]
Array = draw.Array


def bent(u: Array) -> Array:
    """What the neurons do here, said by NumPy."""
    return np.arctan(u) * np.arctan(SLOPES.astype(np.float64))


def drawn(read_out: bool = False) -> onnx.ModelProto:
    """A layer with neurons atan(u) * atan(slope); `read_out`: its first token alone is read."""

    def feed_forward(g: Sketch, w: Weights, z: str) -> str:
        up = g("Atan", draw.linear(g, z, w["up"], w["bu"]))
        return draw.linear(g, g("Mul", up, g("Atan", g.weight(SLOPES, "slopes"))), w["down"], w["bd"])

    w, g = draw.weights(), Sketch()
    z = draw.norm(g, g("Add", "x", draw.attend(g, w, draw.separate(g, w, "x"))))
    y = draw.norm(g, g("Add", z, feed_forward(g, w, z)))
    if read_out:
        y = g("Gather", y, g.weight(np.array(0)), axis=1)
    return g.model({"x": ["b", "s", D]}, y, ["b", D] if read_out else ["b", "s", D])


def state_atan() -> None:
    """All that is to be said of Atan, in one place."""

    @channels("Atan", elementwise=True)
    def same_channels(walk: Walk, node: ir.Node) -> None:
        walk.put(node.outputs[0], walk.labels(node.inputs[0]))

    @tokens("Atan")
    def same_tokens(probes: Probes, node: ir.Node, rows: TokenRows) -> dict[int, TokenRows]:
        return {0: rows}

    @cost("Atan")
    def one_a_number(node: ir.Node, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> int:
        return int(np.prod(output))


@pytest.fixture
def atan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Atan is known during one test."""
    assert "Atan" not in OPERATORS, "the tests need an operator that the project does not know"
    monkeypatch.setitem(OPERATORS, "Atan", Operator())
    state_atan()


def test_an_operator_that_nothing_is_stated_of_is_left_alone() -> None:
    anatomy = recognise(ir.from_proto(drawn()), run_once)
    assert [layer.feed_forward for layer in anatomy.layers] == [None]
    assert any("no rule for operator Atan" in refusal.reason for refusal in anatomy.refused)
    proto = drawn(read_out=True)
    _, found = narrow(proto)
    assert not {n.output[0] for n in proto.graph.node if n.op_type == "Atan"} & set(found.nodes)


@pytest.mark.usefixtures("atan")
def test_an_operator_stated_in_one_place_is_recognised_and_cut() -> None:
    model = ir.from_proto(drawn())
    (layer,) = recognise(model, run_once).layers
    assert layer.feed_forward is not None and layer.feed_forward.neurons == F
    result = apply_plan(model, Plan().without_neurons(0, GONE), run_once)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    for batch, length in ((1, 1), (2, 5)):
        x = np.random.default_rng(length).normal(size=(batch, length, D)).astype(np.float32)
        expected = draw.weights().answer(x, neurons=GONE, act=bent)
        assert_close(onnx_outputs(serialized(result), {"x": x})[0], expected)


@pytest.mark.usefixtures("atan")
def test_constants_are_narrowed_through_an_operator_stated_elementwise() -> None:
    """atan(slopes) goes with the neurons: the slopes themselves lose entries, no Gather is put behind them."""
    examined = examine(ir.from_proto(drawn()), run_once)
    model = examined.labelling.model
    before = collections.Counter(node.op_type for node in model.graph)
    Prune(examined, Plan().without_neurons(0, GONE))(model)
    (slopes,) = (v for v in model.graph.initializers.values() if str(v.name).startswith("slopes"))
    assert slopes.const_value is not None
    np.testing.assert_array_equal(slopes.const_value.numpy(), np.delete(SLOPES, GONE))
    assert collections.Counter(node.op_type for node in model.graph) == before


@pytest.mark.usefixtures("atan")
def test_the_read_out_is_narrowed_through_an_operator_stated_in_one_place() -> None:
    before = drawn(read_out=True)
    after, found = narrow(before)
    (node,) = (n for n in before.graph.node if n.op_type == "Atan" and n.input[0] != "slopes")
    assert found.why == "" and node.output[0] in found.nodes
    x = np.random.default_rng(3).normal(size=(3, 6, D)).astype(np.float32)
    assert_close(
        onnx_outputs(after.SerializeToString(), {"x": x})[0], onnx_outputs(before.SerializeToString(), {"x": x})[0]
    )


@pytest.mark.usefixtures("atan")
def test_the_cost_that_is_stated_is_counted() -> None:
    found = macs_by_node(ir.from_proto(drawn()), run_once, batch=2, length=7)
    (node,) = (n for n in drawn().graph.node if n.op_type == "Atan" and n.input[0] != "slopes")
    assert found[node.output[0]] == 2 * 7 * F


def test_a_concern_is_stated_once_an_operator() -> None:
    with pytest.raises(AssertionError, match="Softmax: its channels are stated twice"):
        channels("Softmax")(lambda walk, node: None)


def test_nothing_is_known_of_an_operator_of_another_domain() -> None:
    assert record_of(ir.node("Softmax", [ir.Value(name="x")], domain="elsewhere")) == Operator()


def test_the_page_on_adding_an_operator_lists_every_concern() -> None:
    page = (Path(__file__).parents[1] / "docs" / "adding-an-operator.md").read_text(encoding="utf-8")
    concerns = [field.name for field in dataclasses.fields(Operator) if field.default is None]
    listed = [line.split("(")[0].removeprefix("| `@") for line in page.splitlines() if line.startswith("| `@")]
    assert len(concerns) >= 5 and sorted(listed) == sorted(concerns)
