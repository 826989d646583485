"""The oracle itself: what it zeroes equals zeroed weights, worked out by hand."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_oracle import hard_softmax, masked_outputs, random_plan
from zoo import FAMILY, TEXT_ENCODERS, Record, Sizes, ZooModel, build, onnx_outputs, torch_module, unwrapped
from zoo_export import EXPORTERS

from axformer_passes.plan import Hard, Plan

SHAPES = ((1, 1), (3, 9))


# One module that all layers share, or weights of three axes: zeroed weights are not the same as zeroed activations there.
PLAIN = [name for name in FAMILY if name not in ("albert", "xlnet")]
SEVERAL_HEADS = [name for name in PLAIN if name not in ("falcon", "olmo2")]  # there all go at once


def tiny(family: str) -> ZooModel:
    """The torch module alone, without an export."""
    sizes = Sizes(**FAMILY[family].sizes)
    return ZooModel(family, "none", 0, sizes, torch_module(family, sizes, 0), Path())


def attentions(model: ZooModel) -> list[int]:
    return [i for i, record in enumerate(model.records) if record.heads]


def feed_forwards(model: ZooModel) -> list[int]:
    return [i for i, record in enumerate(model.records) if record.neurons]


def edited(model: ZooModel, edit: Callable[[Any], None]) -> ZooModel:
    """The same model with `edit` applied to the modules by name, in a copy of its torch module."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        edit(unwrapped(module).get_submodule)
    return dataclasses.replace(model, module=module)


def rows(linear: Any) -> Any:
    """The weight as a view [inputs, outputs]: Linear stores it the other way, GPT-2's Conv1D like this."""
    return linear.weight.T if isinstance(linear, torch.nn.Linear) else linear.weight


def silence(linear: Any) -> None:
    """Weight and bias become zero."""
    for value in linear.parameters():
        value[:] = 0


def assert_same(model: ZooModel, plan: Plan, reference: ZooModel) -> None:
    for batch, length in SHAPES:
        feeds = model.feeds(batch, length)
        np.testing.assert_allclose(masked_outputs(model, feeds, plan), reference.logits(feeds), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILY)
def test_empty_plan_is_the_plain_model(family: str) -> None:
    model = tiny(family)
    for batch, length in SHAPES:
        feeds = model.feeds(batch, length)
        np.testing.assert_array_equal(masked_outputs(model, feeds, Plan()), model.logits(feeds))


@pytest.mark.parametrize("family", SEVERAL_HEADS)
def test_removed_head_equals_zeroed_rows_of_the_output_weight(family: str) -> None:
    model = tiny(family)
    first, *_, last = attentions(model)
    d = model.head_size

    def edit(module: Any) -> None:
        rows(module(model.records[first].output))[d : 2 * d] = 0
        rows(module(model.records[last].output))[: 2 * d] = 0

    assert_same(model, Plan().without_heads(first, [1]).without_heads(last, [0, 1]), edited(model, edit))


@pytest.mark.parametrize("family", PLAIN)
def test_removed_neuron_equals_zeroed_row_of_the_down_weight(family: str) -> None:
    model = tiny(family)
    for layer in feed_forwards(model):

        def edit(module: Any, record: Record = model.records[layer]) -> None:
            rows(module(record.down))[[3, 17]] = 0

        assert_same(model, Plan().without_neurons(layer, [3, 17]), edited(model, edit))


@pytest.mark.parametrize("family", PLAIN)
def test_removed_block_equals_zeroed_projection_with_its_bias(family: str) -> None:
    model = tiny(family)
    attention, feed_forward = attentions(model)[0], feed_forwards(model)[-1]

    def edit(module: Any) -> None:  # of a norm behind the projection, the norm
        silence(module(model.records[attention].behind[0] or model.records[attention].output))
        silence(module(model.records[feed_forward].behind[1] or model.records[feed_forward].down))

    assert_same(model, Plan().without_attention(attention).without_feed_forward(feed_forward), edited(model, edit))


@pytest.mark.parametrize("family", PLAIN)
def test_all_heads_removed_keeps_the_output_bias(family: str) -> None:
    model = tiny(family)
    layer = attentions(model)[1]
    record = model.records[layer]
    assert record.heads

    def edit(module: Any) -> None:
        module(record.output).weight[:] = 0

    plan = Plan().without_heads(layer, range(record.heads))
    assert_same(model, plan, edited(model, edit))
    feeds = model.feeds(2, 9)
    difference = masked_outputs(model, feeds, plan) - masked_outputs(model, feeds, Plan().without_attention(layer))
    has_bias = unwrapped(model.module).get_submodule(record.output).bias is not None
    assert (np.abs(difference).max() > 1e-3) == has_bias


def test_shared_layers_have_plans_of_their_own() -> None:
    """ALBERT with a copy of its one layer for each call: every copy edited by itself."""
    model = tiny("albert")
    plan = Plan().without_heads(0, [1]).without_neurons(1, [5]).without_attention(2).without_feed_forward(2)

    def edit(module: Any) -> None:
        encoder = module("albert.encoder")
        groups = [copy.deepcopy(encoder.albert_layer_groups[0]) for _ in range(3)]
        layers = [group.albert_layers[0] for group in groups]
        rows(layers[0].attention.dense)[8:16] = 0
        rows(layers[1].ffn_output)[5] = 0
        silence(layers[2].attention.dense)
        silence(layers[2].ffn_output)
        encoder.albert_layer_groups = torch.nn.ModuleList(groups)
        encoder.config.num_hidden_groups = 3

    assert_same(model, plan, edited(model, edit))


