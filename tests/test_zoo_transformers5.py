"""Files of transformers 5: by its own exporter, and by torch's from its modules: removed = gated = torch with the same masked.

transformers            every family, every kind of plan
transformers-fused      fused by the exporter for ONNX Runtime
torchscript, dynamo     every family, a plan at random: modules were rewritten in version 5
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from surgery import assert_three_ways_agree
from torch_oracle import random_plan
from zoo import CASES, FAMILY, FURTHER_CASES, UNEXPORTABLE, ZooModel, build, onnx_outputs
from zoo_export_transformers import HAS_TRANSFORMERS_EXPORTER

from axformer_passes.plan import Mode, Plan

if not HAS_TRANSFORMERS_EXPORTER:
    pytest.skip("this transformers has no exporter of its own: 5 and later (make test5)", allow_module_level=True)


def heads(model: ZooModel) -> Plan:
    """One head of every attention block."""
    plan = Plan()
    for index, record in enumerate(model.records):
        if record.heads:
            plan = plan.without_heads(index, [index % record.heads])
    return plan


def neurons(model: ZooModel) -> Plan:
    """Every second neuron."""
    plan = Plan()
    for index, record in enumerate(model.records):
        if record.neurons:
            plan = plan.without_neurons(index, range(0, record.neurons, 2))
    return plan


def blocks(model: ZooModel) -> Plan:
    """Attention blocks of odd layers, feed-forward blocks of even ones."""
    plan = Plan()
    for index, record in enumerate(model.records):
        if record.heads and index % 2:
            plan = plan.without_attention(index)
        if record.neurons and index % 2 == 0:
            plan = plan.without_feed_forward(index)
    return plan


def emptied(model: ZooModel) -> Plan:
    """All heads of the last attention block and all neurons of the first feed-forward block: their biases stay."""
    records = dict(enumerate(model.records))
    attention = max(index for index, record in records.items() if record.heads)
    feed_forward = min(index for index, record in records.items() if record.neurons)
    plan = Plan().without_heads(attention, range(records[attention].heads or 0))
    return plan.without_neurons(feed_forward, range(records[feed_forward].neurons or 0))


def truncated(model: ZooModel) -> Plan:
    """K of 2 and of 3."""
    return _hard(model, "truncated")


def renormalised(model: ZooModel) -> Plan:
    """As `truncated`, in the other mode."""
    return _hard(model, "renormalised")


def everything(model: ZooModel) -> Plan:
    """A plan at random, another one for every file."""
    return random_plan(model, np.random.default_rng(zlib.crc32(f"{model.family} {model.exporter}".encode())))


def _hard(model: ZooModel, mode: Mode) -> Plan:
    plan = Plan()
    for index, record in enumerate(model.records):
        if record.heads:
            plan = plan.with_hard_attention(index, 2 + index % 2, mode)
    return plan


PLANS: tuple[Callable[[ZooModel], Plan], ...] = (
    heads, neurons, blocks, emptied, truncated, renormalised, everything,
)  # fmt: skip


@pytest.mark.matrix("transformers")
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.__name__)
@pytest.mark.parametrize("family", [family for family in FAMILY if (family, "transformers") not in UNEXPORTABLE])
def test_own_exporter_removed_equals_gated_equals_masked(family: str, plan: Callable[[ZooModel], Plan]) -> None:
    model = build(family, "transformers")
    assert_three_ways_agree(model, plan(model))


@pytest.mark.parametrize("plan", [blocks, everything], ids=lambda plan: plan.__name__)
@pytest.mark.parametrize("family", ["bert", "mpnet", "deberta-v2", "gpt2", "bart", "vit"])
def test_own_fusion_removed_equals_gated_equals_masked(family: str, plan: Callable[[ZooModel], Plan]) -> None:
    model = build(family, "transformers-fused")
    assert_three_ways_agree(model, plan(model))


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("family", "exporter"),
    [case for case in (*CASES, *FURTHER_CASES) if case[1] in ("torchscript-eager-17", "dynamo-20")],
)
def test_modules_of_version_5_removed_equals_gated_equals_masked(family: str, exporter: str) -> None:
    model = build(family, exporter)
    assert_three_ways_agree(model, everything(model), ((2, 7),))


def test_own_exporter_exports_every_family_but_one() -> None:
    """What it writes of MBart does not run for a batch of one: the page says so."""
    assert [family for family, exporter in UNEXPORTABLE if exporter == "transformers"] == ["mbart-classifier"]


@pytest.mark.parametrize(
    ("how", "operator", "tolerance"),
    [("23", "Attention", 1e-5), ("fused", "SkipLayerNormalization", 1e-5), ("int8", "MatMulInteger", 0.1)],
)
def test_forms_of_own_exporter_are_what_they_are_called(how: str, operator: str, tolerance: float) -> None:
    model = build("bert", f"transformers-{how}")
    assert operator in {node.op_type for node in onnx.load(model.path).graph.node}
    feeds = model.feeds(3, 11)
    expected = model.logits(feeds)
    assert np.abs(onnx_outputs(model.path, feeds)[0] - expected).max() <= tolerance * np.abs(expected).max()
