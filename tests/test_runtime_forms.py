"""Fused attention, packed products: the portable graph's answers on rows of unlike length, or the place as it was, and why.

The oracle is the portable graph in ONNX Runtime, its own rewrites off, or the layer in NumPy; a form is run as it is written.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as draw
from small_graphs import Sketch, batched, layer, linear, plain, weights
from surgery import assert_close
from zoo import CASES, FURTHER_CASES, Feeds, build, onnx_outputs

from axformer_onnx.errors import VerifyError
from axformer_onnx.result.form_verification import verify_form
from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.io.files import load_model, save_model, serialized
from axformer_passes.plan import Plan
from axformer_passes.precision import Int8
from axformer_passes.recognise.examination import recognise
from axformer_passes.runtime_forms import RUNTIME_FORMS, Rewritten

TORCHSCRIPT, DYNAMO = "torchscript-eager-17", "dynamo-20"
FORMS = tuple(RUNTIME_FORMS)
EXACT = Plan(readout="narrow", constants="folded")
ABSORBED = dataclasses.replace(EXACT, keys_values="absorbed")
INTEGERS = Int8(frozenset(range(3)), frozenset(range(3)))
RESULTS: dict[str, tuple[Plan, list[int]]] = {
    "the source": (Plan(constants="folded"), [4, 4, 4]),
    "heads and neurons": (
        EXACT.without_heads(0, [1]).without_heads(1, [0, 2, 3]).without_neurons(1, [2, 3]),
        [3, 1, 4],
    ),
    "a block": (EXACT.without_attention(1), [4, 4]),
    "absorbed": (ABSORBED.without_heads(0, [0, 3]), [2, 4]),
    "truncated": (EXACT.with_hard_attention(0, 3), [4, 4]),
    "renormalised": (EXACT.with_hard_attention(1, 3, "renormalised").without_heads(2, [2]), [4, 3]),
    "integers": (dataclasses.replace(EXACT, int8=INTEGERS).without_heads(0, [1]), [3, 4, 4]),
}
"""A plan, and the heads of the attentions that are fused."""


@functools.cache
def portable(what: str, exporter: str = TORCHSCRIPT, family: str = "bert") -> ir.Model:
    """What `apply` makes of a tiny model; not to be edited."""
    return apply_plan(build(family, exporter).opened(), RESULTS[what][0], run_once)


def ragged(exporter: str = TORCHSCRIPT, family: str = "bert") -> list[Feeds]:
    """Rows of which half is padding, beside a full one; a row alone; and holes in the mask."""
    zoo = build(family, exporter)
    feeds = [zoo.feeds(3, 9), zoo.feeds(1, 1, seed=1), zoo.feeds(4, 6, seed=2)]
    for name, array in feeds[-1].items():
        if "mask" in name:
            array[:, 1:-1:2] = 0
    return feeds


def of(form: str, model: ir.Model) -> Rewritten:
    """`model` in a form; it must stay as it is, and the form must load, with shapes that fit together."""
    before = serialized(model)
    found = RUNTIME_FORMS[form].of(model, run_once)
    assert serialized(model) == before
    onnx.shape_inference.infer_shapes(onnx.load_from_string(serialized(found.model)), strict_mode=True, data_prop=True)
    return found


def assert_same(before: ir.Model, after: ir.Model, feeds: list[Feeds]) -> None:
    for some in feeds:
        expected, found = (onnx_outputs(serialized(model), some) for model in (before, after))
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b)


def heads(model: ir.Model) -> list[int]:
    return [n.attributes["num_heads"].as_int() for n in model.graph if n.op_type == "MultiHeadAttention"]


# -- the same answers --------------------------------------------------------------------------------------------------


@pytest.mark.sampled(8)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("exporter", [TORCHSCRIPT, DYNAMO])
@pytest.mark.parametrize("what", RESULTS)
def test_a_form_of_any_result_answers_the_same_on_padded_rows(what: str, exporter: str, form: str) -> None:
    model = portable(what, exporter)
    found = of(form, model)
    assert found.changed
    if what == "integers":
        assert_near(model, found.model, ragged(exporter))
    else:
        assert_same(model, found.model, ragged(exporter))


def assert_near(before: ir.Model, after: ir.Model, feeds: list[Feeds]) -> None:
    """A last bit may tip an integer: within what a step or two of 255 make; to the bit where nothing is fused."""
    for some in feeds:
        expected, found = (onnx_outputs(serialized(model), some) for model in (before, after))
        for a, b in zip(found, expected, strict=True):
            assert np.abs(a - b).max() <= (0.02 * np.abs(b).max() if heads(after) else 0)


@pytest.mark.sampled(8)
@pytest.mark.parametrize("exporter", [TORCHSCRIPT, DYNAMO])
@pytest.mark.parametrize("what", RESULTS)
def test_each_layer_is_fused_with_the_heads_that_it_has_left(what: str, exporter: str) -> None:
    assert heads(of("fused", portable(what, exporter)).model) == RESULTS[what][1]


EXPORTED = frozenset((*CASES, *FURTHER_CASES))
FAMILIES = ("bert", "distilbert", "albert", "mpnet", "mobilebert", "vit", "clip-text", "bart", "t5", "whisper", "llama", "nomic",
            "deberta", "gpt2", "falcon", "swinv2")  # fmt: skip
FILES = [(f, e) for f in FAMILIES for e in (TORCHSCRIPT, DYNAMO) if (f, e) in EXPORTED]


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), FILES)
def test_a_form_of_any_architecture_answers_the_same(family: str, exporter: str) -> None:
    model = portable("the source", exporter, family)
    found = of("packed-fused", model)
    assert found.changed or found.left
    assert len(heads(found.model)) + len(found.left) == sum(n.op_type == "Softmax" for n in model.graph)
    assert_same(model, found.model, ragged(exporter, family))


WAYS: dict[str, tuple[Callable[[Sketch, Any, str], draw.Heads], Callable[..., str], int, int]] = {
    "apart": (draw.separate, draw.attend, 4, 1),
    "batch and heads in one axis": (draw.separate, batched, 4, 1),
    "one product, split": (draw.fused_split, draw.attend, 4, 1),
    "one product, sliced": (draw.fused_slice, draw.attend, 4, 1),
    "one product, a head's parts side by side": (draw.fused_interleaved, draw.attend, 4, 0),
    "keys for two heads": (lambda g, w, x: draw.shared_by("gather")(g, draw.separate(g, w, x)), draw.attend, 2, 0),
}
"""How heads are made, how they attend, key and value heads, attentions that are fused."""


@pytest.mark.parametrize("way", WAYS)
def test_however_an_attention_is_written_its_forms_compute_the_layer(way: str) -> None:
    make, attend, groups, fused = WAYS[way]
    w = weights(groups)
    model = ir.from_proto(layer(lambda g, w, x: attend(g, w, make(g, w, x)), plain, w))
    x = np.random.default_rng(2).normal(size=(2, 5, 12)).astype(np.float32)
    for form in FORMS:
        found = of(form, model).model
        assert len(heads(found)) == (fused if "fused" in form else 0)
        assert_close(onnx_outputs(serialized(found), {"x": x})[0], w.answer(x), way)


# -- masks and scales --------------------------------------------------------------------------------------------------


def masked(add: Callable[[Sketch, str], str], wide: bool = False) -> ir.Model:
    """Attention over x[B,S,12] of 4 heads (values of 5 channels if `wide`), its scores [B,4,S,S] through `add`."""
    rng, g, size = np.random.default_rng(7), Sketch(), 5 if wide else 3
    shapes = ((12, 12), (12, 12), (12, 4 * size), (4 * size, 12))
    w = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    parts = [linear(g, "x", a, rng.normal(size=a.shape[1]).astype(np.float32)) for a in w[:3]]
    q, k, v = (g.transpose(g.reshape(p, 0, 0, 4, n), 0, 2, 1, 3) for p, n in zip(parts, (3, 3, size), strict=True))
    p = g("Softmax", add(g, g("MatMul", q, g.transpose(k, 0, 1, 3, 2))), axis=-1)
    joined = g.reshape(g.transpose(g("MatMul", p, v), 0, 2, 1, 3), 0, 0, 4 * size)
    out = linear(g, joined, w[3], np.zeros(12, np.float32))
    return ir.from_proto(g.model({"x": ["b", "s", 12], "mask": ["b", "s"]}, out, ["b", "s", 12]))


def _keys(g: Sketch) -> str:
    return str(g("Unsqueeze", "mask", g.weight(np.array([1, 2]))))


def _number(g: Sketch, value: float) -> str:
    return g.weight(np.float32(value))


MASKS: dict[str, Callable[[Sketch, str], str]] = {
    "none": lambda g, s: g("Mul", s, _number(g, 0.3)),
    "a root": lambda g, s: g("Div", s, g("Sqrt", _number(g, 3))),
    "added": lambda g, s: g("Add", g("Div", s, _number(g, 4)), g("Mul", _keys(g), _number(g, -9))),
    "added first": lambda g, s: g("Add", g("Mul", _keys(g), _number(g, -9)), g("Mul", _number(g, 0.3), s)),
    "a table": lambda g, s: g("Add", s, g.weight(np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1))),
    "two": lambda g, s: g("Add", MASKS["added"](g, s), g("Unsqueeze", "mask", g.weight(np.array([1, 3])))),
    "hidden": lambda g, s: g("Where", g("Greater", _keys(g), _number(g, 0.5)), _number(g, -np.inf), s),
    "shown": lambda g, s: g("Where", g("Greater", _number(g, 0.5), _keys(g)), s, _number(g, -3.4e38)),
}  # fmt: skip


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_masks_and_scales_are_the_graphs_own(mask: str, wide: bool) -> None:
    model = masked(MASKS[mask], wide)
    rng = np.random.default_rng(1)
    rows = np.array([[0, 0, 0, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 1, 1]], np.float32)
    feeds = {"x": rng.normal(size=(3, 5, 12)).astype(np.float32), "mask": rows}
    for form in FORMS:
        found = of(form, model)
        assert found.changed and len(heads(found.model)) == ("fused" in form)
        assert_same(model, found.model, [feeds])


REFUSED: dict[str, tuple[Callable[[Sketch, str], str], str]] = {
    "scaled behind the mask": (
        lambda g, s: g("Mul", g("Add", s, _keys(g)), _number(g, 0.5)), "scores are scaled after a mask was added"),
    "capped": (lambda g, s: g("Tanh", s), "its scores pass Tanh"),
    "a finite fill": (
        lambda g, s: g("Where", g("Greater", _keys(g), _number(g, 0.5)), _number(g, -5), s), "no constant below -1e.30"),
    "a computed scale": (lambda g, s: g("Mul", s, g("ReduceSum", "mask", keepdims=0)), "scaled by no constant number"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_one_operator_does_not_compute_is_left_with_the_reason(what: str) -> None:
    model = masked(REFUSED[what][0])
    found = of("fused", model)
    assert not found.changed and serialized(found.model) == serialized(model)
    assert len(found.left) == 1 and re.search(REFUSED[what][1], found.left[0])


@pytest.mark.parametrize(
    ("what", "family", "reason"),
    [
        ("truncated", "bert", "its probabilities .* readers"),
        ("renormalised", "bert", "its scores pass ScatterElements"),
        ("absorbed", "bert", "its probabilities are read by Reshape"),
        ("the source", "nomic", "its queries are no tensor"),
    ],
)
def test_hard_rotary_and_absorbed_attention_keep_their_form(what: str, family: str, reason: str) -> None:
    found = of("fused", portable(what, TORCHSCRIPT, family))
    assert any(re.search(reason, why) for why in found.left)


# -- packed ------------------------------------------------------------------------------------------------------------


def test_products_of_integers_are_packed_to_the_same_bits() -> None:
    model = portable("integers")
    found = of("packed", model).model
    for feeds in ragged():
        for a, b in zip(*(onnx_outputs(serialized(m), feeds) for m in (found, model)), strict=True):
            np.testing.assert_array_equal(a, b)
    count = [sum(n.op_type == "MatMulInteger" for n in m.graph) for m in (model, found)]
    assert count == [18, 13]  # of three layers: twice three in one; behind the narrow read-out two in one


def test_a_weight_that_others_read_is_not_packed() -> None:
    """ALBERT's layers share theirs: packing would copy them."""
    found = of("packed", portable("the source", TORCHSCRIPT, "albert"))
    assert not found.changed


