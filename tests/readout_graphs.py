"""Small graphs with a read-out: ways to pick a token, to write a layer before it, and steps between the two.

A read-out picks a token of y[B,S,D]; `which` int64[B,S] says which one where every row of the batch has its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import small_graphs as draw
from onnx import TensorProto, helper
from small_graphs import D, H, Sketch, Weights, linear, norm

Array = draw.Array
Step = Callable[[Sketch, str], str]
FAR = 2**63 - 1


def integers(g: Sketch, *numbers: int) -> str:
    return g.weight(np.array(numbers, dtype=np.int64))


def chosen(g: Sketch) -> str:
    """int64[B]: the last of each row's positive entries in `which`."""
    return str(g("ArgMax", "which", axis=-1, keepdims=0, select_last_index=1))


def gather(index: int) -> Step:
    return lambda g, y: str(g("Gather", y, g.weight(np.array(index)), axis=1))


def gather_one(g: Sketch, y: str) -> str:
    return g.reshape(g("Gather", y, integers(g, -1), axis=-2), 0, D)


def cut(start: int, end: int) -> Step:
    return lambda g, y: g.reshape(g("Slice", y, *(integers(g, i) for i in (start, end, 1))), 0, D)


def transposed(g: Sketch, y: str) -> str:
    return str(g("Gather", g.transpose(y, 1, 0, 2), g.weight(np.array(0)), axis=0))


def rows_of(g: Sketch, y: str) -> str:
    """0, 1, .. for the rows of the batch, as exporters write it."""
    batch = g("Gather", g("Shape", y), g.weight(np.array(0)))
    return str(g("Range", g.weight(np.array(0)), batch, g.weight(np.array(1))))


def gather_nd(g: Sketch, y: str) -> str:
    both = [g("Unsqueeze", part, integers(g, -1)) for part in (rows_of(g, y), chosen(g))]
    return str(g("GatherND", y, g("Concat", *both, axis=-1)))


def flat(g: Sketch, y: str) -> str:
    tokens = g("Gather", g("Shape", y), integers(g, 1))
    return str(g("Gather", g("Flatten", y, axis=2), g("Add", chosen(g), g("Mul", rows_of(g, y), tokens)), axis=0))


READERS: dict[str, tuple[Step, int | None]] = {
    "first": (gather(0), 0),
    "last": (gather(-1), -1),
    "second": (gather(1), 1),
    "last of a size": (gather_one, -1),
    "first slice": (cut(0, 1), 0),
    "last slice": (cut(-1, FAR), -1),
    "tokens first": (transposed, 0),
    "by row": (gather_nd, None),
    "by row, flat": (flat, None),
}
"""Ways to pick a token, and which it is; None: one for each row."""

ATTENTIONS: dict[str, draw.Writer] = {
    "separate": lambda g, w, x: draw.attend(g, w, draw.separate(g, w, x)),
    "gemm": lambda g, w, x: draw.attend(g, w, draw.separate(g, w, x, draw.gemm)),
    "convolved": lambda g, w, x: draw.attend(g, w, draw.separate(g, w, x, draw.convolved)),
    "split": lambda g, w, x: draw.attend(g, w, draw.fused_split(g, w, x)),
    "stack": lambda g, w, x: draw.attend(g, w, draw.fused_stack(g, w, x)),
    "batched": lambda g, w, x: draw.batched(g, w, draw.separate(g, w, x)),
    "causal": lambda g, w, x: draw.attend(g, w, draw.separate(g, w, x), causal),
    "biased": lambda g, w, x: draw.attend(g, w, draw.separate(g, w, x), lambda g, s: str(g("Add", s, table(g, s)))),
}
"""Ways to write the attention; "causal" and "biased" change its scores."""
FEED_FORWARDS: dict[str, draw.Writer] = {
    "plain": draw.plain,
    "gemm": lambda g, w, z: draw.plain(g, w, z, draw.gemm),
    "pieces": draw.pieces,
    "interleaved": draw.interleaved,
}


