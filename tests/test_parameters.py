"""What was counted is what the file has less of: plain, gated, grouped, cross-attending, several feed-forwards a layer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from search_fake import anatomy, linear

from axformer_onnx.runtime.sessions import run_once
from axformer_onnx.search.elements import attention_half, feed_forward_half, halves
from axformer_passes.anatomy import Anatomy, Layer
from axformer_passes.apply import apply_plan
from axformer_passes.blocks.parameters import (
    block_parameters,
    head_parameters,
    neuron_parameters,
    parameters_by_layer,
    removed_parameters,
)
from axformer_passes.io.file_size import parameters_and_size
from axformer_passes.io.files import load_model, save_model
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise

zoo = pytest.importorskip("zoo", reason="needs the [export] extra (torch, transformers)")


@pytest.mark.parametrize("family", ["bert", "albert", "mobilebert", "modernbert", "qwen2", "bart", "vit"])
def test_the_last_part_of_every_half_takes_from_the_file_what_was_counted(family: str, tmp_path: Path) -> None:
    model = zoo.build(family, "torchscript-eager-17")
    source = load_model(model.path)
    found = recognise(source, run_once)
    plan = Plan()
    for layer in found.layers:
        for half in halves(found, layer.index):
            plan = half.parts[-1].applied_to(plan) if half.parts else plan
    save_model(apply_plan(source, plan, run_once), tmp_path / "cut.onnx")
    before, after = (parameters_and_size(path)[0] for path in (model.path, tmp_path / "cut.onnx"))
    assert before - after == removed_parameters(found, plan) > 0
    assert 0 < sum(parameters_by_layer(found)) < before


def test_a_gate_counts_like_the_up_projection_beside_it_whether_apart_or_fused() -> None:
    block = anatomy().layers[0].feed_forward
    assert block is not None and neuron_parameters(block) == 17 + 16
    apart = dataclasses.replace(block, up=(linear("up", 16, 32), linear("gate", 16, 32)))
    fused = dataclasses.replace(block, up=(linear("both", 16, 64),))
    for gated in (apart, fused):
        assert neuron_parameters(gated) == 2 * 17 + 16
        assert block_parameters(gated) == 32 * neuron_parameters(gated) + 16


def test_a_group_of_query_heads_counts_all_of_its_queries() -> None:
    block = anatomy().layers[0].attention
    assert block is not None
    narrow = {name: linear(name, 16, 8) for name in ("key", "value")}
    grouped = dataclasses.replace(block, heads=2, kv_heads=2, **narrow)
    assert head_parameters(grouped) == 17 * 8 + 2 * 17 * 4 + 8 * 16


def test_a_record_without_attention_has_as_many_neuron_groups_as_the_attention_before_it_has_query_heads() -> None:
    few, many = (anatomy(1, heads=n, head_size=4, neurons=32).layers[0] for n in (2, 8))
    alone = Layer(0, None, few.feed_forward)
    layers = [alone, few, alone, Layer(0, many.attention, None), alone, alone]
    model = Anatomy(tuple(dataclasses.replace(x, index=i) for i, x in enumerate(layers)), 16, 17, "", ())
    counts = [len(feed_forward_half(model, i).parts) for i in range(6)]
    assert counts == [2, 2, 2, 0, 8, 8]
    assert [len(attention_half(model, i).parts) for i in range(6)] == [0, 2, 0, 8, 0, 0]
    bare = dataclasses.replace(model, layers=(alone,))
    assert len(feed_forward_half(bare, 0).parts) == 12
