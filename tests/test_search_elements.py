"""Elements, their sizes, and the random control."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_fake import anatomy

from axformer_onnx.search.control import random_plan
from axformer_onnx.search.elements import (
    Element,
    attention_half,
    feed_forward_half,
    hard_attention,
    neuron_groups,
    removed_parameters,
)
from axformer_passes.plan import Hard, Plan


def test_bert_base_has_twelve_groups_of_256_neurons() -> None:
    base = anatomy(layers=1, heads=12, head_size=64, neurons=3072)
    groups = feed_forward_half(base, 0).parts
    assert [len(g.ids) for g in groups] == [256] * 12
    assert groups[1].name == "layer 0 neurons 256-511"


@given(st.integers(1, 500), st.integers(1, 40))
def test_neuron_groups_cover_every_neuron_once_and_evenly(neurons: int, groups: int) -> None:
    ranges = list(neuron_groups(neurons, groups))
    assert [n for r in ranges for n in r] == list(range(neurons))
    assert len(ranges) == min(groups, neurons)
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_elements_have_the_names_of_the_report_and_change_the_plan_they_name() -> None:
    half = attention_half(anatomy(), 2)
    assert half.parts[1].name == "layer 2 head 1"
    assert half.parts[1].applied_to(Plan()).heads == {2: frozenset({1})}
    assert half.block is not None and half.block.name == "layer 2 attention block"
    assert half.block.applied_to(half.parts[1].applied_to(Plan())) == Plan(attention_blocks=frozenset({2}))
    hard = hard_attention(anatomy(), 1, 30)
    assert hard is not None and hard.name == "layer 1 hard attention k=30 truncated"
    assert hard.applied_to(Plan()).hard_attention == {1: Hard(30, "truncated")}


def test_no_hard_attention_is_proposed_before_operator_set_11() -> None:
    assert hard_attention(dataclasses.replace(anatomy(), opset=10), 1, 30) is None
    assert hard_attention(dataclasses.replace(anatomy(), opset=11), 1, 30) is not None


def test_block_that_cannot_be_taken_out_is_no_element_but_its_heads_are() -> None:
    half = attention_half(anatomy(fixed=frozenset({0})), 0)
    assert half.block is None and len(half.parts) == 4


def test_parts_of_a_half_weigh_what_its_block_weighs_less_the_output_bias() -> None:
    for half in (attention_half(anatomy(), 0), feed_forward_half(anatomy(), 0)):
        assert half.block is not None
        assert sum(part.parameters for part in half.parts) == half.block.parameters - 16


def test_removed_parameters_of_a_plan_are_the_sum_of_its_elements() -> None:
    model = anatomy()
    elements: list[Element] = [attention_half(model, 0).parts[2], feed_forward_half(model, 1).parts[0]]
    elements += [e for e in (attention_half(model, 2).block, feed_forward_half(model, 2).block) if e]
    plan = Plan()
    for element in elements:
        plan = element.applied_to(plan)
    assert removed_parameters(model, plan) == sum(e.parameters for e in elements)
    assert removed_parameters(model, Plan()) == 0


@pytest.mark.parametrize("seed", range(8))
def test_random_plan_removes_as_much_as_its_model_plan_and_is_valid(seed: int) -> None:
    model = anatomy(layers=4)
    like = Plan(
        source_sha256="x",
        heads={0: frozenset({0, 1}), 3: frozenset({2})},
        neurons={0: frozenset(range(16)), 2: frozenset(range(8, 13))},
        attention_blocks=frozenset({1}),
        feed_forward_blocks=frozenset({1}),
        hard_attention={0: Hard(7, "truncated")},
    )
    plan = random_plan(model, like, seed)
    plan.validate(model)
    assert plan == random_plan(model, like, seed)
    assert plan.source_sha256 == "x"
    assert removed_parameters(model, plan) == removed_parameters(model, like)
    assert sum(map(len, plan.heads.values())) == 3 and sum(map(len, plan.neurons.values())) == 21
    assert len(plan.attention_blocks) == len(plan.feed_forward_blocks) == len(plan.hard_attention) == 1
    assert not plan.attention_blocks & (plan.heads.keys() | plan.hard_attention.keys())
    assert not plan.feed_forward_blocks & plan.neurons.keys()


def test_random_plans_of_different_seeds_differ() -> None:
    like = Plan(heads={0: frozenset({0, 1})}, neurons={1: frozenset(range(8))})
    plans = [random_plan(anatomy(), like, seed).dumps() for seed in range(12)]
    assert len(np.unique(plans)) > 6
