"""Multiply-accumulates against closed formulas, parameters against the checkpoint."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
from small_graphs import Sketch
from zoo import EXPORTERS, ZooModel, build

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.blocks.cost import macs, shares
from axformer_passes.io.files import load_model
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise


def bert_macs(model: ZooModel, batch: int, length: int) -> int:
    """Per layer: 4 projections, scores and context, up and down; then pooler and classifier on one token."""
    tokens, width = batch * length, model.width
    layer = tokens * (4 * width * width + 2 * length * width + 2 * width * model.neurons)
    return model.layers * layer + batch * (width * width + 3 * width)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 64), (3, 17)])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_bert_costs_what_the_formula_says(exporter: str, batch: int, length: int) -> None:
    model = build("bert", exporter)
    assert macs(load_model(model.path), run_once, batch, length) == bert_macs(model, batch, length)


def test_removed_parts_cost_nothing() -> None:
    model = build("bert", "torchscript-sdpa-17")
    source = load_model(model.path)
    before = macs(source, run_once, 1, 20)

    def saved(plan: Plan) -> int:
        return before - macs(apply_plan(source, plan, run_once), run_once, 1, 20)

    head = 20 * (4 * model.width * model.head_size + 2 * 20 * model.head_size)
    assert saved(Plan().without_heads(0, [1, 2])) == 2 * head
    assert saved(Plan().without_neurons(1, range(5))) == 20 * 5 * 2 * model.width
    assert saved(Plan().without_attention(2)) == model.heads * head
    assert saved(Plan().without_feed_forward(2)) == 20 * 2 * model.width * model.neurons


@pytest.mark.parametrize("exporter", ["optimum", "torchscript-eager-14", "dynamo-23"])
def test_shares_of_the_blocks_add_up_with_the_rest(exporter: str) -> None:
    if exporter not in EXPORTERS:
        pytest.skip("optimum-onnx is not installed beside this version of transformers")
    model = build("bert", exporter)
    source = load_model(model.path)
    parts = shares(source, recognise(source, run_once), run_once, 1, 32)
    assert [(p.layer, p.kind) for p in parts] == [(i, k) for i in range(3) for k in ("attention", "feed_forward")]
    width = model.width
    attention = 32 * (4 * width * width + 2 * 32 * width)
    feed = 32 * 2 * width * model.neurons
    assert [p.macs for p in parts] == [attention, feed] * 3
    assert math.isclose(sum(p.share for p in parts), 3 * (attention + feed) / bert_macs(model, 1, 32))
    assert parts[0].parameters == 4 * (width * width + width)
    assert parts[1].parameters == 2 * width * model.neurons + model.neurons + width


def test_a_fused_node_costs_scores_and_context() -> None:
    """3-D inputs, 4 query heads of 3 channels on 2 key and value heads of 3 and 5: 2 x 6 x 7 x 4 x (3 + 5)."""
    g = Sketch(23)
    y = g("Attention", "q", "k", "v", q_num_heads=4, kv_num_heads=2)
    proto = g.model({"q": [2, 6, 12], "k": [2, 7, 6], "v": [2, 7, 10]}, y, [2, 6, 20])
    assert macs(ir.from_proto(proto), run_once) == 2 * 6 * 7 * 4 * (3 + 5)


def test_convolution_and_transposed_product_are_counted() -> None:
    g = Sketch()
    image = g("Conv", "x", g.weight(np.ones((8, 3, 4, 4), np.float32)), strides=[4, 4])
    flat = g.reshape(image, 2, 8 * 4)
    y = g("Gemm", flat, g.weight(np.ones((5, 32), np.float32)), transB=1)
    proto = g.model({"x": [2, 3, 8, 8]}, y, [2, 5])
    assert macs(ir.from_proto(proto), run_once) == 2 * 8 * 2 * 2 * (3 * 4 * 4) + 2 * 32 * 5
