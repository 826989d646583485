"""Plans at random over all families and exporters: removed = gated = torch with the same activations zeroed.

The support matrix (test_support) carries out fixed plans on every file; here are those that it leaves out, and the drawn ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from surgery import assert_three_ways_agree
from torch_oracle import random_plan
from zoo import CASES, FURTHER_CASES, TEXT_ENCODERS, ZooModel, build

from axformer_passes.plan import Plan


def nothing(model: ZooModel) -> Plan:
    """The empty plan."""
    return Plan()


def some_heads(model: ZooModel) -> Plan:
    """The first head, all but the first, all but one in the middle."""
    heads = range(model.heads)
    return Plan().without_heads(0, [0]).without_heads(1, heads[1:]).without_heads(2, [i for i in heads if i != 1])


def some_neurons(model: ZooModel) -> Plan:
    """A single one, every second one, all but one."""
    neurons = range(model.neurons)
    return Plan().without_neurons(0, [3]).without_neurons(1, neurons[::2]).without_neurons(2, neurons[:-1])


def blocks(model: ZooModel) -> Plan:
    """A feed-forward block and the attention block above it, and one in the middle."""
    return Plan().without_feed_forward(0).without_attention(1).without_attention(2)


def last_layer(model: ZooModel) -> Plan:
    """Both blocks of the last layer, where the sum may be a graph output."""
    return Plan().without_attention(model.layers - 1).without_feed_forward(model.layers - 1)


def emptied(model: ZooModel) -> Plan:
    """All heads of one block and all neurons of another: their output biases stay."""
    return Plan().without_heads(1, range(model.heads)).without_neurons(0, range(model.neurons))


def nothing_left(model: ZooModel) -> Plan:
    """Every block gone."""
    plan = Plan()
    for layer in range(model.layers):
        plan = plan.without_attention(layer).without_feed_forward(layer)
    return plan


def truncated(model: ZooModel) -> Plan:
    """K of 1, of 3, and of more than the sequence."""
    return Plan().with_hard_attention(0, 1).with_hard_attention(1, 3).with_hard_attention(2, 1000)


def renormalised(model: ZooModel) -> Plan:
    """As `truncated`, in the other mode."""
    plan = Plan().with_hard_attention(0, 1, "renormalised").with_hard_attention(1, 3, "renormalised")
    return plan.with_hard_attention(2, 1000, "renormalised")


def everything(model: ZooModel) -> Plan:
    """A plan at random, another one for every file."""
    return random_plan(model, np.random.default_rng(zlib.crc32(f"{model.family} {model.exporter}".encode())))


PLANS: tuple[Callable[[ZooModel], Plan], ...] = (
    nothing, some_heads, some_neurons, blocks, last_layer, emptied, nothing_left, truncated, renormalised, everything,
)  # fmt: skip


@pytest.mark.matrix
@pytest.mark.parametrize("plan", [nothing, nothing_left], ids=lambda plan: plan.__name__)
@pytest.mark.parametrize(("family", "exporter"), CASES)
def test_removed_equals_gated_equals_masked(family: str, exporter: str, plan: Callable[[ZooModel], Plan]) -> None:
    model = build(family, exporter)
    assert_three_ways_agree(model, plan(model))


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.parametrize(("family", "exporter"), [*CASES, *FURTHER_CASES])
@settings(max_examples=2, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
@given(batch=st.integers(1, 3), length=st.integers(1, 12), seed=st.integers(0, 2**31 - 1))
def test_random_plans_removed_equals_gated_equals_masked(
    family: str, exporter: str, batch: int, length: int, seed: int
) -> None:
    model = build(family, exporter)
    own = zlib.crc32(
        f"{family} {exporter}".encode()
    )  # every file is given the same examples: so each has plans of its own
    assert_three_ways_agree(model, random_plan(model, np.random.default_rng([seed, own])), ((batch, length),))


@pytest.mark.slow
@settings(max_examples=10, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
@given(
    family=st.sampled_from(TEXT_ENCODERS),
    seed=st.integers(0, 2**32 - 1),
    layers=st.integers(1, 2),
    heads=st.integers(2, 5),
    neurons=st.integers(2, 33),
)
def test_random_widths_removed_equals_gated_equals_masked(
    family: str, seed: int, layers: int, heads: int, neurons: int
) -> None:
    model = build(family, "torchscript-eager-17", layers=layers, heads=heads, neurons=neurons)
    assert_three_ways_agree(model, random_plan(model, np.random.default_rng(seed)), ((2, 7),))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("exporter", ["torchscript-sdpa-17", "dynamo-23"])
def test_one_head_and_one_neuron_can_be_all_there_is(exporter: str) -> None:
    model = build("bert", exporter, layers=2, heads=1, neurons=1)
    assert_three_ways_agree(model, Plan().with_hard_attention(0, 2).without_neurons(1, [0]))
    assert_three_ways_agree(model, Plan().without_heads(0, [0]).without_attention(1))


@pytest.mark.parametrize("exporter", ["torchscript-eager-11", "torchscript-eager-12", "torchscript-eager-13"])
def test_older_operator_sets_are_pruned_hardened_and_gated_too(exporter: str) -> None:
    """11 is the oldest with a TopK that says how ties end."""
    model = build("bert", exporter)
    for plan in (some_heads, blocks, truncated, renormalised, everything):
        assert_three_ways_agree(model, plan(model), ((2, 7),))
