"""Plan: JSON there and back, and for every mistake the key and the value."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axformer_passes.anatomy import Anatomy, AttentionBlock, FeedForwardBlock, Layer, Linear
from axformer_passes.errors import PlanError
from axformer_passes.plan import FORMAT, MODES, Hard, Plan

LINEAR = Linear("x", "y", "w", "b", 8, 8)


def anatomy(why: str | None = None, feeds: bool = True) -> Anatomy:
    """Two layers, 4 heads, 6 neurons; `why`: no block can be taken out; `feeds`: is there a feed-forward block?"""
    place = (None, None, None, why) if why else ("a", "b", "c", None)
    attention = AttentionBlock(4, 4, 2, 0.7, LINEAR, LINEAR, LINEAR, LINEAR, "p", "Softmax", *place)
    feed = FeedForwardBlock(6, "gelu", (LINEAR,), LINEAR, *place) if feeds else None
    return Anatomy((Layer(0, attention, feed), Layer(1, None, feed)), 8, 17, "", ())


IDS = st.frozensets(st.integers(0, 3000), min_size=1, max_size=5)
LAYERS = st.integers(0, 40)
PLANS = st.builds(
    Plan,
    source_sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    heads=st.dictionaries(LAYERS, IDS, max_size=4),
    neurons=st.dictionaries(LAYERS, IDS, max_size=4),
    attention_blocks=st.frozensets(LAYERS, max_size=4),
    feed_forward_blocks=st.frozensets(LAYERS, max_size=4),
    hard_attention=st.dictionaries(LAYERS, st.builds(Hard, st.integers(1, 512), st.sampled_from(MODES)), max_size=4),
    weights=st.none() | st.just("plan.safetensors"),
    shared_weights=st.sampled_from(["separate", "together"]),
    readout=st.sampled_from(["whole", "narrow"]),
    constants=st.sampled_from(["kept", "folded"]),
    keys_values=st.sampled_from(["projected", "absorbed"]),
    padding=st.sampled_from(["kept", "removed"]),
)


@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(plan=PLANS)
def test_json_there_and_back_is_the_same_plan(plan: Plan) -> None:
    assert Plan.loads(plan.dumps()) == plan
    assert Plan.loads(plan.dumps()).dumps() == plan.dumps()


def test_text_is_the_documented_one() -> None:
    plan = Plan("ab").without_heads(0, [3, 1]).without_neurons(0, [5, 6]).without_attention(2).without_feed_forward(3)
    plan = plan.with_hard_attention(1, 30, "renormalised")
    assert json.loads(plan.dumps()) == {
        "format": "axformer-plan/1",
        "source_sha256": "ab",
        "heads": {"0": [1, 3]},
        "neurons": {"0": [5, 6]},
        "attention_blocks": [2],
        "feed_forward_blocks": [3],
        "hard_attention": {"1": {"k": 30, "mode": "renormalised"}},
    }
    assert plan.dumps().endswith("}\n") and plan.dumps().count("\n") == 9


def test_order_of_building_leaves_no_trace() -> None:
    a = Plan().without_heads(2, [1]).without_heads(0, [3]).without_heads(2, [0])
    b = Plan().without_heads(0, [3]).without_heads(2, [0, 1])
    assert a.dumps() == b.dumps()


def test_a_block_that_goes_takes_its_parts_along() -> None:
    plan = Plan().without_heads(1, [0]).with_hard_attention(1, 3).without_neurons(1, [2])
    plan = plan.without_attention(1).without_feed_forward(1)
    assert (plan.heads, plan.hard_attention, plan.neurons) == ({}, {}, {})


def test_parts_that_go_together_outlive_the_block_of_the_layer_that_names_them() -> None:
    plan = Plan(shared_weights="together").without_heads(1, [0]).with_hard_attention(1, 3).without_neurons(1, [2])
    plan = plan.without_attention(1).without_feed_forward(1)
    assert (plan.heads, plan.neurons, plan.hard_attention) == ({1: {0}}, {1: {2}}, {})


def test_shared_weights_are_named_where_they_go_together_and_left_out_where_they_are_separate() -> None:
    together = Plan(shared_weights="together")
    assert together.to_json()["shared_weights"] == "together" and "shared_weights" not in Plan().to_json()
    assert (
        Plan.loads(json.dumps({"format": FORMAT, "shared_weights": "separate"})) == Plan.loads(Plan().dumps()) == Plan()
    )
    assert together.is_empty


def test_empty_is_what_changes_nothing() -> None:
    assert Plan().is_empty and Plan(heads={0: frozenset()}).is_empty
    assert not Plan().without_heads(0, [1]).is_empty
    assert not Plan().with_hard_attention(0, 1).is_empty
    assert not Plan(weights="plan.safetensors").is_empty


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "expected a JSON object, found list"),
        ("{}", '"format" is None'),
        ('{"format": "axformer-plan/2"}', "\"format\" is 'axformer-plan/2', expected 'axformer-plan/1'"),
    ],
)
def test_what_is_no_plan_is_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.loads(text, "my.json")
    assert message in str(caught.value) and str(caught.value).startswith("my.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "messages"),
    [
        ({"head": {}}, ["unknown key 'head'", "heads"]),
        ({"heads": [1]}, ['"heads" maps layer numbers']),
        ({"padding": "gone"}, ["\"padding\" is 'gone'", "expected kept or removed"]),
        ({"keys_values": "gone"}, ["\"keys_values\" is 'gone'", "expected projected or absorbed"]),
        ({"keys_values": ["absorbed"]}, ['"keys_values" is [', "expected projected or absorbed"]),
        ({"heads": {"0": 3}}, ['"heads" of layer 0', "3"]),
        ({"heads": {"0": [-1]}}, ['"heads" of layer 0', "[-1]"]),
        ({"heads": {"0": [1.0]}}, ['"heads" of layer 0', "[1.0]"]),
        ({"heads": {"0": [True]}}, ['"heads" of layer 0', "[true]"]),
        ({"heads": {"0": ["1"]}}, ['"heads" of layer 0', '["1"]']),
        ({"heads": {"0": [1, 1]}}, ['"heads" of layer 0', "twice", "[1, 1]"]),
        ({"heads": {"zero": [1]}}, ['"heads"', "'zero'", "expected a layer number"]),
        ({"heads": {"-1": [1]}}, ['"heads"', "'-1'"]),
        ({"heads": {"01": [1]}}, ['"heads"', "'01'"]),
        ({"heads": {"²": [1]}}, ['"heads"', "'²'"]),
        ({"neurons": {"0": None}}, ['"neurons" of layer 0', "null"]),
        ({"attention_blocks": {"0": 1}}, ['"attention_blocks"', '{"0": 1}']),
        ({"attention_blocks": [0, 0]}, ['"attention_blocks"', "twice"]),
        ({"feed_forward_blocks": "0"}, ['"feed_forward_blocks"', '"0"']),
        ({"hard_attention": {"0": 30}}, ['"hard_attention" of layer 0', '"k"']),
        ({"hard_attention": {"0": {"k": 0}}}, ['"hard_attention" of layer 0', "k is 0, expected 1 or more"]),
        ({"hard_attention": {"0": {"k": "30"}}}, ["k is '30'"]),
        ({"hard_attention": {"0": {"k": True}}}, ["k is True"]),
        ({"hard_attention": {"0": {}}}, ["k is None"]),
        ({"hard_attention": {"0": {"k": 3, "mode": "soft"}}}, ["mode is 'soft', expected truncated or renormalised"]),
        ({"hard_attention": {"0": {"k": 3, "mode": ["soft"]}}}, ["mode is ['soft']"]),
        ({"hard_attention": {"0": {"k": 3, "n": 1}}}, ['"hard_attention" of layer 0']),
        ({"source_sha256": 5}, ['"source_sha256"', "strings"]),
        ({"weights": 5}, ['"weights"', "strings"]),
        ({"weights": "../plan.safetensors"}, ['"weights" is', "../plan.safetensors", "file beside the plan"]),
        ({"weights": "model.onnx"}, ['"weights" is', "a .safetensors file"]),
        ({"shared_weights": "both"}, ["\"shared_weights\" is 'both', expected separate or together"]),
        ({"shared_weights": ["together"]}, ["is ['together'], expected separate"]),
    ],
)
def test_every_mistake_is_named_with_key_and_value(entry: dict[str, Any], messages: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.loads(json.dumps({"format": FORMAT, **entry}))
    for message in messages:
        assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan().without_heads(2, [0]), '"heads" names layer 2, but the model has 2 layers (0 to 1)'),
        (Plan().without_heads(0, [1, 4, 9]), '"heads" of layer 0: id 4 does not exist, there are 4'),
        (Plan().without_heads(1, [0]), '"heads": no attention block was recognised in layer 1'),
        (Plan().without_neurons(0, [6]), '"neurons" of layer 0: id 6 does not exist, there are 6'),
        (Plan().without_attention(1), '"attention_blocks": layer 1 has no removable attention block: none was recog'),
        (Plan().without_feed_forward(5), '"feed_forward_blocks" names layer 5'),
        (Plan().with_hard_attention(1, 3), '"hard_attention": no attention block was recognised in layer 1'),
    ],
)
def test_ids_that_the_model_lacks_are_named(plan: Plan, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan.validate(anatomy())
    assert message in str(caught.value)


def test_a_block_that_cannot_be_taken_out_says_why() -> None:
    for plan in (Plan().without_attention(0), Plan().without_feed_forward(0)):
        with pytest.raises(PlanError, match=r"no removable .* block: it is read twice"):
            plan.validate(anatomy("it is read twice"))
    Plan().without_heads(0, [0]).without_neurons(0, [1]).validate(anatomy("it is read twice"))


def test_a_layer_without_a_feed_forward_block_has_no_neurons_to_remove() -> None:
    for plan in (Plan().without_neurons(0, [0]), Plan().without_feed_forward(0)):
        with pytest.raises(PlanError, match="was recognised"):
            plan.validate(anatomy(feeds=False))