def test_xlnet_heads_equal_zeroed_slices_of_its_three_axis_weight() -> None:
    model = tiny("xlnet")

    def edit(module: Any) -> None:
        module("transformer.layer.0.rel_attn").o[:, 2] = 0
        module("transformer.layer.1.rel_attn").o[:] = 0
        rows(module("transformer.layer.2.ff.layer_2"))[7] = 0
        silence(module("transformer.layer.0.ff.layer_2"))

    plan = Plan().without_heads(0, [2]).without_attention(1).without_neurons(2, [7]).without_feed_forward(0)
    assert_same(model, plan, edited(model, edit))
    assert_same(
        model, Plan().without_heads(1, range(4)), edited(model, lambda m: m("transformer.layer.1.rel_attn").o.zero_())
    )


@pytest.mark.parametrize("family", FAMILY)
@pytest.mark.parametrize("mode", ["truncated", "renormalised"])
def test_hard_attention_as_wide_as_the_sequence_changes_nothing(family: str, mode: Any) -> None:
    model = tiny(family)
    feeds = model.feeds(3, 9)
    plan = Plan()
    for layer in attentions(model):
        plan = plan.with_hard_attention(layer, 9 if layer == 0 and "input_ids" in feeds else 30, mode)
    np.testing.assert_allclose(masked_outputs(model, feeds, plan), model.logits(feeds), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", [*TEXT_ENCODERS, "vit", "gpt2", "llama", "bart", "whisper"])
def test_renormalised_with_k_1_reads_the_value_of_the_best_token_alone(family: str) -> None:
    """Independent of hard_softmax: queries x 1e6 make the plain softmax one-hot."""
    model = tiny(family)
    for layer in attentions(model)[1:]:

        def edit(module: Any, record: Record = model.records[layer]) -> None:
            _scale_queries(module(record.attention), 1e6, model.width)

        assert_same(model, Plan().with_hard_attention(layer, 1, "renormalised"), edited(model, edit))


def _scale_queries(attention: Any, factor: float, width: int) -> None:
    for name, linear in attention.named_modules():
        last = name.rsplit(".", 1)[-1]
        if last in ("query", "q_lin", "q_proj", "q"):
            for value in linear.parameters():
                value *= factor
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


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", FAMILY)
def test_every_part_matters_far_beyond_the_tolerance(family: str) -> None:
    """Otherwise a pass that removes the wrong head would go unnoticed."""
    model = tiny(family)
    feeds = model.feeds(
        128 if family == "t5-classifier" else 32, 8
    )  # many rows: a ReLU is often shut, above all for one token
    plain = model.logits(feeds)
    plans = [Plan().without_heads(i, [h]) for i in attentions(model) for h in range(model.records[i].heads)]
    plans += [Plan().without_neurons(i, [n]) for i in feed_forwards(model) for n in range(model.records[i].neurons)]
    plans += [Plan().with_hard_attention(i, 3, m) for i in attentions(model) for m in ("truncated", "renormalised")]
    effects = [np.abs(masked_outputs(model, feeds, plan) - plain).max() for plan in plans]
    assert min(effects) > 1e-4


@pytest.mark.parametrize("family", FAMILY)
def test_float32_and_float64_agree(family: str) -> None:
    model = tiny(family)
    rng = np.random.default_rng(0)
    for seed in range(5):
        plan, feeds = random_plan(model, rng), model.feeds(3, 9, seed=seed)
        single, double = masked_outputs(model, feeds, plan), masked_outputs(model, feeds, plan, double=True)
        assert (single.dtype.name, double.dtype.name) == ("float32", "float64")
        np.testing.assert_allclose(single, double, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "albert", "xlnet", "bart"])
def test_hooks_leave_the_module_as_it_was(family: str) -> None:
    model = tiny(family)
    feeds = model.feeds(2, 5)
    before = model.logits(feeds)
    for seed in range(3):
        masked_outputs(model, feeds, random_plan(model, np.random.default_rng(seed)))
    np.testing.assert_array_equal(model.logits(feeds), before)
    assert torch.get_default_dtype() == torch.float32
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.module.modules())
    assert not any("post_attention" in vars(m) for m in model.module.modules())


def test_random_plan_names_only_what_a_layer_has() -> None:
    for family in ("mobilebert", "bart", "llama"):
        model = tiny(family)
        for seed in range(10):
            plan = random_plan(model, np.random.default_rng(seed))
            assert {*plan.heads, *plan.attention_blocks, *plan.hard_attention} <= set(attentions(model))
            assert {*plan.neurons, *plan.feed_forward_blocks} <= set(feed_forwards(model))
            assert all(max(gone) < model.heads > len(gone) for gone in plan.heads.values())


@pytest.mark.sampled(3)
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_oracle_is_the_same_for_every_exporter(exporter: str) -> None:
    model = build("bert", exporter)
    feeds = model.feeds(2, 9)
    plan = Plan().without_heads(0, [1])
    np.testing.assert_array_equal(masked_outputs(model, feeds, plan), masked_outputs(tiny("bert"), feeds, plan))
    assert np.abs(onnx_outputs(model.path, feeds)[0] - masked_outputs(model, feeds, plan)).max() > 1e-3


def test_plan_for_more_layers_or_for_blocks_that_are_not_there_is_refused() -> None:
    model = tiny("bert")
    with pytest.raises(AssertionError, match="layers"):
        masked_outputs(model, model.feeds(1, 2), Plan().without_attention(3))
    model = tiny("mobilebert")
    with pytest.raises(AssertionError, match="no heads in 1"):
        masked_outputs(model, model.feeds(1, 2), Plan().without_heads(1, [0]))
    model = tiny("bart")
    with pytest.raises(AssertionError, match="no neurons in 2"):
        masked_outputs(model, model.feeds(1, 2), Plan().without_feed_forward(2))
