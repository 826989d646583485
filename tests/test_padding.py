"""Padding removed: the answers of the source under every mask, with the products of real tokens alone; else the reason.

The oracle is the source file in ONNX Runtime, its own optimisations off, or NumPy.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from small_graphs import Sketch
from surgery import assert_close
from zoo import CASES, FURTHER_CASES, Feeds, ZooModel, build, onnx_outputs

from axformer_onnx.errors import PlanError, VerifyError
from axformer_onnx.result.verification import verify
from axformer_onnx.runtime.sessions import make_session, run_once, run_session
from axformer_passes.apply import apply_plan, of_real_tokens
from axformer_passes.blocks.cost import macs
from axformer_passes.io.files import load_model, save_model, serialized
from axformer_passes.padding import remove_padding
from axformer_passes.plan import Plan
from axformer_passes.precision import Int8
from axformer_passes.recognise import recognise

REMOVED = Plan(padding="removed")
EVERYTHING = Plan(readout="narrow", constants="folded", keys_values="absorbed", padding="removed")
ENCODERS = ("bert", "roberta", "distilbert", "electra", "minilm", "mpnet", "albert", "mobilebert", "modernbert")
DECODERS = ("gpt2", "llama")
EXPORTERS = ("torchscript-eager-17", "torchscript-sdpa-17", "dynamo-20", "dynamo-23", "optimum")
EXPORTED = frozenset((*CASES, *FURTHER_CASES))
FILES = [(f, e) for f in (*ENCODERS, *DECODERS) for e in EXPORTERS if (f, e) in EXPORTED]
Mask = npt.NDArray[np.int64]

LENGTH = 9
MASKS: dict[str, list[list[int]]] = {
    "behind the text": [[1] * n + [0] * (LENGTH - n) for n in (9, 4, 1, 7)],
    "before the text": [[0] * (LENGTH - n) + [1] * n for n in (2, 9, 5)],
    "all kinds": [[1] * 9, [1, 0, 1, 1, 0, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 1, 1], [1] * 3 + [0] * 6, [0] * 8 + [1]],
    "of one length": [[1] * 6 + [0] * 3] * 3,
    "none": [[1] * LENGTH] * 2,
    "one row": [[1] * 5 + [0] * 4],
    "one row without": [[1] * LENGTH],
    "one token": [[1] + [0] * 8],
}


def masked(zoo: ZooModel, mask: list[list[int]], seed: int = 0) -> Feeds:
    """Random ids, also under the mask."""
    array = np.array(mask)
    feeds = zoo.feeds(*array.shape, seed=seed)
    return {**feeds, "attention_mask": array.astype(feeds["attention_mask"].dtype)}


def runner(model: ir.Model) -> Callable[[Feeds], dict[str, Any]]:
    session = make_session(serialized(model), threads=1, optimize=False)
    return lambda feeds: run_session(session, feeds)


def removed(source: ir.Model, plan: Plan = REMOVED) -> ir.Model:
    """`plan`, after the full checker with strict shape inference."""
    result = apply_plan(source, plan, run_once)
    proto = onnx.load_from_string(serialized(result))
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    return result


def assert_same(zoo: ZooModel, source: ir.Model, result: ir.Model) -> None:
    before, after = runner(source), runner(result)
    for seed, (name, mask) in enumerate(MASKS.items()):
        feeds = masked(zoo, mask, seed)
        expected = before(feeds)
        for output, found in after(feeds).items():
            assert_close(found, expected[output], f"{output}, padding {name}")


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), FILES)
def test_outputs_equal_the_source_under_every_mask(family: str, exporter: str) -> None:
    zoo = build(family, exporter)
    source = zoo.opened()
    assert_same(zoo, source, removed(source))


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), FILES)
def test_outputs_equal_the_source_behind_all_other_exact_rewrites(family: str, exporter: str) -> None:
    zoo = build(family, exporter)
    source = zoo.opened()
    assert_same(zoo, source, removed(source, EVERYTHING))


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "how",
    ["torchscript-eager-11", "torchscript-eager-17+ort", "dynamo-20+ortfusions", "torchscript-eager-17+fp16"],
)
def test_outputs_equal_the_source_in_older_fused_and_half_precision_files(how: str) -> None:
    zoo = build("bert", how)
    source = zoo.opened()
    result = apply_plan(source, EVERYTHING, run_once)
    before, after = runner(source), runner(result)
    for name in ("behind the text", "none"):
        feeds = masked(zoo, MASKS[name])
        expected, found = before(feeds)["logits"], after(feeds)["logits"]
        rounded = 2e-2 if "fp16" in how else 1e-5
        assert np.abs(found - expected).max() <= rounded * np.abs(expected).max()


# -- what is saved ----------------------------------------------------------------------------------------------------


def product_rows(model: ir.Model, feeds: Feeds) -> list[int]:
    """Of every product with a weight, how many rows it multiplies, from the shapes of a run."""
    proto = onnx.load_from_string(serialized(model))
    weights = {tensor.name for tensor in proto.graph.initializer}
    weights |= {n.output[0] for n in proto.graph.node if n.op_type == "Transpose" and n.input[0] in weights}
    products = [
        n for n in proto.graph.node if n.op_type in ("MatMul", "Gemm", "MatMulInteger") and n.input[1] in weights
    ]
    names = list(dict.fromkeys(node.output[0] for node in products))
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    found = onnx_outputs(proto.SerializeToString(), feeds)
    return [int(np.prod(array.shape[:-1])) for array in found]


@pytest.mark.parametrize("how", ["torchscript-eager-17", "dynamo-20", "torchscript-eager-17+ort"])
def test_products_multiply_real_tokens_alone(how: str) -> None:
    zoo = build("bert", how)
    feeds = masked(zoo, MASKS["behind the text"])
    rows = product_rows(removed(load_model(zoo.path)), feeds)
    whole = product_rows(load_model(zoo.path), feeds)
    assert whole.count(4 * LENGTH) == rows.count(9 + 4 + 1 + 7) > 8
    assert set(rows) == {9 + 4 + 1 + 7, 4}, "besides, the pooler and the classifier read a token a row"


def test_rows_padded_otherwise_are_computed_as_a_whole() -> None:
    zoo = build("bert", "torchscript-eager-17")
    rows = product_rows(
        removed(load_model(zoo.path)), masked(zoo, [[0] * 4 + [1] * 5, [1, 0, 1] * 3, [1] * 2 + [0] * 7])
    )
    assert set(rows) == {2 * LENGTH + 2, 3}


def test_a_row_without_any_token_is_computed_as_a_whole() -> None:
    zoo = build("bert", "torchscript-eager-17")
    source = load_model(zoo.path)
    result, feeds = removed(source, EVERYTHING), masked(zoo, [[1] * 5 + [0] * 4, [0] * LENGTH])
    expected = runner(source)(feeds)["logits"]
    assert np.isfinite(expected).all()
    assert_close(runner(result)(feeds)["logits"], expected, "logits")
    assert 5 + LENGTH in product_rows(result, feeds)


def test_products_that_it_is_about_are_named_before_anything_is_built() -> None:
    zoo = build("bert", "torchscript-eager-17")
    assert len(of_real_tokens(load_model(zoo.path), run_once)) == 3 * 6


# -- with other plans ---------------------------------------------------------------------------------------------------


HARD = Plan().without_heads(0, [1, 2]).without_neurons(1, range(9)).without_feed_forward(2)
HARD = HARD.with_hard_attention(1, 2).with_hard_attention(2, 3, "renormalised")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("exporter", ["torchscript-eager-17", "torchscript-sdpa-17", "dynamo-20", "optimum"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_pruned_and_hardened_graph_passes_the_gates(family: str, exporter: str, tmp_path: Path) -> None:
    zoo = build(family, exporter)
    for i, plan in enumerate((HARD, HARD.without_attention(0))):
        for exact in (REMOVED, EVERYTHING):
            full = dataclasses.replace(
                plan, padding="removed", readout=exact.readout, constants=exact.constants, keys_values=exact.keys_values
            )
            save_model(removed(load_model(zoo.path), full), tmp_path / f"{i}.onnx")
            assert verify(zoo.path, tmp_path / f"{i}.onnx", full) < 1e-4


def test_what_is_wrong_on_rows_of_unlike_length_alone_is_refused(tmp_path: Path) -> None:
    """Of padded rows one token is computed, of others all."""
    zoo, path = build("bert", "torchscript-eager-17"), tmp_path / "wrong.onnx"
    proto = onnx.load_from_string(serialized(removed(load_model(zoo.path))))
    limit = next(
        node for node in proto.graph.node if node.op_type == "Where" and node.output[0].startswith("attention_mask")
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 1), np.int64), "one_token"))
    limit.input[1] = "one_token"
    path.write_bytes(proto.SerializeToString())
    assert verify(zoo.path, path, Plan()) < 1e-4
    with pytest.raises(VerifyError, match="differs from the source under the plan"):
        verify(zoo.path, path, REMOVED)


@pytest.mark.parametrize("exporter", ["torchscript-eager-17", "dynamo-20"])
def test_integers_see_real_tokens_alone(exporter: str, tmp_path: Path) -> None:
    """The range of an activation is that of its tensor: without padding it does not depend on how long the longest row is."""
    zoo, path = build("bert", exporter), tmp_path / "out.onnx"
    layers = frozenset(range(3))
    plan = dataclasses.replace(EVERYTHING, keys_values="projected", int8=Int8(layers, layers, tables=True))
    result = apply_plan(load_model(zoo.path), plan, run_once)
    save_model(result, path)
    verify(zoo.path, path, plan)
    rows = product_rows(result, masked(zoo, MASKS["behind the text"]))
    assert 9 + 4 + 1 + 7 in rows and 4 * LENGTH not in rows
    feeds = masked(zoo, [[1] * 5, [1, 1, 0, 0, 0]])
    longer = {name: np.concatenate([array, array[:, ::-1]], axis=1) for name, array in feeds.items()}
    longer["attention_mask"][:, 5:] = 0
    run = runner(result)
    assert_close(run(longer)["logits"], run(feeds)["logits"], "twice as much padding")


def test_a_result_is_recognised_again_and_counted() -> None:
    zoo = build("bert", "torchscript-eager-17")
    source = load_model(zoo.path)
    result = removed(source)
    before, after = recognise(source, run_once), recognise(result, run_once)
    assert [layer.attention and layer.attention.heads for layer in after.layers] == [
        layer.attention and layer.attention.heads for layer in before.layers
    ]
    assert [layer.feed_forward and layer.feed_forward.neurons for layer in after.layers] == [
        layer.feed_forward and layer.feed_forward.neurons for layer in before.layers
    ]
    assert macs(result, run_once, 2, 8) == macs(source, run_once, 2, 8)


# -- nothing to do, plans, refusals ----------------------------------------------------------------------------------------


def test_the_source_is_not_touched_and_the_same_plan_gives_the_same_bytes() -> None:
    zoo = build("roberta", "dynamo-20")
    source = load_model(zoo.path)
    before = serialized(source)
    assert serialized(apply_plan(source, EVERYTHING, run_once)) == serialized(apply_plan(source, EVERYTHING, run_once))
    assert serialized(source) == before


def test_where_no_products_are_left_nothing_is_done() -> None:
    zoo = build("bert", "torchscript-eager-17")
    plan, source = Plan(), load_model(zoo.path)
    for layer in range(3):
        plan = plan.without_attention(layer).without_feed_forward(layer)
    assert serialized(apply_plan(source, dataclasses.replace(plan, padding="removed"), run_once)) == serialized(
        apply_plan(source, plan, run_once)
    )


def test_a_plan_says_so_where_it_is_not_kept() -> None:
    assert '"padding": "removed"' in REMOVED.dumps() and "padding" not in Plan().dumps()
    assert not REMOVED.is_empty and REMOVED.is_exact
    assert Plan.loads(EVERYTHING.dumps()) == EVERYTHING


@pytest.mark.parametrize(
    ("family", "exporter", "reason"),
    [
        (
            "vit",
            "torchscript-eager-17",
            "expected one input with a mask of two axes that says which tokens are real, found none",
        ),
        ("bart-classifier", "torchscript-eager-17", "padded tokens are read there, or the mask does not hide them"),
        ("bert", "torchscript-eager-17+qdq", "rounds activations"),
        ("bert", "torchscript-eager-17+int8", "rounds activations"),
        ("gpt2-tokens", "torchscript-eager-17", "output 'logits' has entries for padded tokens"),
    ],
)
def test_what_cannot_be_exact_is_refused_with_the_reason(family: str, exporter: str, reason: str) -> None:
    source = build(family, exporter).opened()
    before = serialized(source)
    with pytest.raises(PlanError, match=re.escape(reason)) as caught:
        apply_plan(source, REMOVED, run_once)
    assert "\n" not in str(caught.value) and str(caught.value).startswith('"padding": "removed" is not possible: ')
    assert serialized(source) == before


# -- drawn by hand, held to NumPy ---------------------------------------------------------------------------------------------


D = 4
WEIGHT = np.random.default_rng(3).normal(size=(D, D)).astype(np.float32)


def drawn(mix: str, opset: int = 17, batch: Any = "batch") -> ir.Model:
    """x[B,S,D] @ w -> + what `mix` makes of all tokens -> the first token."""
    g = Sketch(opset)
    y = g("MatMul", "x", g.weight(WEIGHT))
    weight = g("Unsqueeze", "attention_mask", g.weight(np.array([2])))
    real = {"masked mean": g("Mul", y, weight), "mean": y}[mix]
    total = g("ReduceSum", real, g.weight(np.array([1])), keepdims=0)
    proto = g.model({"x": [batch, "tokens", D], "attention_mask": [batch, "tokens"]}, total, [batch, D])
    return ir.from_proto(proto)


def test_a_sum_of_masked_tokens_sees_zeros_where_they_are_masked() -> None:
    model, x = drawn("masked mean"), np.random.default_rng(0).normal(size=(4, LENGTH, D)).astype(np.float32)
    graph = ir.from_proto(ir.to_proto(model))
    assert len(remove_padding(graph, run_once)) == 1
    mask = np.array(MASKS["behind the text"], np.float32)
    found = run_session(make_session(serialized(graph), threads=1, optimize=False), {"x": x, "attention_mask": mask})
    expected = np.einsum("bsd,bs->bd", x.astype(np.float64) @ WEIGHT, mask)
    assert_close(next(iter(found.values())), expected, "sum")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: drawn("mean"), "padded tokens are read there, or the mask does not hide them"),
        (lambda: drawn("masked mean", batch=2), "the graph runs at one size alone"),
    ],
    ids=["a mean of all tokens", "one batch size"],
)
def test_what_mixes_padded_tokens_is_refused(model: Callable[[], ir.Model], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        remove_padding(model(), run_once)
