"""The rules of the read-out on small graphs drawn by hand: every way to pick a token, to write a layer, and what stops a pick.

The layer's value is NumPy's (`Weights.answer`, float64); for the rest the oracle is the source graph in ONNX Runtime.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as draw
from onnx import TensorProto, helper
from readout_graphs import (
    ATTENTIONS,
    FEED_FORWARDS,
    MIXED,
    READERS,
    SCORES,
    TOKEN_WISE,
    Array,
    Step,
    cut,
    drawn,
    gather,
    gather_nd,
    integers,
    rows_of,
    wide,
    with_step,
)  # fmt: skip
from small_graphs import D, H, Sketch, Weights
from surgery import assert_close
from zoo import onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.errors import ModelError
from axformer_passes.prepare.walkable import prepared
from axformer_passes.readout.narrowing import NarrowedReadout, narrow_readout

SHAPES = ((1, 2), (2, 5), (3, 4))


def feeds_of(batch: int, tokens: int) -> dict[str, Array]:
    rng = np.random.default_rng(10 * batch + tokens)
    which = rng.integers(0, 2, (batch, tokens))
    return {"x": rng.normal(size=(batch, tokens, D)).astype(np.float32), "which": which}


def narrow(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, NarrowedReadout]:
    model = prepared(ir.from_proto(proto))
    found = narrow_readout(model, run_once)
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    return after, found


def outputs(proto: onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    names = {i.name for i in proto.graph.input}
    return onnx_outputs(proto.SerializeToString(), {n: a for n, a in feeds.items() if n in names})[0]


def shape_of(proto: onnx.ModelProto, name: str, feeds: dict[str, Array]) -> tuple[int, ...]:
    """The run-time shape of an inner tensor."""
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    probe.graph.output.append(onnx.ValueInfoProto(name=name))
    return tuple(onnx_outputs(probe.SerializeToString(), {i.name: feeds[i.name] for i in proto.graph.input})[-1].shape)


def assert_answer(proto: onnx.ModelProto, w: Weights, token: int | None, attention: str) -> None:
    """What NumPy says of the layer, at the token that is read."""
    for shape in SHAPES:
        feeds = feeds_of(*shape)
        y = w.answer(feeds["x"], scores=SCORES.get(attention, lambda s: s))
        last = shape[1] - 1 - feeds["which"][:, ::-1].argmax(-1)
        places = last if token is None else np.full(shape[0], token)
        assert_close(outputs(proto, feeds), y[np.arange(shape[0]), places, :2], f"{attention} at {shape}")


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_way_to_pick_narrows_every_way_to_attend(attention: str, reader: str) -> None:
    w, (step, token) = draw.weights(), READERS[reader]
    after, found = narrow(drawn(attention, "plain", step, w))
    assert found.why == ""
    assert_answer(after, w, token, attention)
    softmax = next(n.output[0] for n in after.graph.node if n.op_type == "Softmax")
    if attention != "batched" or token is not None:  # heads lie in the axis of the batch: no axis is the rows' alone
        assert shape_of(after, softmax, feeds_of(3, 4))[-2:] == (1, 4)


@pytest.mark.parametrize("reader", ["first", "by row", "by row, flat"])
@pytest.mark.parametrize("feed_forward", FEED_FORWARDS)
def test_every_feed_forward_is_narrowed(feed_forward: str, reader: str) -> None:
    w, (step, token) = draw.weights(), READERS[reader]
    after, found = narrow(drawn("gemm", feed_forward, step, w))
    assert_answer(after, w, token, "gemm")
    relu = next(n.output[0] for n in after.graph.node if n.op_type in ("Relu", "Max"))
    assert np.prod(shape_of(after, relu, feeds_of(3, 4))[:-1]) == 3
    assert relu in found.nodes


def assert_same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for shape in SHAPES:
        feeds = feeds_of(*shape)
        assert_close(outputs(after, feeds), outputs(before, feeds), str(shape))


def softmax_of(proto: onnx.ModelProto) -> str:
    return next(str(n.output[0]) for n in proto.graph.node if n.op_type == "Softmax")


@pytest.mark.parametrize("reader", ["first", "last slice", "by row"])
@pytest.mark.parametrize("step", TOKEN_WISE)
def test_a_pick_moves_through_what_keeps_tokens_apart(step: str, reader: str) -> None:
    before = with_step(TOKEN_WISE[step], READERS[reader][0])
    after, found = narrow(before)
    assert found.why == ""
    assert_same(before, after)
    assert shape_of(after, softmax_of(after), feeds_of(3, 4)) == (3, H, 1, 4)


@pytest.mark.parametrize("reader", ["first", "by row"])
@pytest.mark.parametrize("step", MIXED)
def test_a_pick_stops_behind_what_mixes_tokens(step: str, reader: str) -> None:
    stop, mixing = MIXED[step]
    before = with_step(mixing, READERS[reader][0])
    after, found = narrow(before)
    assert_same(before, after)
    assert shape_of(after, softmax_of(after), feeds_of(3, 4)) == (3, H, 4, 4)
    made_by = {name: node.op_type for node in after.graph.node for name in node.output}
    assert stop in [made_by.get(place) for place in found.places]


# -- several picks, and none ------------------------------------------------------------------------------------------


def test_two_tokens_are_narrowed_together() -> None:
    def both(g: Sketch, y: str) -> str:
        return str(g("Mul", g("Add", gather(0)(g, y), gather(-1)(g, y)), cut(0, 1)(g, y)))

    before = with_step(TOKEN_WISE["shapes"], both)
    after, found = narrow(before)
    assert found.tokens == (-1, 0)
    assert_same(before, after)
    assert shape_of(after, softmax_of(after), feeds_of(3, 4)) == (3, H, 2, 4)


def test_different_tokens_of_each_row_are_left_whole() -> None:
    def both(g: Sketch, y: str) -> str:
        return str(g("Add", gather(0)(g, y), gather_nd(g, y)))

    before = with_step(TOKEN_WISE["unary"], both)
    after, found = narrow(before)
    assert found.why.startswith("nothing would be saved: ") and "its tokens are read in different ways" in found.why
    assert after.graph.node == ir.to_proto(prepared(ir.from_proto(before))).graph.node


def plain(reader: Step, opset: int = 17) -> onnx.ModelProto:
    """x @ weight, and the read-out: no attention."""
    g = Sketch(opset)
    y = g("Relu", g("MatMul", "x", g.weight(wide(D, D))))
    inputs = {"x": ["batch", "tokens", D], "which": ["batch", "tokens"]}
    return g.model(inputs, reader(g, str(y)), ["batch", D], which=TensorProto.INT64)


def by_shape(g: Sketch, y: str) -> str:
    """The last token by a position that is computed from y's shape."""
    last = g("Sub", g("Gather", g("Shape", y), integers(g, 1)), integers(g, 1))
    rows = g("Unsqueeze", rows_of(g, y), integers(g, -1))
    return str(g("GatherND", y, g("Concat", rows, g("Expand", last, g("Shape", rows)), axis=-1)))


