"""After a cut, a fused operator is that operator again with what is left of its weights; after other edits it stays primitive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import Array

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.blocks.cost import macs
from axformer_passes.io.files import serialized
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise

B, S, D, H, E, F = 2, 5, 12, 4, 8, 10
WIDTH, MS = H * E, "com.microsoft"
KEPT = [0, 2, 3]
COLUMNS = np.concatenate([np.arange(h * E, (h + 1) * E) for h in KEPT])
KEPT_NEURONS = [i for i in range(F) if i not in (2, 7)]
Weights = dict[str, Array]


def drawn() -> Weights:
    """The parameters of one layer, float32."""
    rng = np.random.default_rng(5)
    shapes = {
        "wq": (D, WIDTH), "wk": (D, WIDTH), "wv": (D, WIDTH), "bq": (WIDTH,), "bk": (WIDTH,), "bv": (WIDTH,),
        "wo": (WIDTH, D), "bo": (D,), "g1": (D,), "s1": (D,), "up": (D, F), "bu": (F,), "down": (F, D), "bd": (D,),
        "g2": (D,), "s2": (D,), "position": (1, H, S, S),
    }  # fmt: skip
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def narrowed(w: Weights) -> Weights:
    """The same without head 1 and neurons 2 and 7."""
    return {
        **w,
        **{name: w[name][..., COLUMNS] for name in ("wq", "wk", "wv", "bq", "bk", "bv")},
        "wo": w["wo"][COLUMNS],
        "up": w["up"][:, KEPT_NEURONS],
        "bu": w["bu"][KEPT_NEURONS],
        "down": w["down"][KEPT_NEURONS],
        "position": w["position"][:, KEPT],
    }


class Layer:
    """One post-norm layer of fused operators, drawn from its weights."""

    def __init__(self, w: Weights, opset: int) -> None:
        self.w, self.opset, self.nodes, self.constants = w, opset, list[onnx.NodeProto](), dict[str, Array]()

    def __call__(self, op_type: str, *inputs: str, domain: str = MS, out: str = "", **attributes: Any) -> str:
        out = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [out], name=f"node {out}", domain=domain, **attributes))
        return out

    def const(self, name: str, array: Array) -> str:
        """An initializer."""
        self.constants[name] = array
        return name

    def weight(self, name: str) -> str:
        """One of the weights as an initializer."""
        return self.const(name, self.w[name])

    def linear(self, x: str, weight: str, bias: str) -> str:
        """x @ weight + bias."""
        return self("Add", self("MatMul", x, self.weight(weight), domain=""), self.weight(bias), domain="")

    def model(self, context: Callable[[Layer, int], str]) -> ir.Model:
        """The layer around `context(layer, heads)`, the attention up to its output projection."""
        heads = self.w["wq"].shape[1] // E
        projected = self("MatMul", context(self, heads), self.weight("wo"), domain="")
        norm = [self.weight("g1"), self.weight("s1"), self.weight("bo")]
        z = self("SkipLayerNormalization", "x", projected, *norm, epsilon=1e-5)
        act = self("BiasGelu", self("MatMul", z, self.weight("up"), domain=""), self.weight("bu"))
        down = self("MatMul", act, self.weight("down"), domain="")
        norm = [self.weight("g2"), self.weight("s2"), self.weight("bd")]
        self("SkipLayerNormalization", down, z, *norm, epsilon=1e-5, out="y")
        infos = {"x": (TensorProto.FLOAT, ["batch", "tokens", D]), "mask": (TensorProto.INT32, ["batch", "tokens"])}
        ins = [helper.make_tensor_value_info(name, *info) for name, info in infos.items()]
        out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "tokens", D])]
        constants = [numpy_helper.from_array(array, name) for name, array in self.constants.items()]
        graph = helper.make_graph(self.nodes, "layer", ins, out, constants)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid(MS, 1)]
        return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=9))


def packed(layer: Layer, heads: int) -> str:
    """com.microsoft Attention."""
    w = layer.w
    weights = layer.const("wqkv", np.concatenate([w["wq"], w["wk"], w["wv"]], axis=1))
    bias = layer.const("bqkv", np.concatenate([w["bq"], w["bk"], w["bv"]]))
    return layer("Attention", "x", weights, bias, "mask", num_heads=heads)


def packed_with_sizes(layer: Layer, heads: int) -> str:
    """com.microsoft Attention that states its widths."""
    out = packed(layer, heads)
    layer.nodes[-1].attribute.append(helper.make_attribute("qkv_hidden_sizes", [heads * E] * 3))
    return out


def multi_head(layer: Layer, heads: int) -> str:
    """com.microsoft MultiHeadAttention with its bias and a relative position bias per head."""
    w, products = layer.w, []
    for name in ("wq", "wk", "wv"):
        products.append(layer("MatMul", "x", layer.weight(name), domain=""))
    bias = layer.const("bqkv", np.concatenate([w["bq"], w["bk"], w["bv"]]))
    return layer("MultiHeadAttention", *products, bias, "mask", layer.weight("position"), num_heads=heads)


def rotated(layer: Layer, heads: int) -> str:
    """MultiHeadAttention behind rotary embeddings of two channels of each head."""
    angles = np.random.default_rng(2).normal(size=(S, 1)).astype(np.float32)
    tables = layer.const("cos", np.cos(angles)), layer.const("sin", np.sin(angles))
    zero, attributes = layer.const("zero", np.array([0])), {"num_heads": heads, "rotary_embedding_dim": 2}
    q, k, v = (layer.linear("x", f"w{p}", f"b{p}") for p in "qkv")
    q, k = (layer("RotaryEmbedding", p, zero, *tables, **attributes) for p in (q, k))
    return layer("MultiHeadAttention", q, k, v, "", "mask", num_heads=heads)


def standard(layer: Layer, heads: int) -> str:
    """Attention of operator set 23."""
    q, k, v = (layer.linear("x", f"w{p}", f"b{p}") for p in "qkv")
    return layer("Attention", q, k, v, domain="", q_num_heads=heads, kv_num_heads=heads)


def transposed(layer: Layer, heads: int) -> str:
    """No fused attention: FusedMatMul with a factor and a transposed side."""
    parts = []
    for p in "qkv":
        split = layer(
            "Reshape", layer.linear("x", f"w{p}", f"b{p}"), layer.const(f"h{p}", np.array([0, 0, heads, E])), domain=""
        )
        parts.append(layer("Transpose", split, domain="", perm=[0, 2, 1, 3]))
    scores = layer("FusedMatMul", parts[0], parts[1], transB=1, alpha=0.5)
    context = layer("FusedMatMul", layer("Softmax", scores, domain="", axis=-1), parts[2])
    wide = layer("Transpose", context, domain="", perm=[0, 2, 1, 3])
    return layer("Reshape", wide, layer.const("joined", np.array([0, 0, heads * E])), domain="")


def grouped(layer: Layer, heads: int) -> str:
    """com.microsoft GroupQueryAttention: one query head on each key head; its lengths are computed from the mask."""
    q, k, v = (layer.linear("x", f"w{p}", f"b{p}") for p in "qkv")
    real = layer("ReduceSum", "mask", layer.const("one_axis", np.array([1])), domain="", keepdims=0)
    last = layer("Sub", real, layer.const("one", np.array(1, np.int32)), domain="")
    tokens = layer("Gather", layer("Shape", "x", domain=""), layer.const("one_index", np.array([1])), domain="", axis=0)
    total = layer("Cast", tokens, domain="", to=int(TensorProto.INT32))
    return layer("GroupQueryAttention", q, k, v, "", "", last, total, num_heads=heads, kv_num_heads=heads)


def standard_by_heads(layer: Layer, heads: int) -> str:
    """Attention of operator set 23 on 4-D inputs, with a mask per head."""
    parts = []
    for p in "qkv":
        target = layer.const(f"h{p}", np.array([0, 0, heads, E]))
        split = layer("Reshape", layer.linear("x", f"w{p}", f"b{p}"), target, domain="")
        parts.append(layer("Transpose", split, domain="", perm=[0, 2, 1, 3]))
    context = layer("Attention", *parts, layer.weight("position"), domain="")
    wide = layer("Transpose", context, domain="", perm=[0, 2, 1, 3])
    return layer("Reshape", wide, layer.const("joined", np.array([0, 0, heads * E])), domain="")


FORMS: dict[str, tuple[Callable[[Layer, int], str], int]] = {
    "Attention": (packed, 17),
    "Attention, operator set 11": (packed, 11),
    "Attention, widths stated": (packed_with_sizes, 17),
    "MultiHeadAttention": (multi_head, 17),
    "MultiHeadAttention, operator set 12": (multi_head, 12),
    "RotaryEmbedding": (rotated, 17),
    "Attention-23": (standard, 23),
    "Attention-23, 4-D": (standard_by_heads, 23),
    "GroupQueryAttention": (grouped, 17),
    "FusedMatMul": (transposed, 17),
}
FEEDS = {
    "x": np.random.default_rng(8).normal(size=(B, S, D)).astype(np.float32),
    "mask": np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=np.int32),
}
SOME = Plan().without_heads(0, [1]).without_neurons(0, [2, 7])


def operators(model: ir.Model) -> list[str]:
    """Operator and name of every node, in order."""
    return [f"{node.domain}::{node.op_type} {node.name}" for node in model.graph]


def runs(model: ir.Model) -> Array:
    """The output on FEEDS; a model without a mask gets none."""
    names = {v.name for v in model.graph.inputs}
    return run_once(serialized(model), {k: v for k, v in FEEDS.items() if k in names})["y"]


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_of_fused_operators_is_recognised(form: str) -> None:
    context, opset = FORMS[form]
    anatomy = recognise(Layer(drawn(), opset).model(context), run_once)
    (layer,) = anatomy.layers
    assert anatomy.refused == ()
    assert layer.attention is not None and layer.feed_forward is not None
    assert (layer.attention.heads, layer.attention.head_size, layer.feed_forward.neurons) == (H, E, F)
    assert (layer.attention.why, layer.feed_forward.why) == (None, None)


@pytest.mark.parametrize("form", FORMS)
def test_what_a_cut_leaves_is_the_fused_operator_on_narrowed_weights(form: str) -> None:
    """The oracle is the same graph drawn with fewer heads and neurons, and ONNX Runtime's fused kernels."""
    context, opset = FORMS[form]
    wanted = Layer(narrowed(drawn()), opset).model(context)
    found = apply_plan(Layer(drawn(), opset).model(context), SOME, run_once)
    assert operators(found) == operators(wanted)
    for a, b in zip(found.graph, wanted.graph, strict=True):
        assert {k: v.value for k, v in a.attributes.items()} == {k: v.value for k, v in b.attributes.items()}
    np.testing.assert_allclose(runs(found), runs(wanted), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_the_lowering_is_left(form: str) -> None:
    context, opset = FORMS[form]
    source = Layer(drawn(), opset).model(context)
    found = apply_plan(source, SOME, run_once)
    assert len(found.graph.initializers) == len(source.graph.initializers)


@pytest.mark.parametrize("form", FORMS)
def test_a_block_taken_out_takes_its_bias_along(form: str) -> None:
    """The oracle is the layer whose output projection and its bias are zero."""
    context, opset = FORMS[form]
    w = drawn()
    wanted = Layer({**w, "wo": w["wo"] * 0, "bo": w["bo"] * 0}, opset).model(context)
    found = apply_plan(Layer(w, opset).model(context), Plan().without_attention(0), run_once)
    np.testing.assert_allclose(runs(found), runs(wanted), rtol=0, atol=1e-5)
    assert not any("Attention" in name for name in operators(found))


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_that_is_hardened_stays_primitive_and_the_rest_is_lifted(form: str) -> None:
    """K as large as the sequence changes nothing, so that the source is the oracle."""
    context, opset = FORMS[form]
    source = Layer(drawn(), opset).model(context)
    found = apply_plan(source, Plan().with_hard_attention(0, S), run_once)
    names = operators(found)
    assert not any("Attention" in name for name in names) and any(":TopK" in name for name in names)
    assert {"BiasGelu", "SkipLayerNormalization"} <= {node.op_type for node in found.graph}
    np.testing.assert_allclose(runs(found), runs(source), rtol=0, atol=1e-5)


def test_layers_that_share_a_bias_share_what_is_left_of_it() -> None:
    once = Layer(drawn(), 17)
    model = once.model(multi_head)
    proto = ir.to_proto(model)
    again = [onnx.NodeProto.FromString(node.SerializeToString()) for node in proto.graph.node]
    for node in again:
        node.name = f"again {node.name}"
        node.input[:] = [
            f"again {n}" if n and n not in once.constants and n not in ("x", "mask") else n for n in node.input
        ]
        node.input[:] = ["y0" if n == "x" else n for n in node.input]
        node.output[:] = [n if n == "y" else f"again {n}" for n in node.output]
    proto.graph.node[-1].output[0] = "y0"
    proto.graph.node.extend(again)
    plan = Plan().without_heads(0, [1]).without_heads(1, [1])
    found = apply_plan(ir.from_proto(proto), plan, run_once)
    assert len(found.graph.initializers) == len(once.constants)
    assert [node.op_type for node in found.graph].count("MultiHeadAttention") == 2


def test_a_bias_that_is_computed_for_every_head_is_gathered_and_the_node_lifted() -> None:
    def biased(layer: Layer, heads: int) -> str:
        mean = layer("ReduceMean", "x", domain="", keepdims=0)
        bias = layer("Softmax", layer("Mul", layer.weight("position"), mean, domain=""), domain="", axis=-1)
        q, k, v = (layer("MatMul", "x", layer.weight(f"w{p}"), domain="") for p in "qkv")
        return layer("MultiHeadAttention", q, k, v, "", "mask", bias, num_heads=heads)

    wanted = Layer(narrowed(drawn()), 17).model(biased)
    found = apply_plan(Layer(drawn(), 17).model(biased), SOME, run_once)
    assert [n.op_type for n in found.graph if n.op_type != "Gather"] == [n.op_type for n in wanted.graph]
    assert "Gather" in [n.op_type for n in found.graph]
    np.testing.assert_allclose(runs(found), runs(wanted), rtol=0, atol=1e-5)


def test_fused_operators_cost_what_their_steps_cost() -> None:
    """Projections D x 3 HE and HE x D, scores and context 2 x S x HE, and the feed-forward block: for each of S tokens."""
    counts = {
        form: macs(Layer(drawn(), opset).model(context), run_once, 1, S) for form, (context, opset) in FORMS.items()
    }
    assert set(counts.values()) == {S * (4 * D * WIDTH + 2 * S * WIDTH + 2 * D * F)}
