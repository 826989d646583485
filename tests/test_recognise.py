"""Recognition: every family by every exporter gives the configuration's own numbers, and small graphs that must be refused are."""

from __future__ import annotations

import json
import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as draw
from zoo import CASES, FAMILIES, ZooModel, build

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.anatomy import Anatomy, AttentionBlock, FeedForwardBlock
from axformer_passes.errors import PlanError
from axformer_passes.io.files import load_model
from axformer_passes.plan import Plan
from axformer_passes.probe.tracing import trace
from axformer_passes.recognise.examination import recognise

ACTIVATION = {"gpt2": "gelu_tanh", "gpt2-tokens": "gelu_tanh"}


def anatomy_of(model: ZooModel) -> Anatomy:
    return recognise(load_model(model.path), run_once)


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), CASES)
def test_anatomy_is_the_configuration(family: str, exporter: str) -> None:
    model = build(family, exporter)
    anatomy = anatomy_of(model)
    assert anatomy.refused == ()
    assert [layer.index for layer in anatomy.layers] == list(range(model.layers))
    assert (anatomy.width, anatomy.opset) == (model.width, onnx.load(model.path).opset_import[0].version)
    for layer in anatomy.layers:
        attention, feed = layer.attention, layer.feed_forward
        assert attention is not None and feed is not None
        assert (attention.heads, attention.kv_heads) == (model.heads, model.heads)
        assert attention.head_size == model.head_size
        assert attention.scale is not None
        assert math.isclose(attention.scale, model.head_size**-0.5, rel_tol=1e-5)
        assert feed.neurons == model.neurons
        assert feed.activation == ACTIVATION.get(family, "gelu")
        projections = (attention.query, attention.key, attention.value, attention.output)
        assert {(p.rows, p.columns) for p in projections} == {(model.width, model.width)}
        assert [(p.rows, p.columns) for p in (*feed.up, feed.down)] == [
            (model.width, model.neurons),
            (model.neurons, model.width),
        ]


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), CASES)
def test_every_block_can_be_taken_out_where_its_sum_is_residual_plus_branch(family: str, exporter: str) -> None:
    model = build(family, exporter)
    graph = load_model(model.path)
    values = trace(graph, run_once, model.feeds(2, 5))
    for layer in recognise(graph, run_once).layers:
        for block in (layer.attention, layer.feed_forward):
            assert isinstance(block, AttentionBlock | FeedForwardBlock)
            assert block.why is None
            total, residual, branch = (values[str(n)] for n in (block.sum, block.residual, block.branch))
            assert total.shape == residual.shape == branch.shape
            np.testing.assert_allclose(total, residual + branch, rtol=1e-6, atol=1e-6)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_biases_are_the_checkpoints_own(family: str) -> None:
    """The named initializers hold the torch parameters, whatever way round."""
    model = build(family, "dynamo-20")
    graph = load_model(model.path)
    parameters = [p.detach().numpy() for p in model.module.parameters()]
    for layer in recognise(graph, run_once).layers:
        assert layer.attention is not None and layer.feed_forward is not None
        for linear in (layer.attention.output, *layer.feed_forward.up, layer.feed_forward.down):
            for name in (linear.weight, linear.bias):
                tensor = graph.graph.initializers[str(name)].const_value
                assert tensor is not None
                found = tensor.numpy()
                same = (p for p in parameters for q in (p, p.T) if q.shape == found.shape and (q == found).all())
                assert next(same, None) is not None, name


def test_anatomy_survives_json() -> None:
    anatomy = anatomy_of(build("gpt2", "dynamo-20"))
    assert Anatomy.from_json(json.loads(json.dumps(anatomy.to_json()))) == anatomy


def test_equal_biases_that_an_exporter_merged_are_told_apart() -> None:
    model = build("bert", "torchscript-eager-17", zero_biases=True)
    anatomy = anatomy_of(model)
    assert (anatomy.heads, anatomy.neurons) == (model.layers * model.heads, model.layers * model.neurons)
    assert anatomy.refused == ()


def test_recognition_leaves_the_model_alone() -> None:
    graph = load_model(build("bert", "torchscript-sdpa-17").path)
    before = [(n.op_type, [v.name for v in n.inputs if v]) for n in graph.graph], sorted(graph.graph.initializers)
    recognise(graph, run_once)
    assert before == (
        [(n.op_type, [v.name for v in n.inputs if v]) for n in graph.graph],
        sorted(graph.graph.initializers),
    )


def test_score_scale_is_measured_and_none_where_a_bias_hides_it() -> None:
    w = draw.weights()

    def shifted(g: draw.Sketch, scores: str) -> str:
        return str(g("Add", scores, g.weight(np.float32([[[[3.0]], [[-2.0]], [[1.0]], [[0.5]]]]))))

    for biased, scale in ((None, draw.E**-0.5), (shifted, None)):
        proto = draw.layer(lambda g, w, x: draw.attend(g, w, draw.separate(g, w, x), biased), draw.plain, w)  # noqa: B023
        attention = recognise(ir.from_proto(proto), run_once).layers[0].attention
        assert attention is not None
        assert attention.scale is None if scale is None else math.isclose(attention.scale or 0, scale, rel_tol=1e-5)


def test_a_sum_that_broadcasts_is_no_place_to_take_a_block_out() -> None:
    """Without the block the sum would have the residual's shape [B,1,D]."""
    w, g = draw.weights(), draw.Sketch()
    z = draw.norm(g, g("Add", g("ReduceMean", "x", axes=[1]), draw.attend(g, w, draw.separate(g, w, "x"))))
    y = draw.norm(g, g("Add", z, draw.plain(g, w, z)))
    model = ir.from_proto(g.model({"x": ["b", "s", draw.D]}, y, ["b", "s", draw.D]))
    (layer,) = recognise(model, run_once).layers
    assert layer.attention is not None and layer.feed_forward is not None
    assert (layer.attention.heads, layer.attention.sum) == (draw.H, None)
    assert "expected equal ones" in str(layer.attention.why)
    assert layer.feed_forward.sum is not None
    with pytest.raises(PlanError, match=r"no removable attention block: .* expected equal ones"):
        Plan().without_attention(0).validate(recognise(model, run_once))
