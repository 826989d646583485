"""Small graphs drawn by hand: one transformer layer in every way that exporters write it, and its value said by NumPy.

    graph = Sketch(); y = graph("Add", x, graph.weight(array)); graph.model({"x": x_info}, {"y": y_info})

The layer is post-norm, `y = norm(z + feed_forward(z))`, `z = norm(x + attention(x))`, on x float[B,S,D]. `ATTENTIONS` and
`FEED_FORWARDS` are tables of ways to write its two blocks; all compute what `Weights.answer` computes.

Letters: B batch, S tokens, D model width, H query heads, G key/value heads, E head size, F neurons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
D, H, E, F = 12, 4, 3, 10
GAIN, SHIFT = np.linspace(0.5, 2, H * E, dtype=np.float32), np.linspace(-1, 1, H * E, dtype=np.float32)


class Sketch:
    """Nodes and initializers in the order they are drawn; every call adds one node and returns its output name(s)."""

    def __init__(self, opset: int = 17) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []

    def weight(self, array: Any, name: str | None = None) -> str:
        """A new initializer; integers are int64, other numbers keep their type."""
        name = name or f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def __call__(self, operator: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, domain=domain, **attributes))
        return names[0] if outputs == 1 else names

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape to a constant target."""
        return str(self("Reshape", x, self.weight(np.array(shape))))

    def transpose(self, x: str, *perm: int) -> str:
        """Transpose."""
        return str(self("Transpose", x, perm=list(perm)))

    def sizes(self, x: str, *parts: int | str) -> str:
        """A computed shape: int i is the size of x's axis i as 1-D tensor, a string is a tensor of its own."""
        shape = self("Shape", x)
        dims = [p if isinstance(p, str) else self("Gather", shape, self.weight(np.array([p]))) for p in parts]
        return str(self("Concat", *dims, axis=0))

    def model(self, inputs: dict[str, list[Any]], output: str, shape: list[Any], **kinds: int) -> onnx.ModelProto:
        """The model: float inputs (or of `kinds`) of these shapes, one float output."""
        ins = [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), s) for n, s in inputs.items()]
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
        nodes = [*self.nodes, helper.make_node("Identity", [output], ["y"])]
        graph = helper.make_graph(nodes, "sketch", ins, [out], self.initializers)
        domains = {"": self.opset, **{f.domain: 1 for f in self.functions}}
        domains |= {n.domain: 1 for n in self.nodes if n.domain and n.domain not in domains}
        imports = [helper.make_opsetid(name, version) for name, version in domains.items()]
        return helper.make_model(graph, opset_imports=imports, functions=self.functions, ir_version=9)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The layer's parameters, float32 values that half precision holds exactly."""

    parts: dict[str, Array]
    groups: int = H

    def __getitem__(self, name: str) -> Array:
        return self.parts[name]

    def fused(self, *names: str) -> Array:
        """Side by side on the last axis."""
        return np.concatenate([self[n] for n in names], axis=-1)

    def answer(
        self,
        x: Array,
        heads: Collection[int] = (),
        neurons: Collection[int] = (),
        scores: Callable[[Array], Array] = lambda s: s,
        act: Callable[[Array], Array] = lambda u: np.maximum(u, 0),
        context: Callable[[Array], Array] = lambda c: c,
    ) -> Array:
        """float64[B,S,D]: the layer with the contexts of `heads` (query heads) and the activations of `neurons` zero.

        `scores` maps the scaled scores [B,H,S,S] to the ones that enter the softmax, `context` the contexts [B,H,S,E] to those
        that the output projection reads.
        """
        w = {name: value.astype(np.float64) for name, value in self.parts.items()}

        def split(y: Array, count: int) -> Array:
            return y.reshape(*y.shape[:2], count, E).transpose(0, 2, 1, 3)

        q = split(x @ w["wq"] + w["bq"], H)
        k, v = (split(x @ w[f"w{n}"] + w[f"b{n}"], self.groups).repeat(H // self.groups, axis=1) for n in "kv")
        s = scores(q @ k.swapaxes(2, 3) * E**-0.5)
        p = np.exp(s - s.max(-1, keepdims=True))
        read = context(p / p.sum(-1, keepdims=True) @ v)
        read[:, list(heads)] = 0
        joined = read.transpose(0, 2, 1, 3).reshape(*x.shape[:2], H * E)
        z = _norm(x + joined @ w["wo"] + w["bo"])
        inner = act(z @ w["up"] + w["bu"])
        inner[..., list(neurons)] = 0
        return _norm(z + inner @ w["down"] + w["bd"])


def _norm(x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return np.asarray(centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5))


def weights(groups: int = H, seed: int = 0) -> Weights:
    """Random parameters."""
    rng = np.random.default_rng(seed)
    shapes = {
        "wq": (D, H * E), "bq": (H * E,), "wk": (D, groups * E), "bk": (groups * E,), "wv": (D, groups * E),
        "bv": (groups * E,), "wo": (H * E, D), "bo": (D,), "up": (D, F), "bu": (F,), "down": (F, D), "bd": (D,),
    }  # fmt: skip
    draw = {n: rng.normal(size=s) * (0.5 if len(s) == 2 else 0.3) for n, s in shapes.items()}
    return Weights({n: v.astype(np.float16).astype(np.float32) for n, v in draw.items()}, groups)


Writer = Callable[[Sketch, Weights, str], str]
"""(sketch, weights, name of x) -> name of the block's output, bias included."""


def layer(attention: Writer, feed_forward: Writer, w: Weights, opset: int = 17) -> onnx.ModelProto:
    """The whole layer."""
    g = Sketch(opset)
    z = norm(g, g("Add", "x", attention(g, w, "x")))
    y = norm(g, g("Add", z, feed_forward(g, w, z)))
    return g.model({"x": ["batch", "tokens", D]}, y, ["batch", "tokens", D])


def norm(g: Sketch, x: str) -> str:
    """LayerNormalization with unit gains."""
    return str(g("LayerNormalization", x, g.weight(np.ones(D, np.float32)), axis=-1, epsilon=1e-5))


def linear(g: Sketch, x: str, weight: Array, bias: Array) -> str:
    """MatMul and Add."""
    return str(g("Add", g("MatMul", x, g.weight(weight)), g.weight(bias)))


# -- query, key, value -> [B,H,S,E] -----------------------------------------------------------------------------------

Heads = tuple[str, str, str]


def separate(g: Sketch, w: Weights, x: str, project: Callable[..., str] = linear) -> Heads:
    """Three projections, split into heads by a constant target."""
    parts = [project(g, x, w[f"w{n}"], w[f"b{n}"]) for n in "qkv"]
    q, k, v = (g.transpose(g.reshape(p, 0, 0, -1, E), 0, 2, 1, 3) for p in parts)
    return q, k, v


def gemm(g: Sketch, x: str, weight: Array, bias: Array) -> str:
    """Tokens flattened, weight transposed."""
    flat = g.reshape(x, -1, weight.shape[0])
    y = g("Gemm", flat, g.weight(weight.T.copy()), g.weight(bias), transB=1)
    return str(g("Reshape", y, g.sizes(x, 0, 1, g.weight(np.array([weight.shape[1]])))))


def transposed(g: Sketch, x: str, weight: Array, bias: Array) -> str:
    """The weight behind a Transpose."""
    y = g("MatMul", x, g.transpose(g.weight(weight.T.copy()), 1, 0))
    return str(g("Add", g.weight(bias), y))


def reshaped(g: Sketch, x: str, weight: Array, bias: Array) -> str:
    """Weight and bias stored in other shapes."""
    w = g.reshape(g.weight(weight.reshape(-1)), *weight.shape)
    b = g("Squeeze", g.weight(bias.reshape(1, -1)), g.weight(np.array([0])))
    return str(g("Add", g("MatMul", x, w), b))


def halved(g: Sketch, x: str, weight: Array, bias: Array) -> str:
    """Weight and bias in half precision behind a Cast."""
    both = [g("Cast", g.weight(a.astype(np.float16)), to=TensorProto.FLOAT) for a in (weight, bias)]
    return str(g("Add", g("MatMul", x, both[0]), both[1]))


def called(g: Sketch, x: str, weight: Array, bias: Array) -> str:
    """A call of a function in the model."""
    if not g.functions:
        body = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
        opsets = [helper.make_opsetid("", g.opset)]
        g.functions.append(helper.make_function("local", "Linear", ["x", "w", "b"], ["y"], body, opsets))
    return str(g("Linear", x, g.weight(weight), g.weight(bias), domain="local"))


def convolved(g: Sketch, x: str, weight: Array, bias: Array) -> str:
    """A convolution of width 1 over channels first."""
    y = g("Conv", g.transpose(x, 0, 2, 1), g.weight(weight.T[..., None].copy()), g.weight(bias))
    return g.transpose(y, 0, 2, 1)


def constants(g: Sketch, x: str, weight: Array, bias: Array) -> str:
    """Constant nodes in the place of initializers."""
    w, b = (g("Constant", value=numpy_helper.from_array(a)) for a in (weight, bias))
    return str(g("Add", g("MatMul", x, w), b))


def tied(g: Sketch, w: Weights, x: str) -> Heads:
    """Query and key read one weight behind one Transpose and one bias behind one Cast; `w` is made to agree."""
    w.parts.update(wk=w["wq"], bk=w["bq"])
    weight = g.transpose(g.weight(w["wq"].T.copy()), 1, 0)
    bias = g("Cast", g.weight(w["bq"].astype(np.float16)), to=TensorProto.FLOAT)
    parts = [g("Add", g("MatMul", x, weight), bias) for _ in range(2)] + [linear(g, x, w["wv"], w["bv"])]
    q, k, v = (g.transpose(g.reshape(p, 0, 0, -1, E), 0, 2, 1, 3) for p in parts)
    return q, k, v


def fused_split(g: Sketch, w: Weights, x: str) -> Heads:
    """One projection, split in three on the last axis; key and value narrower where heads share them."""
    y = linear(g, x, w.fused("wq", "wk", "wv"), w.fused("bq", "bk", "bv"))
    sizes = g.weight(np.array([H * E, w.groups * E, w.groups * E]))
    q, k, v = (g.transpose(g.reshape(p, 0, 0, -1, E), 0, 2, 1, 3) for p in g("Split", y, sizes, axis=-1, outputs=3))
    return q, k, v


def fused_slice(g: Sketch, w: Weights, x: str) -> Heads:
    """One projection, three slices, the last one open-ended, the first counted from the end."""
    y = linear(g, x, w.fused("wq", "wk", "wv"), w.fused("bq", "bk", "bv"))
    n, wide = w.groups * E, H * E + 2 * w.groups * E
    bounds = [(-wide, -2 * n), (H * E, wide - n), (wide - n, 2**63 - 1)]
    parts = [g("Slice", y, *(g.weight(np.array([i])) for i in (a, b, 2))) for a, b in bounds]
    q, k, v = (g.transpose(g.reshape(p, 0, 0, -1, E), 0, 2, 1, 3) for p in parts)
    return q, k, v


def fused_stack(g: Sketch, w: Weights, x: str) -> Heads:
    """[B,S,3,H,E], three first, picked by index."""
    y = linear(g, x, w.fused("wq", "wk", "wv"), w.fused("bq", "bk", "bv"))
    stack = g.transpose(g.reshape(y, 0, 0, 3, H, E), 2, 0, 3, 1, 4)
    q, k, v = (g("Gather", stack, g.weight(np.array(i)), axis=0) for i in range(3))
    return q, k, v


def fused_interleaved(g: Sketch, w: Weights, x: str) -> Heads:
    """[B,S,H,3*E]: the query, key and value of one head side by side."""
    both = [
        np.concatenate([w[f"{kind}{n}"].reshape(-1, H, E) for n in "qkv"], -1).reshape(-1, 3 * H * E) for kind in "wb"
    ]
    y = g.transpose(g.reshape(linear(g, x, both[0], both[1][0]), 0, 0, H, 3 * E), 0, 2, 1, 3)
    q, k, v = g("Split", y, g.weight(np.array([E, E, E])), axis=3, outputs=3)
    return q, k, v


# -- [B,H,S,E] -> block -----------------------------------------------------------------------------------------------


def attend(g: Sketch, w: Weights, heads: Heads, biased: Callable[[Sketch, str], str] | None = None) -> str:
    """Scaled scores (+ bias), softmax, context, output projection."""
    q, k, v = heads
    scores = g("Mul", g("MatMul", q, g.transpose(k, 0, 1, 3, 2)), g.weight(np.float32(E**-0.5)))
    p = g("Softmax", biased(g, scores) if biased else scores, axis=-1)
    joined = g.reshape(g.transpose(g("MatMul", p, v), 0, 2, 1, 3), 0, 0, H * E)
    return linear(g, joined, w["wo"], w["bo"])


def batched(g: Sketch, w: Weights, heads: Heads) -> str:
    """[B*H,S,E] products; every target is computed from shapes and a constant number of heads."""
    count = g.weight(np.array([H]))
    batch = g("Gather", g("Shape", heads[0]), g.weight(np.array([0])))
    both = g("Mul", batch, count)
    q, k, v = (g("Reshape", part, g.sizes(part, both, 2, 3)) for part in heads)
    scores = g("Mul", g("MatMul", q, g.transpose(k, 0, 2, 1)), g.weight(np.float32(E**-0.5)))
    context = g("MatMul", g("Softmax", scores, axis=-1), v)
    split = g("Reshape", context, g("Concat", batch, count, g.sizes(context, 1, 2), axis=0))
    joined = g("Reshape", g.transpose(split, 0, 2, 1, 3), g.sizes("x", 0, 1, g.weight(np.array([-1]))))
    return linear(g, joined, w["wo"], w["bo"])


def group_normed(g: Sketch, w: Weights, heads: Heads) -> str:
    """A group norm over the context, each head of a token a group, with a gain and a shift for every channel (RetNet's)."""
    q, k, v = heads
    scores = g("Mul", g("MatMul", q, g.transpose(k, 0, 1, 3, 2)), g.weight(np.float32(E**-0.5)))
    context = g("MatMul", g("Softmax", scores, axis=-1), v)
    tokens = g.reshape(g.transpose(context, 0, 2, 1, 3), -1, H * E)
    normed = g("GroupNormalization", tokens, g.weight(GAIN), g.weight(SHIFT), num_groups=H)
    joined = g("Reshape", normed, g.sizes("x", 0, 1, g.weight(np.array([-1]))))
    return linear(g, joined, w["wo"], w["bo"])


def shared_by(way: str) -> Callable[[Sketch, Heads], Heads]:
    """Grouped queries: each key and value head repeated for its queries."""

    def repeat(g: Sketch, x: str) -> str:
        if way == "gather":
            return str(g("Gather", x, g.weight(np.arange(2).repeat(H // 2)), axis=1))
        wide = g("Unsqueeze", x, g.weight(np.array([2])))
        if way == "expand":
            share = g.weight(np.array([H // 2]))
            wide = g("Expand", wide, g.sizes(wide, 0, 1, share, 3, 4))
        else:
            wide = g("Tile", wide, g.weight(np.array([1, 1, H // 2, 1, 1])))
        return g.reshape(wide, 0, H, -1, E)

    return lambda g, heads: (heads[0], repeat(g, heads[1]), repeat(g, heads[2]))


# -- feed-forward -----------------------------------------------------------------------------------------------------


def plain(g: Sketch, w: Weights, z: str, project: Callable[..., str] = linear) -> str:
    """up, Relu, down."""
    return project(g, g("Relu", project(g, z, w["up"], w["bu"])), w["down"], w["bd"])


def in_two_parts(g: Sketch, w: Weights, z: str) -> str:
    """Two up projections of unequal width, joined by Concat."""
    a, b = (g("Relu", linear(g, z, w["up"][:, s], w["bu"][s])) for s in (slice(0, 4), slice(4, F)))
    return linear(g, g("Concat", a, b, axis=-1), w["down"], w["bd"])


def pieces(g: Sketch, w: Weights, z: str) -> str:
    """The activation split unequally, treated apart, joined again in another order."""
    u = linear(g, z, w["up"], w["bu"])
    a, b, c = g("Split", u, g.weight(np.array([2, 5, 3])), axis=2, outputs=3)
    joined = g("Concat", g("Relu", c), g("Relu", a), g("Relu", b), axis=2)
    order = [*range(7, 10), *range(2), *range(2, 7)]
    return linear(g, joined, w["down"][order], w["bd"])


def interleaved(g: Sketch, w: Weights, z: str) -> str:
    """Even and odd neurons by slices with steps, backwards at that."""
    u = linear(g, z, w["up"], w["bu"])
    bounds = [(0, 2**63 - 1, 2), (-1, -(2**63), -2)]
    parts = [g("Slice", u, *(g.weight(np.array([i])) for i in (a, b, -1, s))) for a, b, s in bounds]
    parts = [g("Max", part, g.weight(np.zeros(F // 2, np.float32))) for part in parts]
    order = [*range(0, F, 2), *range(F - 1, 0, -2)]
    return linear(g, g("Concat", *parts, axis=-1), w["down"][order], w["bd"])
