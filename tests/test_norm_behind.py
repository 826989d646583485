"""A norm between a block and the addition to the residual stream (Gemma 2 and 3, OLMo 2, Swin v2), or a roll of its tokens (Swin's
shifted windows): of a block that is not added nothing is left, whatever its norm would have been. The oracle is NumPy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import small_graphs as draw
from small_graphs import Array, D, Sketch
from surgery import assert_close
from zoo import onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.io.files import serialized
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise

GAIN = np.linspace(0.5, 1.5, D, dtype=np.float32)


def root_mean_square(g: Sketch, x: str) -> str:
    """x / sqrt(mean(x^2) + c) * gain: x is read twice."""
    square = g("ReduceMean", g("Mul", x, x), axes=[-1], keepdims=1)
    root = g("Sqrt", g("Add", square, g.weight(np.float32(1e-5))))
    return g("Mul", g("Div", x, root), g.weight(GAIN))


def centred(g: Sketch, x: str) -> str:
    """A LayerNorm in steps: x is read twice, and so is what is left of it without its mean."""
    apart = g("Sub", x, g("ReduceMean", x, axes=[-1], keepdims=1))
    return root_mean_square(g, apart)


def in_numpy(x: Array, *, centre: bool) -> Array:
    x = x - x.mean(-1, keepdims=True) if centre else x
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * GAIN.astype(np.float64))


def drawn(behind: Callable[[Sketch, str], str]) -> ir.Model:
    """x + norm(attention(x)), and then z + norm(feed-forward(z))."""
    g, w = Sketch(), draw.weights()
    z = g("Add", "x", behind(g, draw.attend(g, w, draw.separate(g, w, "x"))))
    up = g("Relu", draw.linear(g, z, w["up"], w["bu"]))
    out = g("Add", z, behind(g, draw.linear(g, up, w["down"], w["bd"])))
    return ir.from_proto(g.model({"x": ["b", "s", D]}, out, ["b", "s", D]))


def answer(x: Array, *, centre: bool, attention: bool, feed_forward: bool) -> Array:
    """The same, one of the blocks left out, by the weights alone."""
    w = {name: value.astype(np.float64) for name, value in draw.weights().parts.items()}
    z = x.astype(np.float64)
    if attention:
        z = z + in_numpy(attended_in_numpy(z), centre=centre)
    if feed_forward:
        z = z + in_numpy(np.maximum(z @ w["up"] + w["bu"], 0) @ w["down"] + w["bd"], centre=centre)
    return z


NORMS = {"root mean square": (root_mean_square, False), "LayerNorm in steps": (centred, True)}


@pytest.mark.parametrize(("norm", "centre"), NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("gone", ["nothing", "attention", "feed_forward"])
def test_a_block_with_a_norm_behind_it_is_taken_out_whole(norm: Callable[..., str], centre: bool, gone: str) -> None:
    model = drawn(norm)
    plan = {"nothing": Plan(), "attention": Plan().without_attention(0), "feed_forward": Plan().without_feed_forward(0)}
    result = apply_plan(model, plan[gone], run_once)
    for batch, length in ((1, 1), (2, 5)):
        x = np.random.default_rng(length).normal(size=(batch, length, D)).astype(np.float32)
        expected = answer(x, centre=centre, attention=gone != "attention", feed_forward=gone != "feed_forward")
        assert_close(onnx_outputs(serialized(result), {"x": x})[0], expected)
    if gone != "nothing":
        assert len(result.graph) < len(model.graph) - 10


def rolled(g: Sketch, x: str, first: str | None = None) -> str:
    """The first token goes behind the last one, as Swin's shifted windows go back to their places; or `first` in its place."""

    def part(start: int, end: int, of: str) -> str:
        bounds = (g.weight(np.array([n], np.int64)) for n in (start, end, 1))
        return g("Slice", of, *bounds)

    return g("Concat", part(1, 2**31, x), part(0, 1, first or x), axis=1)


@pytest.mark.parametrize("gone", ["nothing", "attention"])
def test_a_block_whose_tokens_are_rolled_is_taken_out_whole(gone: str) -> None:
    g, w = Sketch(), draw.weights()
    attended = rolled(g, draw.attend(g, w, draw.separate(g, w, "x")))
    model = ir.from_proto(g.model({"x": ["b", "s", D]}, draw.norm(g, g("Add", "x", attended)), ["b", "s", D]))
    x = np.random.default_rng(5).normal(size=(2, 5, D)).astype(np.float32)
    result = apply_plan(model, Plan().without_attention(0) if gone == "attention" else Plan(), run_once)
    bare = np.zeros_like(x) if gone == "attention" else np.roll(attended_in_numpy(x), -1, axis=1)
    assert_close(
        onnx_outputs(serialized(result), {"x": x})[0], onnx_outputs(normed(), {"x": (x + bare).astype(np.float32)})[0]
    )
    assert (gone == "attention") == ("Slice" not in {node.op_type for node in result.graph})


def normed() -> bytes:
    g = Sketch()
    return bytes(g.model({"x": ["b", "s", D]}, draw.norm(g, "x"), ["b", "s", D]).SerializeToString())


def attended_in_numpy(x: Array) -> Array:
    w = {name: value.astype(np.float64) for name, value in draw.weights().parts.items()}
    q, k, v = ((x @ w[f"w{n}"] + w[f"b{n}"]).reshape(*x.shape[:2], draw.H, -1).transpose(0, 2, 1, 3) for n in "qkv")
    s = q @ k.swapaxes(2, 3) * draw.E**-0.5
    p = np.exp(s - s.max(-1, keepdims=True))
    read = (p / p.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(*x.shape[:2], -1)
    return np.asarray(read @ w["wo"] + w["bo"])


def test_a_token_of_the_stream_among_the_block_s_own_is_no_roll() -> None:
    g, w = Sketch(), draw.weights()
    attended = draw.attend(g, w, draw.separate(g, w, "x"))
    mixed = g("Add", rolled(g, attended, first="x"), rolled(g, attended))
    (layer,) = recognise(
        ir.from_proto(g.model({"x": ["b", "s", D]}, g("Add", "x", mixed), ["b", "s", D])), run_once
    ).layers
    assert layer.attention is not None and layer.attention.sum is None


def test_what_lets_something_else_in_is_no_norm_of_the_block() -> None:
    """norm(attention(x)) that is scaled by the stream itself: it is read twice, and the stream goes in between."""

    def gated(g: Sketch, x: str) -> str:
        return g("Mul", g("Mul", x, g("Sigmoid", g("Add", x, "x"))), g.weight(GAIN))

    (layer,) = recognise(drawn(gated), run_once).layers
    assert layer.attention is not None and layer.attention.sum is None
    assert (
        layer.attention.why is not None and "is read 2 times on its way to the residual stream" in layer.attention.why
    )


def test_another_projection_is_no_step_of_a_norm() -> None:
    """Behind the block its output is read by two projections, whose product is added: no norm, though one tensor comes out."""

    def projected(g: Sketch, x: str) -> str:
        one, two = (g("MatMul", x, g.weight(np.eye(D, dtype=np.float32) * n)) for n in (1, 2))
        return g("Mul", one, two)

    (layer, *_) = recognise(drawn(projected), run_once).layers
    assert layer.attention is not None and layer.attention.sum is None
