"""Weights that several layers read: who shares, what a plan does to them, and what the file holds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import small_graphs as sg
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from search_fake import anatomy
from shared_fake import TOGETHER, tied

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.blocks.parameters import parameters_by_layer, removed_parameters
from axformer_passes.blocks.shared import SharedGroup, expanded, linears, ranges, shared_groups
from axformer_passes.io.file_size import parameters_and_size
from axformer_passes.io.files import save_model
from axformer_passes.plan import Plan, SharedWeights
from axformer_passes.recognise.examination import recognise

MODES: tuple[SharedWeights, ...] = ("separate", "together")


# -- who shares -------------------------------------------------------------------------------------------------------


def test_layers_that_read_the_same_weights_are_a_group_for_each_kind_of_block() -> None:
    assert shared_groups(anatomy()) == ()
    assert shared_groups(tied([[0, 2], [1, 3]])) == tuple(
        SharedGroup(kind, layers)  # type: ignore[arg-type]
        for layers in ((0, 2), (1, 3))
        for kind in ("attention", "feed_forward")
    )
    assert shared_groups(tied([[1, 2, 3]], kinds=("feed_forward",))) == (SharedGroup("feed_forward", (1, 2, 3)),)


@pytest.mark.parametrize("part", ["query", "key", "value", "output"])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_one_weight_of_its_own_is_enough_to_be_no_group(part: str, name: str) -> None:
    model = tied([[0, 1]], 2)
    block = model.layers[1].attention
    own = dataclasses.replace(getattr(block, part), **{name: "another"})
    layer = dataclasses.replace(model.layers[1], attention=dataclasses.replace(block, **{part: own}))  # type: ignore[type-var]
    model = dataclasses.replace(model, layers=(model.layers[0], layer))
    assert shared_groups(model) == (SharedGroup("feed_forward", (0, 1)),)


def test_layer_numbers_in_words() -> None:
    assert [ranges(x) for x in ([3], range(12), [0, 2, 4], [0, 1, 5, 7, 8])] == ["3", "0-11", "0, 2, 4", "0-1, 5, 7-8"]


# -- expansion --------------------------------------------------------------------------------------------------------


def test_ids_are_united_over_each_group_and_written_out_for_every_layer() -> None:
    plan = TOGETHER.without_heads(0, [1]).without_heads(2, [3]).without_heads(1, [0]).without_neurons(3, [5])
    found = expanded(plan.with_hard_attention(2, 7), tied([[0, 2], [1, 3]]))
    assert found.shared_weights == "separate"
    assert found.heads == {0: {1, 3}, 2: {1, 3}, 1: {0}, 3: {0}}
    assert found.neurons == {1: {5}, 3: {5}}
    assert list(found.hard_attention) == [2]


def test_a_layer_without_its_block_takes_nothing_from_the_others() -> None:
    model = tied([[0, 1, 2]], 3)
    for plan in (
        TOGETHER.without_heads(0, [1]).without_attention(0),
        TOGETHER.without_attention(0).without_heads(0, [1]),
    ):
        found = expanded(plan, model)
        assert (found.attention_blocks, found.heads) == ({0}, {1: {1}, 2: {1}})
    found = expanded(TOGETHER.without_neurons(1, [2]).without_feed_forward(1), model)
    assert (found.feed_forward_blocks, found.neurons) == ({1}, {0: {2}, 2: {2}})


def test_a_separate_plan_and_a_model_without_shared_weights_stay_as_they_are() -> None:
    plan = Plan().without_heads(0, [1]).without_attention(2)
    assert expanded(plan, tied([[0, 1]])) is plan
    together = dataclasses.replace(plan, shared_weights="together")
    assert expanded(together, anatomy(4)) == plan


@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1))
def test_expansion_is_the_same_twice_and_fits_the_model(seed: int) -> None:
    draw = np.random.default_rng(seed)
    model, plan = tied([[0, 2], [1, 3]]), TOGETHER
    for layer in range(4):
        if draw.random() < 0.5:
            plan = plan.without_heads(layer, map(int, draw.choice(4, 2)))
        if draw.random() < 0.3:
            plan = plan.without_attention(layer)
    once = expanded(plan, model)
    once.validate(model)
    assert expanded(dataclasses.replace(once, shared_weights="together"), model) == once
    for a, b in ((0, 2), (1, 3)):
        left = [once.heads.get(i, frozenset()) for i in (a, b) if i not in once.attention_blocks]
        assert len(set(left)) <= 1


# -- counting ---------------------------------------------------------------------------------------------------------


def test_a_shared_weight_counts_once_and_a_copy_counts_as_growth() -> None:
    model = tied([[0, 1, 2, 3]])
    head = 3 * 17 * 4 + 4 * 16  # columns and biases of query, key and value, rows of the output projection
    assert removed_parameters(model, TOGETHER.without_heads(2, [1])) == head
    assert removed_parameters(model, Plan().without_heads(2, [1])) == head - (3 * 17 * 16 + 16 * 16)
    everywhere = Plan()
    for i in range(4):
        everywhere = everywhere.without_heads(i, [1])
    assert removed_parameters(model, everywhere) == head


def test_shared_blocks_leave_the_file_with_the_last_layer_that_reads_them() -> None:
    model, plan = tied([[0, 1, 2, 3]]), Plan()
    for i in range(4):
        assert removed_parameters(model, plan) == 0
        plan = plan.without_attention(i)
    assert removed_parameters(model, plan) == 4 * 17 * 16
    assert parameters_by_layer(model) == [4 * 17 * 16 + 17 * 32 + 33 * 16, 0, 0, 0]


# -- drawn graphs -----------------------------------------------------------------------------------------------------


class Tied(sg.Sketch):
    """A sketch in which one array is one initializer, however often it is read."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[int, tuple[Any, str]] = {}

    def weight(self, array: Any, name: str | None = None) -> str:
        if id(array) not in self._names:
            self._names[id(array)] = array, super().weight(array, name)
        return self._names[id(array)][1]


