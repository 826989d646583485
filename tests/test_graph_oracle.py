"""The oracle that asks the file itself is right: on files of torch's own arithmetic it answers what torch answers."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
import onnx
import pytest
from graph_locate import Graph
from graph_oracle import _kept, float32_twin, masked_graph_outputs, run_as_declared
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from surgery import assert_close, clear_sample
from torch_oracle import random_plan
from zoo import ZooModel, build, onnx_outputs
from zoo_variant_cases import FURTHER_VARIANT_CASES, VARIANT_CASES, tolerance

from axformer_passes.plan import Plan

EXACT = [case for case in VARIANT_CASES if tolerance(case[1]) == 1e-5 and "-13" not in case[1]]
HALF = [("bert", "fp16"), ("bert", "fp16io"), ("bert", "wfp16"), ("bert", "ort+fp16"), ("vit", "fp16")]
INTEGER = [
    ("bert", "int8"), ("bert", "int8c"), ("bert", "qdq"), ("bert", "qdqc"), ("bert", "qdqm"), ("bert", "ort+int8"),
    ("bert", "int8+ortext"), ("distilbert", "int8"), ("gpt2", "int8"), ("vit", "qdq"),
]  # fmt: skip


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), EXACT)
def test_exact_files_answer_what_torch_answers(family: str, exporter: str) -> None:
    _assert_as_torch(build(family, exporter))


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.parametrize(("family", "exporter"), [c for c in FURTHER_VARIANT_CASES if tolerance(c[1]) == 1e-5])
def test_exact_files_of_further_families_answer_what_torch_answers(family: str, exporter: str) -> None:
    _assert_as_torch(build(family, exporter))


@pytest.mark.parametrize(("family", "variant"), HALF)
def test_half_precision_is_near_what_torch_answers(family: str, variant: str) -> None:
    model = build(family, f"torchscript-eager-17+{variant}")
    plan = dataclasses.replace(_plan(model), hard_attention={})  # rounding may order near-equal probabilities otherwise
    feeds, expected = clear_sample(model, plan, 3, 9)
    (found,) = masked_graph_outputs(model, feeds, plan)
    assert np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize(("family", "variant"), INTEGER)
def test_masks_in_an_integer_file_are_nearer_to_torch_than_the_unmasked_file(family: str, variant: str) -> None:
    model = build(family, f"torchscript-eager-17+{variant}")
    plan = Plan().without_heads(0, [1]).without_neurons(1, range(0, model.neurons, 2))
    for part in (plan, plan.without_attention(1), Plan().without_feed_forward(0), Plan().with_hard_attention(0, 2)):
        feeds, expected = clear_sample(model, part, 8, 12)
        (masked,), plain = masked_graph_outputs(model, feeds, part), run_as_declared(model.path.read_bytes(), feeds)[0]
        assert np.linalg.norm(masked - expected) < 0.75 * np.linalg.norm(plain - expected), part.to_json()


@pytest.mark.parametrize("variant", ["int8", "qdq", "ort+int8", "fp16", "external"])
def test_empty_plan_changes_no_bit(variant: str) -> None:
    model = build("bert", f"torchscript-eager-17+{variant}")
    feeds = model.feeds(3, 9)
    np.testing.assert_array_equal(masked_graph_outputs(model, feeds, Plan())[0], onnx_outputs(model.path, feeds)[0])


def test_float32_twin_has_no_bfloat16_and_the_weights_that_the_file_has() -> None:
    model = build("bert", "torchscript-eager-17+bf16")
    twin, source = onnx.load_from_string(float32_twin(model.path)), onnx.load(model.path)
    assert TensorProto.BFLOAT16 not in {t.data_type for t in twin.graph.initializer}
    for ours, theirs in zip(twin.graph.initializer, source.graph.initializer, strict=True):
        found, expected = onnx.numpy_helper.to_array(ours), onnx.numpy_helper.to_array(theirs)
        np.testing.assert_array_equal(found, expected.astype(found.dtype))


def test_file_of_another_model_is_refused() -> None:
    model, other = (build("bert", "torchscript-eager-17", seed=seed) for seed in (0, 1))
    with pytest.raises(AssertionError, match=r"linear 0 \(32, 32\): 0 nodes, expected 1"):
        masked_graph_outputs(
            dataclasses.replace(model, file=other.path), model.feeds(1, 3), Plan().without_heads(0, [0])
        )


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(
    st.lists(st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), min_size=5, max_size=5), min_size=1, max_size=3),
    st.integers(1, 7),
)
def test_exactly_k_are_kept_and_of_equals_the_lower_index(rows: list[list[float]], k: int) -> None:
    values = np.asarray(rows, np.float32)
    order = np.argsort(-values, axis=-1, kind="stable")[:, :k]
    expected = np.zeros(values.shape, bool)
    np.put_along_axis(expected, order, True, axis=-1)
    np.testing.assert_array_equal(_kept_of(values, k), expected)


def _kept_of(values: np.ndarray, k: int) -> np.ndarray:
    node = helper.make_node("Identity", ["values"], ["same"])
    float_, bool_ = TensorProto.FLOAT, TensorProto.BOOL
    sides = [helper.make_tensor_value_info(n, t, [None, None]) for n, t in (("values", float_), ("same", float_))]
    imports = [helper.make_opsetid("", 17)]
    rows = helper.make_graph([node], "rows", sides[:1], sides[1:])
    graph = Graph(helper.make_model(rows, opset_imports=imports, ir_version=8))
    kept = _kept(graph, graph.nodes[0], "values", k)
    graph.model.graph.output.append(helper.make_tensor_value_info(kept, bool_, [None, None]))
    return onnx_outputs(graph.serialized(), {"values": values})[1]


def _plan(model: ZooModel) -> Plan:
    return random_plan(model, np.random.default_rng(zlib.crc32(f"{model.family} {model.exporter}".encode())))


def _assert_as_torch(model: ZooModel) -> None:
    first, *_, last = (layer for layer, record in enumerate(model.records) if record.heads)
    for plan in (_plan(model), Plan().with_hard_attention(first, 2).with_hard_attention(last, 3, "renormalised")):
        for batch, length in ((1, 3), (3, 9)):
            feeds, expected = clear_sample(model, plan, batch, length)
            assert_close(masked_graph_outputs(model, feeds, plan)[0], expected, f"{batch} x {length}, {plan.to_json()}")