# -- read, cut and verified again --------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_inspected_and_cut_once_more(form: str) -> None:
    model = portable("heads and neurons")
    found = of(form, model).model
    layers = recognise(found, run_once).layers
    assert [one.attention.heads for one in layers if one.attention] == [3, 1, 4]
    plan = Plan().without_heads(0, [1]).without_heads(2, [0, 3]).without_neurons(0, [4])
    cut = apply_plan(found, plan, run_once)
    assert heads(cut) == ([2, 1, 2] if "fused" in form else [])
    assert_same(apply_plan(model, plan, run_once), cut, ragged())


def test_a_file_as_exported_has_its_forms_too() -> None:
    """Its constants are nodes, its sizes computed."""
    model = build("bert", TORCHSCRIPT).opened()
    found = of("packed-fused", model).model
    assert heads(found) == [4, 4, 4]
    assert_same(model, found, ragged())


def test_equal_models_give_equal_bytes() -> None:
    for form in FORMS:
        assert len({serialized(of(form, portable("heads and neurons")).model) for _ in range(2)}) == 1


def _saved(model: ir.Model, path: Path) -> Path:
    save_model(model, path)
    return path


def _first(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "MultiHeadAttention")


def _fewer_heads(model: ir.Model) -> None:
    _first(model).attributes["num_heads"] = ir.AttrInt64("num_heads", 2)