def two_layers(g: sg.Sketch, first: sg.Weights, second: sg.Weights, x: str = "x") -> str:
    """Two layers of small_graphs; returns the name of what they put out."""
    for w in (first, second):
        z = sg.norm(g, g("Add", x, sg.attend(g, w, sg.separate(g, w, x))))
        x = sg.norm(g, g("Add", z, sg.plain(g, w, z)))
    return x


def drawn(g: sg.Sketch, first: sg.Weights, second: sg.Weights) -> ir.Model:
    return ir.from_proto(
        g.model({"x": ["batch", "tokens", sg.D]}, two_layers(g, first, second), ["batch", "tokens", sg.D])
    )


def outputs(model: ir.Model, x: Any) -> Any:
    return run_once(ir.to_proto(model).SerializeToString(), {"x": x})["y"]


def matrices(model: ir.Model) -> list[tuple[int, ...]]:
    """Shapes of the float matrices of a graph."""
    tensors = [v.const_value for v in model.graph.initializers.values()]
    return sorted(
        t.numpy().shape for t in tensors if t is not None and t.numpy().ndim == 2 and t.dtype.is_floating_point()
    )


X = np.random.default_rng(5).normal(size=(2, 5, sg.D)).astype(np.float32)


@pytest.mark.parametrize("sketch", [Tied, sg.Sketch], ids=["one initializer", "equal copies"])
def test_shared_weights_are_seen_and_cut_once_whether_written_once_or_for_each_layer(sketch: type[sg.Sketch]) -> None:
    w = sg.weights()
    model = drawn(sketch(), w, w)
    found = recognise(model, run_once)
    if sketch is Tied:
        assert [group.kind for group in shared_groups(found)] == ["attention", "feed_forward"]
        result = apply_plan(model, TOGETHER.without_heads(1, [2]).without_neurons(0, [0, 7]), run_once)
        np.testing.assert_allclose(outputs(result, X), _twice(w, [2], [0, 7]), rtol=1e-5, atol=1e-5)
    else:  # biases are not compared, so the layers are no group; equal matrices are one all the same
        names = [[x.weight for x in linears(block)] for layer in found.layers for block in layer.blocks]
        assert names[:2] == names[2:] and shared_groups(found) == ()
        plan = Plan().without_heads(0, [2]).without_heads(1, [2]).without_neurons(0, [0, 7]).without_neurons(1, [0, 7])
        result = apply_plan(model, plan, run_once)
        np.testing.assert_allclose(outputs(result, X), _twice(w, [2], [0, 7]), rtol=1e-5, atol=1e-5)
    kept, left = sg.E * (sg.H - 1), sg.F - 2
    assert matrices(result) == sorted([(sg.D, kept)] * 3 + [(kept, sg.D), (sg.D, left), (left, sg.D)])


