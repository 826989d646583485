"""The oracle itself: what it zeroes equals zeroed weights, worked out by hand."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch_oracle import hard_softmax, masked_outputs, random_plan, torch_layers
from zoo import FAMILIES, TEXT_ENCODERS, ZooModel, build, onnx_outputs
from zoo_export import EXPORTERS

from axformer_passes.plan import Hard, Plan

SHAPES = ((1, 1), (3, 9))


def tiny(family: str) -> ZooModel:
    return build(family, "dynamo-23")


def edited(model: ZooModel, edit: Any) -> ZooModel:
    """The same model with `edit(layers)` applied to a copy of its torch module."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        edit(torch_layers(module))
    return dataclasses.replace(model, module=module)


def rows(linear: Any) -> Any:
    """The weight as a view [inputs, outputs]: Linear stores it the other way, GPT-2's Conv1D like this."""
    return linear.weight.T if isinstance(linear, torch.nn.Linear) else linear.weight


def assert_same(model: ZooModel, plan: Plan, reference: ZooModel) -> None:
    for batch, length in SHAPES:
        feeds = model.feeds(batch, length)
        np.testing.assert_allclose(masked_outputs(model, feeds, plan), reference.logits(feeds), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_empty_plan_is_the_plain_model(family: str) -> None:
    model = tiny(family)
    for batch, length in SHAPES:
        feeds = model.feeds(batch, length)
        np.testing.assert_array_equal(masked_outputs(model, feeds, Plan()), model.logits(feeds))


@pytest.mark.parametrize("family", FAMILIES)
def test_removed_head_equals_zeroed_rows_of_the_output_weight(family: str) -> None:
    model = tiny(family)
    d = model.head_size

    def edit(layers: Any) -> None:
        rows(layers[1].attention_out)[2 * d : 3 * d] = 0
        rows(layers[2].attention_out)[: 2 * d] = 0

    assert_same(model, Plan().without_heads(1, [2]).without_heads(2, [0, 1]), edited(model, edit))


@pytest.mark.parametrize("family", FAMILIES)
def test_removed_neuron_equals_zeroed_row_of_the_down_weight(family: str) -> None:
    model = tiny(family)

    def edit(layers: Any) -> None:
        rows(layers[0].down)[[3, 17]] = 0

    assert_same(model, Plan().without_neurons(0, [3, 17]), edited(model, edit))


@pytest.mark.parametrize("family", FAMILIES)
def test_removed_block_equals_zeroed_projection_with_its_bias(family: str) -> None:
    model = tiny(family)

    def edit(layers: Any) -> None:
        for linear in (layers[0].attention_out, layers[2].down):
            linear.weight[:] = 0
            linear.bias[:] = 0

    assert_same(model, Plan().without_attention(0).without_feed_forward(2), edited(model, edit))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_heads_removed_keeps_the_output_bias(family: str) -> None:
    model = tiny(family)

    def edit(layers: Any) -> None:
        layers[1].attention_out.weight[:] = 0

    plan = Plan().without_heads(1, range(model.heads))
    assert_same(model, plan, edited(model, edit))
    feeds = model.feeds(2, 9)
    difference = masked_outputs(model, feeds, plan) - masked_outputs(model, feeds, Plan().without_attention(1))
    assert np.abs(difference).max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["truncated", "renormalised"])
