"""Absorbed keys and values on small graphs drawn by hand: every way to write them, and what must be left as it is.

The layer's value is NumPy's (`Weights.answer`, float64); for the rest the oracle is the source graph in ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as draw
from onnx import TensorProto
from readout_graphs import READERS, drawn
from small_graphs import Sketch
from surgery import assert_close
from test_constants import Drawn
from test_readout import runner
from test_readout_rules import assert_answer

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.graph.cleanup import Cleanup
from axformer_passes.prepare.walkable import prepared
from axformer_passes.readout.narrowing import narrow_readout
from axformer_passes.simplify.keys_values import Absorbed, absorb

WIDTH = 8
rng = np.random.default_rng(0)
Write = Callable[[Drawn, str], str]


# -- a whole layer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attention", "reader"),
    [(a, r) for a in ("separate", "gemm", "causal", "one axis") for r in ("first", "last", "tokens first", "by row")]
    + [("batched", "first"), ("batched", "last")],
)
def test_a_layer_equals_numpy_without_keys_and_values(attention: str, reader: str) -> None:
    w = draw.weights()
    step, token = READERS[reader]
    model = prepared(ir.from_proto(drawn(attention, "plain", step, w)))
    assert not narrow_readout(model, run_once).why
    found = absorb(model, run_once)
    Cleanup()(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert (len(found.keys), len(found.values)) == (1, 1), found.left
    assert_answer(proto, w, token, attention)


# -- keys and values alone --------------------------------------------------------------------------------------------


def heads_of(graph: Drawn, x: str, count: int = 2, groups: int | None = None) -> str:
    """A projection of x [B,S,8] as [B,count,S,4]; of `groups` heads, each repeated."""
    groups = groups or count
    parts = graph.put("Reshape", graph.linear(x, WIDTH, 4 * groups), graph.number([0, 0, groups, 4]))
    return repeated(graph, graph.put("Transpose", parts, perm=[0, 2, 1, 3]), count // groups)


def repeated(graph: Drawn, heads: str, times: int) -> str:
    if times == 1:
        return heads
    wide = graph.put("Unsqueeze", heads, graph.number([2]))
    return graph.put("Reshape", graph.put("Concat", *[wide] * times, axis=2), graph.number([0, 4, -1, 4]))


def first(graph: Drawn, x: str = "x", count: int = 1) -> str:
    """The first tokens of x."""
    return graph.put("Slice", x, graph.number([0]), graph.number([count]), graph.number([1]))


def plain(graph: Drawn, part: str) -> str:
    return part


def attended(
    graph: Drawn,
    *,
    keys: Write = plain,
    values: Write = plain,
    weights: Write = plain,
    queries: int = 1,
    heads: int = 2,
    groups: int | None = None,
) -> None:
    """y = the contexts of one query; `keys` and so on write what becomes of them."""
    q = heads_of(graph, first(graph, count=queries), heads)
    k, v = (write(graph, heads_of(graph, "x", heads, groups)) for write in (keys, values))
    scores = graph.put("MatMul", q, graph.put("Transpose", k, perm=[0, 1, 3, 2]))
    graph.put("Tanh", graph.put("MatMul", weights(graph, graph.put("Softmax", scores, axis=-1)), v), name="y")


def check(model: ir.Model) -> Absorbed:
    """What was absorbed; the outputs are the same."""
    result = model.clone()
    found = absorb(result, run_once)
    Cleanup()(result)
    before, after = runner(model), runner(result)
    for batch, length in ((1, 1), (2, 5), (3, 4), (1, 21)):
        feeds = {"x": rng.normal(size=(batch, length, WIDTH)).astype(np.float32)}
        expected = before(feeds)
        for name, array in after(feeds).items():
            assert_close(array, expected[name], f"{name}, {batch} x {length}")
    return found


def counts(found: Absorbed) -> tuple[int, int]:
    return len(found.keys), len(found.values)


def scaled(graph: Drawn, part: str) -> str:
    """By a factor of each channel, and shifted."""
    return graph.put("Add", graph.put("Mul", part, graph.weight(4)), graph.weight(2, 1, 4))


def divided(graph: Drawn, part: str) -> str:
    return graph.put("Div", graph.put("Sub", graph.number(np.float32(2)), part), graph.number(np.float32(3)))


def mixed(graph: Drawn, part: str) -> str:
    """Heads swapped, channels backwards."""
    swapped = graph.put("Gather", part, graph.number([1, 0]), axis=1)
    return graph.put("Gather", swapped, graph.number([3, 2, 1, 0]), axis=-1)


def halved(graph: Drawn, part: str) -> str:
    """One head for both."""
    one = graph.put("Slice", part, graph.number([0]), graph.number([1]), graph.number([1]))
    return graph.put("Tile", one, graph.number([1, 2, 1, 1]))


def spread(graph: Drawn, part: str) -> str:
    """Expanded by a computed target."""
    one = graph.put("Slice", part, graph.number([0]), graph.number([1]), graph.number([1]))
    sizes = graph.put("Shape", "x")
    b, s = (graph.put("Gather", sizes, graph.number([i])) for i in (0, 1))
    return graph.put("Expand", one, graph.put("Concat", b, graph.number([2]), s, graph.number([1]), axis=0))


@pytest.mark.parametrize("write", [plain, scaled, divided, mixed, halved, spread])
def test_moves_and_constants_between_are_followed(write: Write) -> None:
    graph = Drawn("y")
    attended(graph, keys=write, values=write)
    found = check(graph.model())
    assert counts(found) == (1, 1), found.left


def halved_rows(graph: Drawn, weights: str) -> str:
    """Rows that add up to anything but 1."""
    return graph.put("Mul", weights, graph.number(np.float32(0.7)))


def test_the_bias_of_values_meets_what_the_weights_add_up_to() -> None:
    graph = Drawn("y")
    attended(graph, weights=halved_rows)
    assert counts(check(graph.model())) == (1, 1)


def test_the_bias_of_keys_stays_where_no_softmax_forgets_it() -> None:
    graph = Drawn("y")
    scores = graph.put(
        "MatMul",
        heads_of(graph, first(graph)),
        graph.put("Transpose", heads_of(graph, "x"), perm=[0, 1, 3, 2]),
    )
    graph.put("Tanh", scores, name="y")
    assert counts(check(graph.model())) == (1, 0)


@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (4, 4)])
def test_query_heads_of_a_group_get_the_columns_of_its_key(heads: int, groups: int) -> None:
    graph = Drawn("y")
    attended(graph, heads=heads, groups=groups)
    assert counts(check(graph.model())) == (1, 1)


@pytest.mark.parametrize("perm", [[1, 0, 2], [1, 2, 0], [0, 2, 1]])
def test_tokens_may_lie_in_another_axis(perm: list[int]) -> None:
    """A layer that works on [S,B,D], or whose input was turned before."""
    graph = Drawn("y")
    x = graph.put("Tanh", graph.put("Transpose", "x", perm=perm))
    back = graph.put("Transpose", x, perm=np.argsort(perm).tolist())
    query = heads_of(graph, first(graph))
    k, v = heads_of(graph, back), heads_of(graph, back)
    p = graph.put("Softmax", graph.put("MatMul", query, graph.put("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    graph.put("Tanh", graph.put("MatMul", p, v), name="y")
    assert counts(check(graph.model())) == (1, 1)


def test_one_probe_is_enough_where_all_sizes_are_fixed() -> None:
    graph = Drawn("y")
    attended(graph)
    model = graph.model()
    model.graph.inputs[0].shape = ir.Shape([2, 5, WIDTH])
    result = model.clone()
    assert counts(absorb(result, run_once)) == (1, 1)
    feeds = {"x": rng.normal(size=(2, 5, WIDTH)).astype(np.float32)}
    assert_close(runner(result)(feeds)["y"], runner(model)(feeds)["y"])


def test_a_size_that_is_read_off_keys_is_read_off_their_tokens() -> None:
    graph = Drawn("y", "z")

    def measured(g: Drawn, part: str) -> str:
        g.put("Cast", g.put("Shape", part), to=TensorProto.FLOAT, name="z")
        return part

    attended(graph, keys=measured)
    model = graph.model()
    assert counts(check(model)) == (1, 1)
    absorb(model, run_once)
    shapes = [n.inputs[0] for n in model.graph if n.op_type == "Shape"]
    assert shapes and all(value is model.graph.inputs[0] for value in shapes)


# -- what must be left ------------------------------------------------------------------------------------------------


def activated(graph: Drawn, part: str) -> str:
    return graph.put("Tanh", part)


def normed(graph: Drawn, part: str) -> str:
    return graph.put("LayerNormalization", part, graph.weight(4), graph.weight(4), axis=-1)


def turned(graph: Drawn, part: str) -> str:
    """A rotary embedding by positions: sums of two of its channels, with a factor for each token."""
    halves = [graph.put("Slice", part, *(graph.number([i]) for i in ends)) for ends in ((0, 2, 3), (2, 4, 3))]
    return graph.put("Add", part, graph.put("Concat", graph.put("Neg", halves[1]), halves[0], axis=-1))


def placed(graph: Drawn, part: str) -> str:
    """A position is added: a row of a table for each token."""
    s = graph.put("Slice", graph.put("Shape", "x"), graph.number([1]), graph.number([2]))
    table = graph.put("Slice", graph.weight(32, 4), graph.number([0]), s, graph.number([0]))
    return graph.put("Add", part, table)


def cached(graph: Drawn, part: str) -> str:
    """Keys of another tensor before its own, of the same tokens."""
    own = graph.put("Slice", part, graph.number([1]), graph.number([99]), graph.number([2]))
    return graph.put("Concat", heads_of(graph, first(graph)), own, axis=2)


def shifted(graph: Drawn, part: str) -> str:
    """Every token has the key of the next one; the last that of the first."""
    rest = graph.put("Slice", part, graph.number([1]), graph.number([99]), graph.number([2]))
    start = graph.put("Slice", part, graph.number([0]), graph.number([1]), graph.number([2]))
    return graph.put("Concat", rest, start, axis=2)


def chosen(graph: Drawn, part: str) -> str:
    """Heads in an order that hangs on the input: 1 in all probes whose first number is below 100."""
    number = graph.put("Cast", graph.put("Less", numbers(graph), graph.number(np.float32(100))), to=TensorProto.INT64)
    return graph.put("Gather", part, graph.put("Concat", number, graph.number([0]), axis=0), axis=1)


def numbers(graph: Drawn) -> str:
    """float[1]: the largest number of x."""
    return graph.put("Reshape", graph.put("ReduceMax", "x", keepdims=0), graph.number([1]))


LEFT: dict[str, tuple[Write, str]] = {
    "activated": (activated, "Tanh"),
    "normed": (normed, "LayerNormalization"),
    "turned": (turned, "neither moved|combines it"),
    "placed": (placed, "Slice|combines it"),
    "cached": (cached, "2 projections"),
    "shifted": (shifted, "not the same for all tokens|no axis"),
    "chosen": (chosen, "not made of sizes"),
}


@pytest.mark.parametrize("what", LEFT)
@pytest.mark.parametrize("side", ["keys", "values"])
def test_what_is_not_moved_alone_is_left_and_the_other_side_goes(what: str, side: str) -> None:
    write, why = LEFT[what]
    graph = Drawn("y")
    attended(graph, **{side: write})  # type: ignore[arg-type]
    found = check(graph.model())
    assert counts(found) == ((0, 1) if side == "keys" else (1, 0))
    assert len(found.left) == 1
    assert any(word in found.left[0] for word in why.split("|")), found.left


def test_two_queries_need_their_keys_and_values() -> None:
    graph = Drawn("y")
    attended(graph, queries=2)
    model = graph.model()
    assert absorb(model, run_once) == Absorbed()


def test_all_queries_need_their_keys_and_values() -> None:
    graph = Drawn("y")
    attended(graph, queries=99)
    assert check(graph.model()) == Absorbed()


@pytest.mark.parametrize("side", ["keys", "values"])
def test_what_an_output_reads_is_left(side: str) -> None:
    graph = Drawn("y", "z")
    named: dict[str, Any] = {side: lambda g, part: g.put("Identity", part, name="z")}
    attended(graph, **named)
    found = check(graph.model())
    assert counts(found) == ((0, 1) if side == "keys" else (1, 0)) and "output 'z'" in found.left[0]


@pytest.mark.parametrize("side", ["keys", "values"])
def test_what_somebody_else_reads_is_left(side: str) -> None:
    graph = Drawn("y", "z")

    def also(g: Drawn, part: str) -> str:
        g.put("ReduceMean", part, name="z")
        return part

    attended(graph, **{side: also})  # type: ignore[arg-type]
    found = check(graph.model())
    assert counts(found) == ((0, 1) if side == "keys" else (1, 0)) and "ReduceMean" in found.left[0]


def test_keys_that_are_values_go_together() -> None:
    """One projection for both, which nobody needs when both are absorbed."""
    graph = Drawn("y")
    both = heads_of(graph, "x")
    query = heads_of(graph, first(graph))
    scores = graph.put("MatMul", query, graph.put("Transpose", both, perm=[0, 1, 3, 2]))
    graph.put("Tanh", graph.put("MatMul", graph.put("Softmax", scores, axis=-1), both), name="y")
    assert counts(check(graph.model())) == (1, 1)


def test_many_heads_of_few_columns_would_not_pay() -> None:
    graph = Drawn("y")
    attended(graph, heads=4, groups=1)
    found = check(graph.model())
    assert counts(found) == (0, 0) and all("4 heads read 4 columns" in line for line in found.left)


def test_a_computed_matrix_is_no_projection() -> None:
    graph = Drawn("y")
    q = heads_of(graph, first(graph))
    matrix = graph.put("MatMul", graph.put("Transpose", first(graph, count=1), perm=[0, 2, 1]), first(graph))
    k = graph.put(
        "Transpose",
        graph.put("Reshape", graph.put("MatMul", "x", matrix), graph.number([0, 0, 2, 4])),
        perm=[0, 2, 3, 1],
    )
    graph.put("Tanh", graph.put("MatMul", q, k), name="y")
    found = check(graph.model())
    assert counts(found) == (0, 0) and "neither moved nor a projection" in " ".join(found.left)


def test_a_graph_without_such_products_is_left() -> None:
    g = Sketch()
    w = draw.weights()
    y = draw.plain(g, w, "x")
    model = prepared(ir.from_proto(g.model({"x": ["batch", "tokens", draw.D]}, y, ["batch", "tokens", draw.D])))
    assert absorb(model, run_once) == Absorbed()