def _twice(w: sg.Weights, heads: list[int], neurons: list[int]) -> Any:
    return w.answer(w.answer(X.astype(np.float64), heads, neurons), heads, neurons)


def test_separate_cuts_the_layer_that_is_named_and_the_other_keeps_its_weights() -> None:
    w = sg.weights()
    model = drawn(Tied(), w, w)
    result = apply_plan(model, Plan().without_heads(1, [2]).without_neurons(0, [0, 7]), run_once)
    expected = w.answer(w.answer(X.astype(np.float64), neurons=[0, 7]), heads=[2])
    np.testing.assert_allclose(outputs(result, X), expected, rtol=1e-5, atol=1e-5)
    assert len(matrices(result)) == 2 * len(matrices(model))


def test_layers_that_share_the_query_alone_are_no_group_and_only_the_named_one_is_cut() -> None:
    first, second = sg.weights(seed=1), sg.weights(seed=2)
    second.parts.update(wq=first["wq"], bq=first["bq"])
    model = drawn(Tied(), first, second)
    assert shared_groups(recognise(model, run_once)) == ()
    for mode in MODES:
        result = apply_plan(model, Plan(shared_weights=mode).without_heads(0, [1]), run_once)
        expected = second.answer(first.answer(X.astype(np.float64), heads=[1]))
        np.testing.assert_allclose(outputs(result, X), expected, rtol=1e-5, atol=1e-5)
        assert matrices(result).count((sg.D, sg.D)) == 4  # of the layer that is whole


def test_a_weight_that_is_an_embedding_too_stays_whole_there() -> None:
    """ids -> rows of `wo` -> two layers that share all, their output projection the same `wo`."""
    w, g = sg.weights(), Tied()
    y = two_layers(g, w, w, g("Gather", g.weight(w["wo"]), "x", axis=0))
    model = ir.from_proto(g.model({"x": ["batch", "tokens"]}, y, ["batch", "tokens", sg.D], x=TensorProto.INT64))
    groups = shared_groups(recognise(model, run_once))
    assert [group.layers for group in groups] == [(0, 1), (0, 1)]
    ids = np.random.default_rng(0).integers(0, sg.D, (2, 5))
    result = apply_plan(model, TOGETHER.without_heads(0, [1]), run_once)
    expected = w.answer(w.answer(w["wo"][ids].astype(np.float64), heads=[1]), heads=[1])
    np.testing.assert_allclose(outputs(result, ids), expected, rtol=1e-5, atol=1e-5)
    kept = sg.E * (sg.H - 1)
    assert matrices(result).count((kept, sg.D)) == 1 and matrices(result).count((sg.D, sg.D)) == 1


# -- ALBERT -----------------------------------------------------------------------------------------------------------

