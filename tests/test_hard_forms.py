"""Every form in which hard attention is written gives what a stable sort in NumPy says, in every operator set and precision."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from small_graphs import Sketch
from zoo import ZooModel, build, onnx_outputs

from axformer_onnx.runtime.sessions import make_session, run_once, run_session
from axformer_passes.apply import apply_plan
from axformer_passes.cut.hard_attention import harden
from axformer_passes.io.files import load_model, serialized
from axformer_passes.plan import MODES, Hard, Mode, Plan
from axformer_passes.prepare.walkable import prepared
from axformer_passes.readout.narrowing import narrow_readout

Array = npt.NDArray[Any]
KINDS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
TOLERANCE = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 1.6e-2}
"""Relative: some units in the last place. What does not survive is compared bit by bit."""
KS = (1, 2, 3, 4, 8, 16, 32, 1000)
OPSETS = (11, 13, 17, 21)


def softmax(opset: int, dtype: str) -> tuple[onnx.ModelProto, str]:
    """(x[R,T] -> Softmax -> y[R,T], the name of the Softmax's output); bfloat16 between Casts, as NumPy has none to feed."""
    g, casts = Sketch(opset), dtype == "bfloat16"
    p = g("Softmax", g("Cast", "x", to=KINDS[dtype]) if casts else "x", axis=-1)
    proto = g.model({"x": ["rows", "tokens"]}, g("Cast", p, to=TensorProto.FLOAT) if casts else p, ["rows", "tokens"])
    proto.ir_version = 6
    if not casts:
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.elem_type = KINDS[dtype]
    return proto, str(p)


@functools.cache
def hardened(k: int, mode: Mode, opset: int, dtype: str = "float32") -> bytes:
    proto, p = softmax(opset, dtype)
    model = ir.from_proto(proto)
    harden(model.graph, p, Hard(k, mode), np.dtype(getattr(ml_dtypes, dtype, None) or dtype))
    written = ir.to_proto(model)
    onnx.checker.check_model(written, full_check=True)
    onnx.shape_inference.infer_shapes(written, check_type=True, strict_mode=True, data_prop=True)
    return serialized(model)


def operators(model: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


def scores(length: int, lowest: float) -> Iterator[Array]:
    """Rows of one length, in steps that every precision tells apart."""
    rng = np.random.default_rng(length)
    yield rng.integers(0, 3, (6, length)) / 2  # many ties
    yield np.zeros((2, length))  # nothing else
    yield rng.permuted(np.tile(np.arange(length) / 16, (4, 1)), axis=1)  # none
    padded = rng.integers(-3, 4, (6, length)) / 2
    real = rng.integers(1, length + 1, 6)
    yield np.where(np.arange(length) < real[:, None], padded, lowest)  # padding behind
    yield np.where(np.arange(length) >= length - real[:, None], padded, lowest)  # and in front


def expected(x: Array, k: int, mode: Mode) -> Array:
    """float64[R,T], by a stable sort of -x."""
    order = np.argsort(-x, axis=1, kind="stable")[:, :k]
    exp = np.exp(x - x.max(axis=1, keepdims=True))
    kept = np.zeros_like(exp)
    np.put_along_axis(kept, order, np.take_along_axis(exp, order, axis=1), axis=1)
    return np.asarray(kept / (kept if mode == "renormalised" else exp).sum(axis=1, keepdims=True))


def assert_expected(found: Array, x: Array, k: int, mode: Mode, tolerance: float) -> None:
    oracle = expected(x, k, mode)
    np.testing.assert_array_equal(found > 0, oracle > 0)
    np.testing.assert_allclose(found, oracle, rtol=tolerance, atol=0)


@pytest.mark.sampled(20)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", KS)
def test_the_survivors_are_those_of_a_stable_sort_at_every_length(k: int, mode: Mode, opset: int, dtype: str) -> None:
    session = make_session(hardened(k, mode, opset, dtype), threads=1, optimize=False)
    for length in range(1, 41):
        for lowest in (-10_000.0, -np.inf):
            for x in scores(length, lowest):
                (found,) = session.run(None, {"x": x.astype(dtype)})
                assert_expected(found, x, k, mode, TOLERANCE[dtype])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", KS)
def test_onnx_runtimes_own_rewrites_keep_the_survivors(k: int, mode: Mode) -> None:
    session = make_session(hardened(k, mode, 17), threads=1)
    for length in (1, 2, 7, 32, 33, 40, 130):
        for x in scores(length, float(np.finfo(np.float32).min)):
            (found,) = session.run(None, {"x": x.astype(np.float32)})
            assert_expected(found, x, k, mode, TOLERANCE["float32"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [1, 3, 1000])
def test_bfloat16_is_hardened_through_float32(k: int, mode: Mode) -> None:
    """ONNX Runtime has no kernels for it here, and runs the float32 twin; ONNX's own evaluator checks the types."""
    model = hardened(k, mode, 17, "bfloat16")
    assert operators(model).count("TopK") == 1
    for x in scores(9, -np.inf):
        found = run_session(make_session(model, threads=1), {"x": x.astype(np.float32)})["y"]
        assert_expected(found, x, k, mode, TOLERANCE["bfloat16"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("mode", MODES)
def test_scores_far_apart_lose_no_survivor(mode: Mode, dtype: str) -> None:
    """The largest of a row is its first survivor, however far below 0 it is, and whatever is masked."""
    for shift in (-900.0, 0.0, 900.0):
        x = np.array([[-60_000, shift, shift - 2, -np.inf, shift - 1, shift - 2]])
        (found,) = onnx_outputs(hardened(3, mode, 17, dtype), {"x": x.astype(dtype)})
        assert_expected(found, x, 3, mode, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("mode", MODES)
def test_a_sequence_of_no_more_than_k_tokens_keeps_every_bit(mode: Mode, opset: int, dtype: str) -> None:
    x = np.random.default_rng(0).normal(0, 3, (50, 8)).astype(dtype)
    (plain,) = onnx_outputs(softmax(opset, dtype)[0].SerializeToString(), {"x": x})
    for k in (8, 1000):
        np.testing.assert_array_equal(onnx_outputs(hardened(k, mode, opset, dtype), {"x": x})[0], plain)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("mode", MODES)
def test_hard_attention_is_written_in_standard_operators_without_branches(mode: Mode, opset: int) -> None:
    for k in KS:
        model = onnx.load_from_string(hardened(k, mode, opset))
        assert {node.domain for node in model.graph.node} == {""}
        assert not {"If", "Loop", "Scan", "Hardmax"} & {node.op_type for node in model.graph.node}
        assert [node.op_type for node in model.graph.node].count("Softmax") == 1, "or it would be recognised twice"


def test_probabilities_that_are_an_output_are_renormalised_there_too() -> None:
    g = Sketch(17)
    p = g("Softmax", "x", axis=-1)
    proto = g.model({"x": ["rows", "tokens"]}, p, ["rows", "tokens"])
    proto.graph.output.append(onnx.helper.make_tensor_value_info(p, TensorProto.FLOAT, ["rows", "tokens"]))
    model = ir.from_proto(proto)
    harden(model.graph, p, Hard(2, "renormalised"), np.dtype(np.float32))
    x = np.array([[1, 3, 2, 0]], np.float32)
    for found in onnx_outputs(serialized(model), {"x": x}):
        assert_expected(found, x.astype(np.float64), 2, "renormalised", 1e-6)


# -- the read-out -----------------------------------------------------------------------------------------------------


def last_layer_hardened(exporter: str, k: int, mode: Mode) -> tuple[ZooModel, ir.Model]:
    zoo = build("bert", exporter)
    plan = Plan().with_hard_attention(zoo.layers - 1, k, mode)
    return zoo, apply_plan(load_model(zoo.path), plan, run_once)


@pytest.mark.parametrize("exporter", ["torchscript-eager-17", "torchscript-sdpa-14", "dynamo-20"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [1, 3])
def test_the_pick_of_a_token_moves_above_hard_attention(k: int, mode: Mode, exporter: str) -> None:
    zoo, source = last_layer_hardened(exporter, k, mode)
    model = prepared(source)
    assert narrow_readout(model, run_once).places == narrow_readout(prepared(load_model(zoo.path)), run_once).places
    proto = onnx.load_from_string(serialized(model))
    (topk,) = (node for node in proto.graph.node if node.op_type == "TopK")
    feeds = zoo.feeds(3, 9)
    before, after = onnx_outputs(serialized(source), feeds)[0], onnx_outputs(serialized(model), feeds)[0]
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
    proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(topk.output[0]))
    assert onnx_outputs(proto.SerializeToString(), feeds)[-1].shape[-2:] == (1, k), "one query token"
