"""Transformers of any depth, drawn node by node: three spellings of a layer in turn on one residual stream.

    eager    post-norm; shape chains for every Reshape, GELU by Erf, LayerNormalization in primitives    about 75 nodes
    fused    pre-norm; one projection for query, key and value, split; Gelu and norms as single nodes    about 20 nodes
    rotary   pre-norm; rotary embeddings, gated feed-forward, RMSNorm in primitives, no biases           about 55 nodes
    contrib  post-norm in ONNX Runtime's fused operators, for those who ask for it                       10 nodes

Small constants (indices, epsilons, rotary tables, the mask) are shared by all layers, as optimisers leave them.

Letters: B batch, S tokens, D model width, H heads, E head size, F neurons.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from small_graphs import Sketch

from axformer_passes.anatomy import Anatomy
from axformer_passes.plan import Plan

OPSET = 20


@dataclasses.dataclass(frozen=True)
class Sizes:
    """D, H and F of a model."""

    width: int = 8
    heads: int = 2
    neurons: int = 6

    @property
    def head_size(self) -> int:
        """E."""
        return self.width // self.heads


class Deep(Sketch):
    """A sketch with random weights and constants that are written once."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        super().__init__(OPSET)
        self.sizes = sizes
        self.rng = np.random.default_rng(seed)
        self._shared: dict[tuple[str, bytes], str] = {}

    def shared(self, array: Any) -> str:
        """An initializer for small constants: equal ones are one."""
        array = np.asarray(array)
        key = f"{array.dtype}{array.shape}", array.tobytes()
        if key not in self._shared:
            self._shared[key] = self.weight(array)
        return self._shared[key]

    def number(self, value: float) -> str:
        """A shared float32 scalar."""
        return self.shared(np.float32(value))

    def drawn(self, *shape: int) -> str:
        """A random weight."""
        return self.weight(self.rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[0])))

    def linear(self, x: str, rows: int, columns: int, bias: bool = True) -> str:
        """MatMul, and Add of a bias."""
        y = str(self("MatMul", x, self.drawn(rows, columns)))
        return str(self("Add", self.drawn(columns), y)) if bias else y

    def target(self, x: str, *rest: int) -> str:
        """[B, S, *rest] of x[B,S,..], as exporters compute it."""
        shape = self("Shape", x)
        dims = [
            self("Unsqueeze", self("Gather", shape, self.shared(np.int64(i)), axis=0), self.shared(np.array([0])))
            for i in range(2)
        ]
        return str(self("Concat", *dims, self.shared(np.array(rest)), axis=0))


def eager(g: Deep, x: str) -> str:
    """Post-norm, nothing fused."""
    d, h, e, f = g.sizes.width, g.sizes.heads, g.sizes.head_size, g.sizes.neurons
    q, k, v = (
        g.transpose(g("Reshape", p, g.target(p, h, e)), 0, 2, 1, 3) for p in (g.linear(x, d, d) for _ in range(3))
    )
    scores = g("Add", g("Div", g("MatMul", q, g.transpose(k, 0, 1, 3, 2)), g.number(e**0.5)), "bias")
    context = g.transpose(g("MatMul", g("Softmax", scores, axis=-1), v), 0, 2, 1, 3)
    z = _layer_norm(g, g("Add", g.linear(g("Reshape", context, g.target(context, d)), d, d), x))
    up = g.linear(z, d, f)
    erf = g("Add", g("Erf", g("Div", up, g.number(2**0.5))), g.number(1))
    return _layer_norm(g, g("Add", g.linear(g("Mul", g("Mul", up, erf), g.number(0.5)), f, d), z))


def _layer_norm(g: Deep, x: str) -> str:
    d = g.sizes.width
    centred = g("Sub", x, g("ReduceMean", x, g.shared(np.array([-1]))))
    variance = g("ReduceMean", g("Pow", centred, g.number(2)), g.shared(np.array([-1])))
    scaled = g("Div", centred, g("Sqrt", g("Add", variance, g.number(1e-5))))
    return str(g("Add", g("Mul", scaled, g.drawn(d)), g.drawn(d)))


def fused(g: Deep, x: str) -> str:
    """Pre-norm, one projection for query, key and value."""
    d, h, e, f = g.sizes.width, g.sizes.heads, g.sizes.head_size, g.sizes.neurons
    y = g.linear(_norm(g, x), d, 3 * d)
    q, k, v = (
        g.transpose(g("Reshape", part, g.shared(np.array([0, 0, h, e]))), 0, 2, 1, 3)
        for part in g("Split", y, g.shared(np.array([d, d, d])), axis=-1, outputs=3)
    )
    scores = g("Add", g("Mul", g("MatMul", q, g.transpose(k, 0, 1, 3, 2)), g.number(e**-0.5)), "bias")
    context = g.transpose(g("MatMul", g("Softmax", scores, axis=-1), v), 0, 2, 1, 3)
    z = g("Add", x, g.linear(g("Reshape", context, g.shared(np.array([0, 0, d]))), d, d))
    return str(g("Add", z, g.linear(g("Gelu", g.linear(_norm(g, z), d, f)), f, d)))


def _norm(g: Deep, x: str) -> str:
    return str(g("LayerNormalization", x, g.drawn(g.sizes.width), g.drawn(g.sizes.width)))