def test_hard_attention_as_wide_as_the_sequence_changes_nothing(family: str, mode: Any) -> None:
    model = tiny(family)
    feeds = model.feeds(3, 9)
    plan = Plan().with_hard_attention(0, 9 if family != "vit" else 17, mode).with_hard_attention(2, 30, mode)
    np.testing.assert_allclose(masked_outputs(model, feeds, plan), model.logits(feeds), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_renormalised_with_k_1_reads_the_value_of_the_best_token_alone(family: str) -> None:
    """Independent of hard_softmax: queries x 1e4 make the plain softmax one-hot."""
    model = tiny(family)

    def edit(layers: Any) -> None:
        _scale_queries(layers[1].whole, 1e4, model.width)

    assert_same(model, Plan().with_hard_attention(1, 1, "renormalised"), edited(model, edit))


def _scale_queries(layer: Any, factor: float, width: int) -> None:
    for name, linear in layer.named_modules():
        last = name.rsplit(".", 1)[-1]
        if last in ("query", "q_lin", "q_proj"):
            linear.weight *= factor
            linear.bias *= factor
        elif last == "c_attn":
            linear.weight[:, :width] *= factor
            linear.bias[:width] *= factor


@pytest.mark.parametrize("family", TEXT_ENCODERS)
def test_hard_attention_never_keeps_padding_before_a_real_token(family: str) -> None:
    model = tiny(family)
    short = model.feeds(2, 6, padded=False)
    pad = model.module.config.pad_token_id
    long = {k: np.pad(v, ((0, 0), (0, 5)), constant_values=pad * (k == "input_ids")) for k, v in short.items()}
    for plan in (Plan().with_hard_attention(i, 4, m) for i in range(3) for m in ("truncated", "renormalised")):
        alone, with_padding = masked_outputs(model, short, plan), masked_outputs(model, long, plan)
        np.testing.assert_allclose(with_padding, alone, rtol=1e-5, atol=1e-5)


def test_hard_softmax_by_hand() -> None:
    scores = torch.log(torch.tensor([[0.1, 0.3, 0.3, 0.3], [0.4, 0.1, 0.2, 0.3]]))
    kept = hard_softmax(scores, Hard(2, "truncated"))
    torch.testing.assert_close(kept, torch.tensor([[0, 0.3, 0.3, 0], [0.4, 0, 0, 0.3]]))
    kept = hard_softmax(scores, Hard(2, "renormalised"))
    torch.testing.assert_close(kept, torch.tensor([[0, 0.5, 0.5, 0], [4 / 7, 0, 0, 3 / 7]]))
    for rule in (Hard(9, "truncated"), Hard(4, "renormalised")):
        torch.testing.assert_close(hard_softmax(scores, rule), scores.softmax(-1))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_matters_far_beyond_the_tolerance(family: str) -> None:
    """Otherwise a pass that removes the wrong head would go unnoticed."""
    model = tiny(family)
    feeds = model.feeds(4, 12)
    plain = model.logits(feeds)
    plans = [Plan().without_heads(i, [h]) for i in range(3) for h in range(model.heads)]
    plans += [Plan().without_neurons(i, [n]) for i in range(3) for n in range(model.neurons)]
    plans += [Plan().with_hard_attention(i, 3, m) for i in range(3) for m in ("truncated", "renormalised")]
    effects = [np.abs(masked_outputs(model, feeds, plan) - plain).max() for plan in plans]
    assert min(effects) > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_and_float64_agree(family: str) -> None:
    model = tiny(family)
    rng = np.random.default_rng(0)
    for seed in range(5):
        plan, feeds = random_plan(model, rng), model.feeds(3, 9, seed=seed)
        single, double = masked_outputs(model, feeds, plan), masked_outputs(model, feeds, plan, double=True)
        assert (single.dtype.name, double.dtype.name) == ("float32", "float64")
        np.testing.assert_allclose(single, double, rtol=1e-5, atol=1e-5)


def test_hooks_leave_the_module_as_it_was() -> None:
    model = tiny("bert")
    feeds = model.feeds(2, 5)
    before = model.logits(feeds)
    masked_outputs(model, feeds, random_plan(model, np.random.default_rng(3)))
    np.testing.assert_array_equal(model.logits(feeds), before)


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_oracle_is_the_same_for_every_exporter(exporter: str) -> None:
    model = build("bert", exporter)
    feeds = model.feeds(2, 9)
    plan = Plan().without_heads(0, [1])
    np.testing.assert_array_equal(masked_outputs(model, feeds, plan), masked_outputs(tiny("bert"), feeds, plan))
    assert np.abs(onnx_outputs(model.path, feeds)[0] - masked_outputs(model, feeds, plan)).max() > 1e-3


def test_plan_for_more_layers_is_refused() -> None:
    model = tiny("bert")
    with pytest.raises(AssertionError, match="layers"):
        masked_outputs(model, model.feeds(1, 2), Plan().without_attention(3))