def _other_scale(model: ir.Model) -> None:
    _first(model).attributes["scale"] = ir.AttrFloat32("scale", 0.9)


def _no_mask(model: ir.Model) -> None:
    _first(model).replace_input_with(5, None)


def _swapped(model: ir.Model) -> None:
    node = _first(model)
    query, key = node.inputs[:2]
    node.replace_input_with(0, key)
    node.replace_input_with(1, query)


def _other_face(model: ir.Model) -> None:
    model.graph.outputs[0].name = "answers"


@pytest.mark.sampled(5)
@pytest.mark.parametrize("what", ["the source", "integers"])
@pytest.mark.parametrize("plant", [_fewer_heads, _other_scale, _no_mask, _swapped, _other_face])
def test_a_planted_mistake_is_refused(plant: Callable[[ir.Model], None], what: str, tmp_path: Path) -> None:
    model = portable(what)
    before = _saved(model, tmp_path / "model.onnx")
    form = of("fused", model).model
    assert verify_form(before, _saved(form, tmp_path / "right.onnx")) < 1e-5
    plant(form)
    wrong = _saved(form, tmp_path / "wrong.onnx")
    load_model(wrong)
    with pytest.raises(VerifyError, match=r"differs from the portable graph's by|the outputs changed"):
        verify_form(before, wrong)
