"""GroupNormalization and InstanceNormalization: the example of docs/adding-an-operator.md, and that the page shows real code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
import small_graphs as draw
from small_graphs import GAIN, SHIFT, D, E, H, Sketch, group_normed, separate
from surgery import assert_close
from zoo import onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.io.files import serialized
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "adding-an-operator.md"


def normed(context: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """float64[B,H,S,E], each head of each token by itself."""
    centred = context - context.mean(-1, keepdims=True)
    unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return unit * GAIN.reshape(H, 1, E) + SHIFT.reshape(H, 1, E)


def drawn(opset: int = 21) -> onnx.ModelProto:
    w = draw.weights()
    return draw.layer(lambda g, w, x: group_normed(g, w, separate(g, w, x)), draw.plain, w, opset)


@pytest.mark.parametrize("heads", [[0], [1, 3], [0, 1, 2], range(H)])
def test_heads_behind_a_group_norm_go_with_their_groups(heads: list[int]) -> None:
    model = ir.from_proto(drawn())
    result = apply_plan(model, Plan().without_heads(0, heads), run_once)
    onnx.checker.check_model(ir.to_proto(result), full_check=True)
    for batch, length in ((1, 1), (2, 5), (3, 7)):
        x = np.random.default_rng(length).normal(size=(batch, length, D)).astype(np.float32)
        expected = draw.weights().answer(x, heads=heads, context=normed)
        assert_close(onnx_outputs(serialized(result), {"x": x})[0], expected)
    found = [node for node in result.graph if node.op_type == "GroupNormalization"]
    assert [node.attributes.get_int("num_groups") for node in found] == ([H - len(heads)] if len(heads) < H else [])


def test_neurons_of_a_group_are_no_neurons_of_their_own() -> None:
    """A norm over five neurons ties them: none of them can go alone, and the attention beside it still can."""

    def grouped(g: Sketch, w: draw.Weights, z: str) -> str:
        up = g.transpose(draw.linear(g, z, w["up"], w["bu"]), 0, 2, 1)
        ones = g.weight(np.ones(draw.F, np.float32))
        return draw.linear(
            g, g.transpose(g("GroupNormalization", up, ones, ones, num_groups=2), 0, 2, 1), w["down"], w["bd"]
        )

    w = draw.weights()
    proto = draw.layer(lambda g, w, x: draw.attend(g, w, separate(g, w, x)), grouped, w, 21)
    (layer,) = recognise(ir.from_proto(proto), run_once).layers
    assert layer.attention is not None and layer.feed_forward is None


def test_instance_norm_leaves_every_neuron_its_own() -> None:
    """Over the tokens, each neuron by itself; gain and shift are of the neurons."""
    gain, shift = np.linspace(0.5, 2, draw.F, dtype=np.float32), np.linspace(-1, 1, draw.F, dtype=np.float32)

    def act(up: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        centred = up - up.mean(1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * gain + shift

    def across(g: Sketch, w: draw.Weights, z: str) -> str:
        up = g.transpose(draw.linear(g, z, w["up"], w["bu"]), 0, 2, 1)
        return draw.linear(
            g, g.transpose(g("InstanceNormalization", up, g.weight(gain), g.weight(shift)), 0, 2, 1), w["down"], w["bd"]
        )

    w = draw.weights()
    proto = draw.layer(lambda g, w, x: draw.attend(g, w, separate(g, w, x)), across, w)
    result = apply_plan(ir.from_proto(proto), Plan().without_neurons(0, [0, 4, 5]), run_once)
    x = np.random.default_rng(0).normal(size=(2, 5, D)).astype(np.float32)
    found = onnx_outputs(serialized(result), {"x": x})[0]
    assert_close(found, draw.weights().answer(x, neurons=[0, 4, 5], act=act))


def test_group_norm_of_old_operator_sets_is_refused_with_the_reason() -> None:
    """There gain and shift have an entry a group."""
    proto = drawn(opset=18)
    (node,) = (node for node in proto.graph.node if node.op_type == "GroupNormalization")
    for tensor in proto.graph.initializer:
        if tensor.name in node.input:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)[:H], tensor.name))
    anatomy = recognise(ir.from_proto(proto), run_once)
    assert any("before operator set 21" in refusal.reason for refusal in anatomy.refused), anatomy.refused
    assert [layer.attention for layer in anatomy.layers if layer.attention] == []


def test_the_page_on_adding_an_operator_shows_the_code_that_is_there() -> None:
    blocks = re.findall(
        r"^`([\w/.]+)`:\n\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) >= 5
    for name, block in blocks:
        source = (ROOT / name).read_text(encoding="utf-8")
        for part in block.rstrip().split("\n...\n"):
            assert part in source, f"{name}: {part}"