zoo = pytest.importorskip("zoo", reason="needs the [export] extra (torch, transformers)")
PLAN = TOGETHER.without_heads(1, [0, 2]).without_neurons(2, [3, 17, 55]).without_attention(0).with_hard_attention(2, 3)
WRITTEN_OUT = (
    Plan().without_heads(1, [0, 2]).without_heads(2, [0, 2]).without_attention(0).with_hard_attention(2, 3)
    .without_neurons(0, [3, 17, 55]).without_neurons(1, [3, 17, 55]).without_neurons(2, [3, 17, 55])
)  # fmt: skip
EXPORTERS = ("torchscript-eager-17", "torchscript-sdpa-14", "dynamo-23")


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_albert_cut_together_is_torch_with_the_shared_modules_parts_zero_in_every_layer(exporter: str) -> None:
    import surgery

    model = zoo.build("albert", exporter)
    graph = surgery.serialized(surgery.removed(model, PLAN))
    stages = surgery.sessions(model.path)
    for batch, length in ((1, 1), (3, 12)):
        feeds, expected = surgery.clear_sample(model, WRITTEN_OUT, batch, length)
        surgery.assert_close(zoo.onnx_outputs(graph, feeds)[0], expected)
        gated = surgery.gated_outputs(stages, expanded(PLAN, stages.staged.examined.anatomy), feeds)
        surgery.assert_close(gated[0], expected)
        assert [s.digest for s in stages.settings(PLAN)] == [s.digest for s in stages.settings(WRITTEN_OUT)]


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_albert_cut_separately_is_torch_with_the_parts_zero_in_the_layers_that_are_named(exporter: str) -> None:
    import surgery

    plan = dataclasses.replace(PLAN, shared_weights="separate")
    surgery.assert_three_ways_agree(zoo.build("albert", exporter), plan, ((3, 12),))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_albert_together_shrinks_the_file_by_what_was_counted_and_separately_grows_it(
    exporter: str, tmp_path: Path
) -> None:
    from axformer_passes.io.files import load_model

    model = zoo.build("albert", exporter)
    source = load_model(model.path)
    found = recognise(source, run_once)
    assert [group.layers for group in shared_groups(found)] == [(0, 1, 2), (0, 1, 2)]
    before, size = parameters_and_size(model.path)
    saved = {}
    cut = Plan().without_heads(1, [0, 2]).without_neurons(2, [3, 17, 55])
    for mode in MODES:
        plan = dataclasses.replace(cut, shared_weights=mode)
        path = tmp_path / f"{mode}.onnx"
        save_model(apply_plan(source, plan, run_once), path)
        parameters, saved[mode] = parameters_and_size(path)
        copies = before - parameters - removed_parameters(found, plan)
        assert copies == (2 * 2 * 32 * 56 if exporter == "dynamo-23" else 0)  # dynamo wrote the large matrices thrice
        assert (removed_parameters(found, plan) > 0) == (mode == "together")
    assert saved["together"] < min(size, saved["separate"])


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_albert_cut_together_holds_every_projection_once(exporter: str) -> None:
    from axformer_passes.io.files import load_model

    plan = dataclasses.replace(PLAN, hard_attention={})
    result = apply_plan(load_model(zoo.build("albert", exporter).path), plan, run_once)
    shapes = [shape for shape in matrices(result) if {16, 53} & set(shape)]  # 2 of 4 heads of 8, 53 of 56 neurons
    assert sorted(shapes) == [(16, 32), (32, 16), (32, 16), (32, 16), (32, 53), (53, 32)]


def test_albert_that_was_cut_together_still_shares() -> None:
    from axformer_passes.io.files import load_model

    plan = dataclasses.replace(PLAN, hard_attention={})
    result = apply_plan(load_model(zoo.build("albert", "torchscript-eager-17").path), plan, run_once)
    groups = [(group.kind, len(group.layers)) for group in shared_groups(recognise(result, run_once))]
    assert groups == [("feed_forward", 3), ("attention", 2)]