def by_input(g: Sketch, y: str) -> str:
    """Rows of the batch that the caller chooses."""
    first = g("Sign", g("Slice", "which", *(integers(g, i) for i in (0, 1, 1))))
    return str(g("GatherND", y, g("Concat", first, first, axis=-1)))


def negative(g: Sketch, y: str) -> str:
    """Flat positions that a row without a 1 takes from the row before it."""
    last = g("Sub", g("ReduceSum", g("Sign", "which"), integers(g, 1), keepdims=0), g.weight(np.array(1)))
    starts = g("Mul", rows_of(g, y), g("Gather", g("Shape", y), integers(g, 1)))
    return str(g("Gather", g.reshape(y, -1, D), g("Add", last, starts), axis=0))


def older(g: Sketch, y: str) -> str:
    both = [g("Unsqueeze", part, axes=[1]) for part in (rows_of(g, y), g("ArgMax", "which", axis=1, keepdims=0))]
    return str(g("GatherND", y, g("Concat", *both, axis=1)))


REFUSED: dict[str, tuple[onnx.ModelProto, str]] = {
    "position": (plain(by_shape), "the token to read, depends on what would be narrowed"),
    "rows": (plain(by_input), "nothing picks single tokens for 'y': every token is read"),
    "negative": (plain(negative), "its positions may reach into another row of the batch"),
    "older": (plain(older, opset=11), "picking a token for each row needs operator set 12"),
    "mean": (plain(lambda g, y: str(g("ReduceMean", y, axes=[1], keepdims=0))), "ReduceMean 't2_0' reads all tokens"),
    "one size": (plain(lambda g, y: gather(0)(g, g.reshape(y, 2, 5, D))), "the graph runs at one size alone"),
    "channel": (plain(lambda g, y: str(g("Gather", y, g.weight(np.array(0)), axis=2))), "nothing picks single tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_read_out_is_left_alone_with_the_reason(case: str) -> None:
    before, reason = REFUSED[case]
    model = prepared(ir.from_proto(before))
    assert reason in narrow_readout(model, run_once).why
    assert [node.op_type for node in model.graph] == [node.op_type for node in before.graph.node]


def test_a_tensor_that_a_subgraph_reads_stays_whole() -> None:
    def with_branch(g: Sketch, y: str) -> str:
        shape = helper.make_tensor_value_info("size", TensorProto.INT64, None)
        read = helper.make_graph([helper.make_node("Shape", [y], ["size"])], "read", [], [shape])
        other = helper.make_tensor_value_info("zero", TensorProto.INT64, None)
        zero = helper.make_node(
            "Constant", [], ["zero"], value=helper.make_tensor("z", TensorProto.INT64, [3], [0, 0, 0])
        )
        several = g("Greater", g("Gather", g("Shape", "x"), g.weight(np.array(0))), g.weight(np.array(1)))
        size = g("If", several, then_branch=read, else_branch=helper.make_graph([zero], "other", [], [other]))
        total = g("Cast", g("ReduceSum", size, keepdims=0), to=TensorProto.FLOAT)
        return str(g("Add", gather(0)(g, y), total))

    before = plain(with_branch)
    after, found = narrow(before)
    assert "reads all its tokens" in found.why
    assert_same(before, after)


def test_a_table_of_a_fixed_number_of_tokens_is_cut_to_those_that_are_read() -> None:
    g, w = Sketch(), draw.weights()
    z = g("Add", "x", g.weight(wide(4, D)))
    scored = draw.attend(g, w, draw.separate(g, w, z), lambda g, s: str(g("Add", s, g.weight(wide(1, H, 4, 4)))))
    before = g.model(
        {"x": ["batch", 4, D]}, g("Gather", g("Add", z, scored), g.weight(np.array(2)), axis=1), ["batch", D]
    )
    after, found = narrow(before)
    assert found.tokens == (2,)
    assert [1, H, 1, 4] in [list(t.dims) for t in after.graph.initializer]
    x = np.random.default_rng(0).normal(size=(3, 4, D)).astype(np.float32)
    assert_close(outputs(after, {"x": x}), outputs(before, {"x": x}))


def test_a_graph_that_does_not_run_is_an_error() -> None:
    broken = plain(lambda g, y: gather(0)(g, g.reshape(y, 7, 7, D)))
    with pytest.raises(ModelError, match="does not run on a small probe input"):
        narrow(broken)
