"""The zoo's exports answer what their torch modules answer, so the other tests may compare with either."""

from __future__ import annotations

import collections
import re

import numpy as np
import onnx
import pytest
from zoo import (
    CASES,
    FAMILIES,
    FAMILY,
    FURTHER_CASES,
    FURTHER_FAMILIES,
    PRE_NORM,
    TEXT_ENCODERS,
    UNEXPORTABLE,
    Sizes,
    build,
    onnx_outputs,
)
from zoo_export import EXPORTERS, HAS_OPTIMUM

EVERY_CASE = [*CASES, *FURTHER_CASES]
# Padding stands behind the real tokens, and no real token looks at its neighbour whatever the mask says.
MASKED = (
    *TEXT_ENCODERS,
    "camembert",
    "mpnet",
    "albert",
    "deberta",
    "deberta-v2",
    "modernbert",
    "nomic",
    "gpt2",
    "llama",
)


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), EVERY_CASE)
def test_export_answers_what_torch_answers(family: str, exporter: str) -> None:
    model = build(family, exporter)
    for batch, length in ((1, 1), (3, 11), (2, 40)):
        feeds = model.feeds(batch, length)
        (logits,) = onnx_outputs(model.path, feeds)
        np.testing.assert_allclose(logits, model.logits(feeds), rtol=1e-5, atol=1e-5)


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), EVERY_CASE)
def test_export_passes_the_full_checker(family: str, exporter: str) -> None:
    graph = onnx.load(build(family, exporter).path)
    onnx.checker.check_model(graph, full_check=True)
    onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), EVERY_CASE)
def test_batch_and_length_are_dynamic(family: str, exporter: str) -> None:
    inputs = {i.name: i.type.tensor_type.shape.dim for i in onnx.load(build(family, exporter).path).graph.input}
    text = {0: "batch_size", 1: "sequence_length"}
    for name, dims in inputs.items():
        for axis, expected in FAMILY[family].axes.get(name, text).items():
            assert dims[axis].dim_param == expected or (exporter == "optimum" and dims[axis].dim_param)


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), [case for case in EVERY_CASE if case[1] == "dynamo-23"])
def test_opset_23_has_one_attention_node_a_block(family: str, exporter: str) -> None:
    model = build(family, exporter)
    operators = collections.Counter(node.op_type for node in onnx.load(model.path).graph.node)
    blocks = sum(record.heads is not None for record in model.records)
    fused = 0 if model.default_attention == "eager" else blocks
    assert (operators["Attention"], operators["Softmax"]) == (fused, blocks - fused)


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
    for family in MASKED:
        model = build(family, "dynamo-23")
        short = model.feeds(2, 6, padded=False)
        pad = model.module.config.pad_token_id
        long = {k: np.pad(v, ((0, 0), (0, 5)), constant_values=pad * (k == "input_ids")) for k, v in short.items()}
        # float32: sums over 11 tokens in another order than over 6, on logits of up to 5
        np.testing.assert_allclose(model.logits(long), model.logits(short), atol=5e-6)


def test_every_pair_is_either_a_case_or_has_a_reason() -> None:
    assert {*FAMILIES, *FURTHER_FAMILIES} == set(FAMILY)
    assert set(EVERY_CASE).isdisjoint(UNEXPORTABLE)
    assert {*EVERY_CASE, *UNEXPORTABLE} == {(f, e) for f in FAMILY for e in EXPORTERS}
    assert any(exporter == "optimum" for _, exporter in CASES) == HAS_OPTIMUM
    assert set(TEXT_ENCODERS).isdisjoint(PRE_NORM)


def test_unexportable_pairs_are_refused_with_their_reason() -> None:
    for (family, exporter), reason in UNEXPORTABLE.items():
        with pytest.raises(ValueError, match=re.escape(f"{family} by {exporter}: {reason}")):
            build(family, exporter)


def test_records_say_which_blocks_a_layer_has() -> None:
    def shape(family: str) -> list[tuple[int | None, int | None, int | None]]:
        return [(r.heads, r.width, r.neurons) for r in FAMILY[family].records(Sizes(layers=1))]

    assert shape("bert") == [(4, 8, 56)]
    assert shape("mobilebert") == [(4, 8, 56), *[(None, None, 56)] * 3]
    assert shape("bart") == shape("t5") == [(4, 8, 56), (4, 8, None), (4, 8, 56)]
    assert shape("llama") == [(2, 16, 56)]
    assert [r.call for r in FAMILY["albert"].records(Sizes())] == [0, 1, 2]
