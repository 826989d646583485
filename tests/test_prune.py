"""Pruning in every way that a layer can be written: the cut graph and the gated graph = NumPy with the activations zeroed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as draw
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from small_graphs import D, E, F, H, Heads, Sketch, Weights, Writer, attend, linear
from surgery import assert_close, gated_outputs
from zoo import onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_passes.apply import apply_plan
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise


def by(project: Callable[..., str]) -> Writer:
    """Separate projections, all four written by `project`."""

    def write(g: Sketch, w: Weights, x: str) -> str:
        return attend(g, w, draw.separate(g, w, x, project))

    return write


def of(heads: Callable[[Sketch, Weights, str], Heads], share: str | None = None) -> Writer:
    """Query, key, value by `heads`, repeated for grouped queries by `share`."""

    def write(g: Sketch, w: Weights, x: str) -> str:
        found = heads(g, w, x)
        return attend(g, w, draw.shared_by(share)(g, found) if share else found)

    return write


def alibi(g: Sketch, w: Weights, x: str) -> str:
    """A constant slope for each head times a computed distance."""

    def biased(g: Sketch, scores: str) -> str:
        tokens = g("Gather", g("Shape", scores), g.weight(np.array(-1)))
        steps = g("Cast", g("Range", g.weight(np.array(0)), tokens, g.weight(np.array(1))), to=1)
        slopes = g.weight(SLOPES.reshape(1, H, 1, 1))
        return str(g("Add", scores, g("Mul", slopes, steps)))

    return attend(g, w, draw.separate(g, w, x), biased)


def relative(g: Sketch, w: Weights, x: str) -> str:
    """A table [distance, head] looked up by computed distances: no label reaches it, it follows the scores."""

    def biased(g: Sketch, scores: str) -> str:
        tokens = g("Gather", g("Shape", scores), g.weight(np.array(-1)))
        steps = g("Range", g.weight(np.array(0)), tokens, g.weight(np.array(1)))
        looked_up = g("Gather", g.weight(TABLE), g("Mod", steps, g.weight(np.array(5))), axis=0)
        bias = g("Unsqueeze", g.transpose(looked_up, 1, 0), g.weight(np.array([0, 2])))
        return str(g("Add", scores, bias))

    return attend(g, w, draw.separate(g, w, x), biased)


def node(rank: int, groups: int = H) -> Writer:
    """One Attention node (operator set 23), on [B,H,S,E] or on [B,S,H*E]."""

    def write(g: Sketch, w: Weights, x: str) -> str:
        if rank == 4:
            context = g.transpose(g("Attention", *draw.separate(g, w, x)), 0, 2, 1, 3)
            return linear(g, g.reshape(context, 0, 0, H * E), w["wo"], w["bo"])
        parts = [linear(g, x, w[f"w{n}"], w[f"b{n}"]) for n in "qkv"]
        return linear(g, g("Attention", *parts, q_num_heads=H, kv_num_heads=groups), w["wo"], w["bo"])

    return write


def node_with_slopes(g: Sketch, w: Weights, x: str) -> str:
    """One Attention node whose mask [1,H,S,T] differs between heads."""
    tokens = g("Gather", g("Shape", x), g.weight(np.array(1)))
    steps = g("Cast", g("Range", g.weight(np.array(0)), tokens, g.weight(np.array(1))), to=1)
    square = g("Expand", steps, g.sizes(x, 1, 1))
    mask = g("Mul", g.weight(SLOPES.reshape(1, H, 1, 1)), square)
    context = g.transpose(g("Attention", *draw.separate(g, w, x), mask), 0, 2, 1, 3)
    return linear(g, g.reshape(context, 0, 0, H * E), w["wo"], w["bo"])


SLOPES = np.array([0.5, -0.25, 0.125, 1.0], np.float32)
TABLE = np.random.default_rng(5).normal(size=(5, H)).astype(np.float32)


def by_slope(scores: Any) -> Any:
    return scores + SLOPES.reshape(1, H, 1, 1) * np.arange(scores.shape[-1])


def by_table(scores: Any) -> Any:
    return scores + TABLE[np.arange(scores.shape[-1]) % 5].T[None, :, None]


ATTENTIONS: dict[str, Writer] = {
    "matmul": by(draw.linear),
    "gemm": by(draw.gemm),
    "transposed weights": by(draw.transposed),
    "reshaped weights": by(draw.reshaped),
    "one Transpose and one Cast for two projections": of(draw.tied),
    "half precision weights": by(draw.halved),
    "function calls": by(draw.called),
    "constant nodes": by(draw.constants),
    "convolutions": lambda g, w, x: attend(g, w, draw.separate(g, w, x, draw.convolved)),
    "fused, Split": of(draw.fused_split),
    "fused, Slice": of(draw.fused_slice),
    "fused, Gather": of(draw.fused_stack),
    "fused, interleaved by head": of(draw.fused_interleaved),
    "batch x heads": lambda g, w, x: draw.batched(g, w, draw.separate(g, w, x)),
    "slopes": alibi,
    "relative positions": relative,
    "Attention node, 3-D": node(3),
    "Attention node, 4-D": node(4),
    "Attention node, slopes": node_with_slopes,
}
SCORES = {"slopes": by_slope, "Attention node, slopes": by_slope, "relative positions": by_table}
GROUPED: dict[str, Writer] = {
    f"{way}, {heads.__name__}": of(heads, way)
    for way in ("expand", "tile", "gather")
    for heads in (draw.separate, draw.fused_split, draw.fused_slice)
} | {"Attention node, 3-D": node(3, 2), "Attention node, 4-D": node(4)}
FEED_FORWARDS: dict[str, Writer] = {
    "plain": draw.plain,
    **{p.__name__: functools.partial(draw.plain, project=p) for p in (draw.gemm, draw.halved, draw.called)},
    "in two parts": draw.in_two_parts,
    "pieces": draw.pieces,
    "interleaved": draw.interleaved,
}
PROPERTY = settings(max_examples=6, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
SOME_HEADS = st.sets(st.integers(0, H - 1), max_size=H - 1)
SOME_NEURONS = st.sets(st.integers(0, F - 1), max_size=F - 1)


@functools.lru_cache(maxsize=64)
def drawn(kind: str, name: str) -> tuple[onnx.ModelProto, Weights, StageSessions]:
    table = {"attention": ATTENTIONS, "grouped": GROUPED}.get(kind)
    w = draw.weights(groups=2 if kind == "grouped" else H)
    attention, feed = (table[name], draw.plain) if table else (ATTENTIONS["matmul"], FEED_FORWARDS[name])
    proto = draw.layer(attention, feed, w, opset=23 if name.startswith("Attention node") else 17)
    onnx.checker.check_model(proto, full_check=True)
    return proto, w, StageSessions(ir.from_proto(proto), threads=1)


def largest(k: int) -> Callable[[Any], Any]:
    """Scores -> the same with all but the k largest of each row at minus infinity."""

    def kept(scores: Any) -> Any:
        order = np.argsort(-scores, axis=-1, kind="stable")[..., k:]
        hard = scores.copy()
        np.put_along_axis(hard, order, -np.inf, axis=-1)
        return hard

    return kept


def check(kind: str, name: str, plan: Plan, heads: set[int], neurons: set[int], k: int | None = None) -> None:
    """`plan` on the drawing = NumPy with `heads` (query heads) and `neurons` zeroed, at two shapes, cut and gated.

    k   of renormalised hard attention in the plan
    """
    proto, w, stages = drawn(kind, name)
    result = ir.to_proto(apply_plan(ir.from_proto(proto), plan, run_once))
    onnx.checker.check_model(result, full_check=True)
    for batch, tokens in ((1, 1), (3, 7)):
        x = np.random.default_rng(tokens).normal(size=(batch, tokens, D)).astype(np.float32)
        scores = largest(k) if k else SCORES.get(name, lambda s: s)
        expected = w.answer(x, heads, neurons, scores)
        assert_close(onnx_outputs(result.SerializeToString(), {"x": x})[0], expected, name)
        assert_close(gated_outputs(stages, plan, {"x": x})[0], expected, f"{name}, gated")


@pytest.mark.parametrize("name", ATTENTIONS)
@PROPERTY
@given(heads=SOME_HEADS, neurons=SOME_NEURONS)
def test_attention_is_pruned_however_it_is_written(name: str, heads: set[int], neurons: set[int]) -> None:
    check("attention", name, Plan().without_heads(0, heads).without_neurons(0, neurons), heads, neurons)


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("group", [0, 1])
def test_grouped_query_heads_go_together(name: str, group: int) -> None:
    check("grouped", name, Plan().without_heads(0, [group]), {2 * group, 2 * group + 1}, set())


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("gone", [[], [1]])
def test_grouped_query_heads_are_hardened(name: str, gone: list[int]) -> None:
    plan = Plan().without_heads(0, gone).with_hard_attention(0, 3, "renormalised")
    check("grouped", name, plan, {2 * i + j for i in gone for j in (0, 1)}, set(), k=3)


@pytest.mark.parametrize("name", FEED_FORWARDS)
@PROPERTY
@given(neurons=SOME_NEURONS)
def test_feed_forward_is_pruned_however_it_is_written(name: str, neurons: set[int]) -> None:
    rows = dict(zip(range(F), _order(name), strict=True))
    check("feed-forward", name, Plan().without_neurons(0, neurons), set(), {rows[i] for i in neurons})


def _order(name: str) -> list[int]:
    """A neuron's number is its row of the down projection."""
    if name == "pieces":
        return [*range(7, 10), *range(2), *range(2, 7)]
    return [*range(0, F, 2), *range(F - 1, 0, -2)] if name == "interleaved" else list(range(F))


@pytest.mark.parametrize(("kind", "name"), [("attention", n) for n in ATTENTIONS] + [("grouped", n) for n in GROUPED])
def test_numbers_are_read_however_it_is_written(kind: str, name: str) -> None:
    proto, _, _ = drawn(kind, name)
    anatomy = recognise(ir.from_proto(proto), run_once)
    attention, feed = anatomy.layers[0].attention, anatomy.layers[0].feed_forward
    units = 2 if kind == "grouped" else H
    assert anatomy.refused == () and len(anatomy.layers) == 1
    assert attention is not None and (attention.heads, attention.kv_heads) == (units, units)
    assert (attention.head_size, attention.query.columns, attention.key.columns) == (E, H * E, units * E)
    assert feed is not None and (feed.neurons, feed.activation) == (F, "relu")