def rotary(g: Deep, x: str) -> str:
    """Pre-norm, rotary embeddings, gated feed-forward, no biases."""
    d, h, e, f = g.sizes.width, g.sizes.heads, g.sizes.head_size, g.sizes.neurons
    y = _rms_norm(g, x)
    q, k, v = (
        g.transpose(g("Reshape", p, g.target(p, h, e)), 0, 2, 1, 3)
        for p in (g.linear(y, d, d, bias=False) for _ in range(3))
    )
    q, k = _turned(g, q), _turned(g, k)
    scores = g("Add", g("Mul", g("MatMul", q, g.transpose(k, 0, 1, 3, 2)), g.number(e**-0.5)), "bias")
    context = g.transpose(g("MatMul", g("Softmax", scores, axis=-1), v), 0, 2, 1, 3)
    z = g("Add", x, g.linear(g("Reshape", context, g.target(context, d)), d, d, bias=False))
    y = _rms_norm(g, z)
    gate, up = (g.linear(y, d, f, bias=False) for _ in range(2))
    active = g("Mul", g("Mul", gate, g("Sigmoid", gate)), up)
    return str(g("Add", z, g.linear(active, f, d, bias=False)))


def _turned(g: Deep, x: str) -> str:
    """Rotary embedding: x * cos + rotated x * sin, by tables that all layers share."""
    half = g.sizes.head_size // 2
    ends = [g.shared(np.array([n])) for n in (0, half, 2**63 - 1, -1)]
    left, right = g("Slice", x, ends[0], ends[1], ends[3]), g("Slice", x, ends[1], ends[2], ends[3])
    rotated = g("Concat", g("Neg", right), left, axis=-1)
    return str(g("Add", g("Mul", x, "cos"), g("Mul", rotated, "sin")))


def _rms_norm(g: Deep, x: str) -> str:
    mean = g("ReduceMean", g("Pow", x, g.number(2)), g.shared(np.array([-1])))
    root = g("Reciprocal", g("Sqrt", g("Add", mean, g.number(1e-6))))
    return str(g("Mul", g.drawn(g.sizes.width), g("Mul", x, root)))


def contrib(g: Deep, x: str) -> str:
    """Post-norm in the fused operators of ONNX Runtime."""
    d, h, f, ms = g.sizes.width, g.sizes.heads, g.sizes.neurons, "com.microsoft"
    q, k, v = (g.linear(x, d, d, bias=False) for _ in range(3))
    context = g("MultiHeadAttention", q, k, v, g.drawn(3 * d), "mask", domain=ms, num_heads=h)
    z = _skip_norm(g, g.linear(context, d, d, bias=False), x)
    inner = g("BiasGelu", g.linear(z, d, f, bias=False), g.drawn(f), domain=ms)
    return _skip_norm(g, g.linear(inner, f, d, bias=False), z)


def _skip_norm(g: Deep, x: str, skip: str) -> str:
    d = g.sizes.width
    parts = (x, skip, g.drawn(d), g.drawn(d), g.drawn(d))
    return str(g("SkipLayerNormalization", *parts, domain="com.microsoft", epsilon=1e-5))


SPELLINGS: tuple[Callable[[Deep, str], str], ...] = (eager, fused, rotary)


def deep_model(
    layers: int,
    sizes: Sizes = Sizes(),
    spellings: tuple[Callable[[Deep, str], str], ...] = SPELLINGS,
    seed: int = 0,
) -> onnx.ModelProto:
    """`layers` layers, spelled in turn, on ids int64[B,S] and a mask int64[B,S]; logits float[B,S,3]."""
    g = Deep(sizes, seed)
    x = str(g("Gather", g.drawn(11, sizes.width), "input_ids"))
    _prelude(g)
    for layer in range(layers):
        x = spellings[layer % len(spellings)](g, x)
    logits = g.linear(_norm(g, x), sizes.width, 3)
    dynamic = ["batch", "tokens"]
    kinds = {"input_ids": TensorProto.INT64, "attention_mask": TensorProto.INT64}
    return g.model(dict.fromkeys(kinds, dynamic), logits, [*dynamic, 3], **kinds)


def _prelude(g: Deep) -> None:
    """The tensors called mask int32[B,S], bias[B,1,1,S], cos[S,E] and sin[S,E]."""
    g("Cast", "attention_mask", to=TensorProto.INT32)
    g.nodes[-1].output[0] = "mask"
    half, minus = g.sizes.head_size // 2, g("Cast", "attention_mask", to=TensorProto.FLOAT)
    wide = g("Unsqueeze", g("Sub", g.number(1), minus), g.shared(np.array([1, 2])))
    g("Mul", wide, g.number(-1e4))
    g.nodes[-1].output[0] = "bias"
    length = g("Gather", g("Shape", "input_ids"), g.shared(np.int64(1)), axis=0)
    places = g("Cast", g("Range", g.shared(np.int64(0)), length, g.shared(np.int64(1))), to=TensorProto.FLOAT)
    speeds = g.shared((10000.0 ** (-np.arange(half) / half)).astype(np.float32).reshape(1, half))
    angles = g("Mul", g("Unsqueeze", places, g.shared(np.array([1]))), speeds)
    both = g("Concat", angles, angles, axis=-1)
    for operator in ("Cos", "Sin"):
        g(operator, both)
        g.nodes[-1].output[0] = operator.lower()


def thinned_everywhere(anatomy: Anatomy) -> Plan:
    """A plan that changes every layer: heads, neurons, a block in every fourth, hard attention in both modes."""
    plan = Plan()
    for layer in range(len(anatomy.layers)):
        if layer % 4 < 3:
            plan = plan.without_heads(layer, [1]).without_neurons(layer, [0, 3])
        elif layer % 8 == 3:
            plan = plan.without_attention(layer)
        else:
            plan = plan.without_feed_forward(layer)
        plan = plan.with_hard_attention(layer, 3, "truncated" if layer % 2 else "renormalised")
    return plan
