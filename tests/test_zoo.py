"""The zoo's exports answer what their torch modules answer, so the other tests may compare with either."""

from __future__ import annotations

import collections

import numpy as np
import onnx
import pytest
from zoo import CASES, FAMILIES, PRE_NORM, TEXT_ENCODERS, UNEXPORTABLE, build, onnx_outputs
from zoo_export import EXPORTERS, HAS_OPTIMUM


@pytest.mark.parametrize(("family", "exporter"), CASES)
def test_export_answers_what_torch_answers(family: str, exporter: str) -> None:
    model = build(family, exporter)
    for batch, length in ((1, 1), (3, 11), (2, 40)):
        feeds = model.feeds(batch, length)
        (logits,) = onnx_outputs(model.path, feeds)
        np.testing.assert_allclose(logits, model.logits(feeds), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "exporter"), CASES)
def test_export_passes_the_full_checker(family: str, exporter: str) -> None:
    graph = onnx.load(build(family, exporter).path)
    onnx.checker.check_model(graph, full_check=True)
    onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)
    if family != "vit":
        axes = [d.dim_param for d in graph.graph.input[0].type.tensor_type.shape.dim]
        assert axes == ["batch_size", "sequence_length"]


@pytest.mark.parametrize("family", FAMILIES)
def test_opset_23_has_one_attention_node_a_layer(family: str) -> None:
    model = build(family, "dynamo-23")
    operators = collections.Counter(node.op_type for node in onnx.load(model.path).graph.node)
    fused = 0 if model.default_attention == "eager" else model.layers
    assert (operators["Attention"], operators["Softmax"]) == (fused, model.layers - fused)


def test_zero_biases_are_merged_by_the_torchscript_exporter() -> None:
    random, plain = (build("bert", "torchscript-eager-17", zero_biases=z) for z in (False, True))
    counts = [len(onnx.load(m.path).graph.initializer) for m in (random, plain)]
    assert counts[1] < counts[0] - 10


def test_sizes_can_be_overridden() -> None:
    model = build("bert", "torchscript-eager-17", layers=1, heads=2, head_size=4, neurons=12)
    assert (model.layers, model.heads, model.head_size, model.neurons, model.width) == (1, 2, 4, 12, 8)
    assert model.module.config.intermediate_size == 12


def test_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, again, other = (
        build("bert", e, seed=s)
        for e, s in (("dynamo-23", 0), ("torchscript-eager-17", 0), ("torchscript-eager-17", 1))
    )
    feeds = first.feeds(2, 9)
    np.testing.assert_array_equal(first.logits(feeds), again.logits(feeds))
    assert np.abs(first.logits(feeds) - other.logits(feeds)).max() > 0.01


def test_padding_does_not_change_the_logits_of_real_tokens() -> None:
    for family in (*TEXT_ENCODERS, "gpt2"):
        model = build(family, "dynamo-23")
        short = model.feeds(2, 6, padded=False)
        pad = model.module.config.pad_token_id
        long = {k: np.pad(v, ((0, 0), (0, 5)), constant_values=pad * (k == "input_ids")) for k, v in short.items()}
        np.testing.assert_allclose(model.logits(long), model.logits(short), atol=2e-6)


def test_every_pair_is_either_a_case_or_has_a_reason() -> None:
    assert set(CASES).isdisjoint(UNEXPORTABLE)
    assert {*CASES, *UNEXPORTABLE} == {(f, e) for f in FAMILIES for e in EXPORTERS}
    assert any(exporter == "optimum" for _, exporter in CASES) == HAS_OPTIMUM
    assert set(TEXT_ENCODERS).isdisjoint(PRE_NORM)


def test_unexportable_pair_is_refused_with_its_reason() -> None:
    if not UNEXPORTABLE:
        pytest.skip("this version of transformers exports everything")
    family, exporter = next(iter(UNEXPORTABLE))
    with pytest.raises(ValueError, match="cannot follow"):
        build(family, exporter)