def one_axis(g: Sketch, w: Weights, x: str) -> str:
    """Batch and tokens joined once for query, key and value."""
    tokens = g.reshape(x, -1, D)
    parts = [linear(g, tokens, w[f"w{n}"], w[f"b{n}"]) for n in "qkv"]
    apart = [g("Reshape", part, g.sizes(x, 0, 1, integers(g, H, D // H))) for part in parts]
    q, k, v = (g.transpose(part, 0, 2, 1, 3) for part in apart)
    return draw.attend(g, w, (q, k, v))


ATTENTIONS["one axis"] = one_axis
BIAS = np.random.default_rng(7).normal(size=(1, H, 8, 8)).astype(np.float32)


def causal(g: Sketch, scores: str) -> str:
    """-inf above the diagonal, drawn from the shape of the scores."""
    ones = g("ConstantOfShape", g.sizes(scores, 2, 3), value=helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]))
    seen = g("Cast", g("Trilu", ones, upper=0), to=TensorProto.BOOL)
    return str(g("Where", seen, scores, g.weight(np.float32(-np.inf))))


def table(g: Sketch, scores: str) -> str:
    """The corner of a table that the tokens need."""
    return str(g("Slice", g.weight(BIAS), integers(g, 0, 0), g.sizes(scores, 2, 3), integers(g, 2, 3)))


SCORES: dict[str, Callable[[Array], Array]] = {
    "causal": lambda s: np.where(np.tri(s.shape[-1], dtype=bool), s, -np.inf),
    "biased": lambda s: s + BIAS[..., : s.shape[-1], : s.shape[-1]],
}


def drawn(attention: str, feed_forward: str, reader: Step, w: Weights) -> onnx.ModelProto:
    """The layer, its read-out and a classifier of two classes."""
    g = Sketch()
    z = norm(g, g("Add", "x", ATTENTIONS[attention](g, w, "x")))
    y = norm(g, g("Add", z, FEED_FORWARDS[feed_forward](g, w, z)))
    logits = linear(g, reader(g, y), np.eye(D, 2, dtype=np.float32), np.zeros(2, np.float32))
    inputs = {"x": ["batch", "tokens", D], "which": ["batch", "tokens"]}
    return g.model(inputs, logits, ["batch", 2], which=TensorProto.INT64)


# -- one operator at a time: y -> operator -> pick --------------------------------------------------------------------


def wide(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def top(g: Sketch, y: str) -> str:
    values, places = g("TopK", y, integers(g, 4), axis=-1, outputs=2)
    zeros = g("Mul", y, g.weight(np.float32(0)))
    return str(g("ScatterElements", zeros, places, values, axis=2))


def heads(g: Sketch, y: str) -> str:
    parts = g.transpose(g.reshape(y, 0, 0, H, D // H), 0, 2, 1, 3)
    return g.reshape(g.transpose(g("Softmax", parts, axis=-1), 0, 2, 1, 3), 0, 0, D)


def through_flat(g: Sketch, y: str) -> str:
    """[B*S,D] and back, the first size left open both times."""
    flat_ = g("Relu", g("Reshape", y, integers(g, -1, D)))
    tokens = g("Gather", g("Shape", y), integers(g, 1))
    return str(g("Reshape", flat_, g("Concat", integers(g, -1), tokens, integers(g, D), axis=0)))


def open_width(g: Sketch, y: str) -> str:
    """[B*S,D] by a target whose last size is open."""
    both = g("Mul", *(g("Gather", g("Shape", y), integers(g, i)) for i in (0, 1)))
    flat_ = g("Tanh", g("Reshape", y, g("Concat", both, integers(g, -1), axis=0)))
    return str(g("Reshape", flat_, g("Shape", y)))


def shaped_like(g: Sketch, y: str) -> str:
    """A tensor of y's own size, read off y and off y with batch and tokens in one axis."""
    flat_ = g("Relu", g.reshape(y, -1, D))
    count = g("Cast", g("ReduceProd", g("Shape", flat_), keepdims=0), to=TensorProto.FLOAT)
    ones = g("Expand", g.weight(np.float32(0.5)), g("Shape", y))
    return str(g("Add", g("Mul", ones, count), g("Reshape", flat_, g("Shape", y))))


def spelled_out(g: Sketch, y: str) -> str:
    centred = g("Sub", y, g("ReduceMean", y, axes=[-1]))
    variance = g("ReduceMean", g("Pow", centred, g.weight(np.float32(2))), axes=[2], keepdims=0)
    return str(g("Div", centred, g("Sqrt", g("Unsqueeze", variance, integers(g, 2)))))


def quantised(g: Sketch, y: str) -> str:
    scale = g.weight(np.linspace(0.02, 0.05, D, dtype=np.float32)), g.weight(np.zeros(D, np.int8))
    return str(g("DequantizeLinear", g("QuantizeLinear", y, *scale, axis=2), *scale, axis=-1))


def looked_up(g: Sketch, y: str) -> str:
    """Rows of a table by a number of each token, and channels by constant indices."""
    best = g("ArgMax", y, axis=2, keepdims=0)
    own = g("Gather", y, g.weight(np.arange(D)[::-1].copy()), axis=2)
    elements = g("GatherElements", y, g("Expand", g("Unsqueeze", best, integers(g, 2)), g("Shape", y)), axis=2)
    return str(g("Sum", g("Gather", g.weight(wide(D, D)), best, axis=0), own, elements))


TOKEN_WISE: dict[str, Step] = {
    "unary": lambda g, y: str(g("Erf", g("Cast", y, to=TensorProto.FLOAT))),
    "a constant of channels": lambda g, y: str(g("PRelu", y, g.weight(wide(D)))),
    "a constant of four axes": lambda g, y: str(g("Squeeze", g("Add", y, g.weight(wide(1, 1, 1, D))), integers(g, 0))),
    "heads": heads,
    "top": top,
    "through one axis": through_flat,
    "through one axis, width open": open_width,
    "shapes": shaped_like,
    "norm": spelled_out,
    "static integers": quantised,
    "tables": looked_up,
    "cumulative over channels": lambda g, y: str(g("CumSum", y, g.weight(np.array(2)))),
    "repeated channels": lambda g, y: str(g("MatMul", g("Tile", y, integers(g, 1, 1, 2)), g.weight(wide(2 * D, D)))),
    "weight on the left": lambda g, y: g.transpose(g("MatMul", g.weight(wide(D, D)), g.transpose(y, 0, 2, 1)), 0, 2, 1),
    "einsum": lambda g, y: str(g("Einsum", y, g.weight(wide(D, D)), equation="bsd,de->bse")),
    "einsum of both": lambda g, y: str(g("Einsum", y, y, equation="bsd,bsd->bsd")),
    "largest": lambda g, y: str(g("Hardmax", g("LogSoftmax", y, axis=2), axis=-1)),
}
"""Steps that keep tokens apart, [B,S,D] -> [B,S,D]."""


def within_one_axis(g: Sketch, y: str) -> str:
    """Channels apart and together again where batch and tokens are one axis."""
    parts = g("Softmax", g("Reshape", g.reshape(y, -1, D), integers(g, -1, H, D // H)), axis=-1)
    return str(g("Reshape", g.reshape(parts, -1, D), g.sizes(y, 0, 1, integers(g, D))))


TOKEN_WISE["within one axis"] = within_one_axis


def channels_first(g: Sketch, y: str) -> str:
    normed = g("LayerNormalization", g.transpose(y, 0, 2, 1), g.weight(np.ones(1, np.float32)), axis=-1)
    return g.transpose(normed, 0, 2, 1)


def rolled(g: Sketch, y: str) -> str:
    parts = [g("Slice", y, *(integers(g, i) for i in (start, end, 1))) for start, end in ((1, FAR), (0, 1))]
    return str(g("Concat", *parts, axis=1))


def dynamic(g: Sketch, y: str) -> str:
    number, scale, _ = g("DynamicQuantizeLinear", y, outputs=3)
    return str(g("Mul", g("Cast", number, to=TensorProto.FLOAT), scale))


def joined(g: Sketch, y: str) -> str:
    """Tokens and halves of the channels in one axis."""
    return g.reshape(g("Relu", g("Reshape", y, g("Concat", integers(g, 0, -1), integers(g, D // 2), axis=0))), 0, -1, D)


def shared_axis(g: Sketch, y: str) -> str:
    """Batch and tokens in one axis, whose mean is read too."""
    tokens = g("Relu", g.reshape(y, -1, D))
    return str(g("Add", g("Reshape", tokens, g("Shape", y)), g("ReduceMean", tokens, axes=[0])))


def born(g: Sketch, y: str) -> str:
    """One vector for all tokens, and its shape."""
    wide_ = g("Expand", g("ReduceMax", y, axes=[1]), g("Shape", y))
    return str(g("Reshape", g("Relu", wide_), g("Shape", wide_)))


MIXED: dict[str, tuple[str, Step]] = {
    "cumulative": ("CumSum", lambda g, y: str(g("CumSum", y, g.weight(np.array(1))))),
    "softmax over tokens": ("Softmax", lambda g, y: str(g("Softmax", y, axis=1))),
    "norm over tokens": ("LayerNormalization", channels_first),
    "triangle": ("Trilu", lambda g, y: str(g("Trilu", y))),
    "mean": ("LayerNormalization", lambda g, y: str(g("Sub", y, g("ReduceMean", y, axes=[1])))),
    "reversed": ("Slice", lambda g, y: str(g("Slice", y, *(integers(g, i) for i in (-1, -FAR, 1, -1))))),
    "rolled": ("Concat", rolled),
    "joined": ("Reshape", joined),
    "shared axis": ("Reshape", shared_axis),
    "one vector": ("Expand", born),
    "dynamic integers": ("DynamicQuantizeLinear", dynamic),
}
"""Steps that do not, with the operator of whose output tokens are picked then."""


def with_step(step: Step, reader: Step) -> onnx.ModelProto:
    """A layer, the step, a projection and the read-out."""
    g, w = Sketch(), draw.weights()
    z = norm(g, g("Add", "x", ATTENTIONS["separate"](g, w, "x")))
    y = norm(g, g("Add", z, FEED_FORWARDS["plain"](g, w, z)))
    out = linear(g, step(g, y), wide(D, D), wide(D))
    inputs = {"x": ["batch", "tokens", D], "which": ["batch", "tokens"]}
    return g.model(inputs, reader(g, out), ["batch", D], which=TensorProto.INT64)
