"""A graph that was pruned and hardened is a model like any other: it is recognised and pruned again."""

from __future__ import annotations

import numpy as np
import pytest
from surgery import assert_close
from torch_oracle import masked_outputs
from zoo import build, onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.io.files import load_model, serialized
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise

CASES = [
    ("bert", "torchscript-eager-17"),
    ("bert", "torchscript-eager-17+ort"),
    ("bert", "dynamo-23"),
    ("gpt2", "dynamo-23"),
    ("deberta-v2", "dynamo-20"),
    ("llama", "dynamo-23"),
]


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), CASES)
def test_two_plans_one_after_the_other_are_one_plan(family: str, exporter: str) -> None:
    model = build(family, exporter)
    source = load_model(model.path)
    heads, neurons = model.heads, model.neurons
    hard = Plan().with_hard_attention(0, 3).with_hard_attention(1, 3, "renormalised")
    first = apply_plan(source, hard.without_heads(0, [0]).without_neurons(0, [2]), run_once)
    layers = recognise(first, run_once).layers
    assert [(x.attention.heads, x.feed_forward.neurons) for x in layers if x.attention and x.feed_forward] == [
        (heads - 1, neurons - 1), (heads, neurons), (heads, neurons),
    ]  # fmt: skip
    again = Plan().without_neurons(0, [0, 2]).without_heads(1, [heads - 1]).without_attention(2)
    second = apply_plan(first, again, run_once)
    both = hard.without_heads(0, [0]).without_neurons(0, [0, 2, 3])
    both = both.without_heads(1, [heads - 1]).without_attention(2)
    feeds = model.feeds(2, 9)
    expected = masked_outputs(model, feeds, both)
    assert_close(onnx_outputs(serialized(second), feeds)[0], expected)
    assert np.isfinite(expected).all()
