"""Folded constants on real exports and on hand-drawn graphs: the outputs of the source, with fewer operators.

The oracle is the source file in ONNX Runtime, its own optimisations off.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from surgery import assert_close
from test_readout import EXPORTERS, POOLED, WHOLE, assert_same, cases, runner
from zoo import build

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.errors import PlanError
from axformer_passes.graph.values import constant
from axformer_passes.io.files import load_model
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import examine
from axformer_passes.simplify.fold import fold_constants

FOLDED = Plan(constants="folded")
rng = np.random.default_rng(0)


def folded(model: ir.Model, plan: Plan = FOLDED) -> ir.Model:
    """`model` with its constants folded, after the full checker with strict shape inference."""
    result = apply_plan(model, dataclasses.replace(plan, constants="folded"), run_once)
    proto = ir.to_proto(result)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    return result


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), cases((*POOLED, *WHOLE), *EXPORTERS))
def test_outputs_equal_the_source(family: str, exporter: str) -> None:
    zoo = build(family, exporter)
    source = zoo.opened()
    result = folded(source)
    assert len(result.graph) <= len(source.graph)
    assert_same(zoo, source, result)


@pytest.mark.parametrize("how", ["torchscript-eager-11", "dynamo-20+ortfusions", "torchscript-eager-17+qdq"])
def test_outputs_equal_the_source_in_older_fused_and_quantised_files(how: str) -> None:
    zoo = build("bert", how)
    source = load_model(zoo.path)
    assert_same(zoo, source, folded(source), range(1, 13, 4))


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), cases(("bert", "gpt2", "vit", "llama"), *EXPORTERS))
def test_a_cut_graph_equals_the_one_whose_constants_are_kept(family: str, exporter: str) -> None:
    zoo = build(family, exporter)
    source = load_model(zoo.path)
    plan = Plan(readout="narrow").without_heads(0, [0]).without_neurons(1, [0, 3, 4]).with_hard_attention(1, 2)
    assert_same(zoo, apply_plan(source, plan, run_once), folded(source, plan), range(2, 13, 3))


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("mode", ["truncated", "renormalised"])
def test_hard_attention_keeps_the_biases_that_it_needs(exporter: str, mode: Any) -> None:
    zoo = build("bert", exporter)
    source = load_model(zoo.path)
    plan = Plan().with_hard_attention(0, 2, mode).with_hard_attention(1, 2, mode)
    assert_same(zoo, apply_plan(source, plan, run_once), folded(source, plan), range(2, 13, 3))


@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_bert_keeps_two_biases_a_layer_no_factor_and_no_computed_target(exporter: str) -> None:
    zoo = build("bert", exporter)
    model = folded(load_model(zoo.path))
    anatomy = examine(model, run_once).anatomy
    assert len(anatomy.layers) == zoo.layers  # it is recognised as before
    counts = Counter(node.op_type for node in model.graph)
    biases = [n for n in model.graph if n.op_type == "Add" and any(_is_vector(v) for v in n.inputs)]
    gemms = [n for n in model.graph if n.op_type == "Gemm" and len(n.inputs) > 2]
    assert len(biases) + len(gemms) <= 3 * zoo.layers + 2  # query, value, up; pooler, classifier
    before_softmax = [n for n in model.graph if n.op_type in ("Mul", "Div") and any(_is_number(v) for v in n.inputs)]
    assert len(before_softmax) <= 2 * zoo.layers + 2  # those of GELU, and of the mask
    computed = [n for n in model.graph if n.op_type == "Reshape" and constant(n.inputs[1]) is None]
    assert len(computed) <= 1, counts


def _is_vector(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and array.ndim == 1 and array.size > 1


def _is_number(value: ir.Value | None) -> bool:
    array = constant(value)
    return array is not None and array.size == 1


def test_what_is_folded_is_recognised_and_cut_like_the_source() -> None:
    zoo = build("bert", "torchscript-eager-17")
    source = load_model(zoo.path)
    plan = Plan().without_heads(0, [1]).without_neurons(0, [2, 5]).with_hard_attention(1, 3)
    assert_same(zoo, apply_plan(source, plan, run_once), apply_plan(folded(source), plan, run_once), range(3, 13, 3))


def test_folding_twice_changes_nothing_more() -> None:
    model = folded(load_model(build("bert", "torchscript-eager-17").path))
    assert not fold_constants(apply_plan(model, Plan(), run_once), run_once)


# -- hand-drawn -------------------------------------------------------------------------------------------------------


class Drawn:
    """A graph in the making; float32, x[B, S, 8] comes in."""

    def __init__(self, *outputs: str) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.outputs = outputs

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
        return name

    def number(self, value: Any) -> str:
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(value), name))
        return name

    def put(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        out = name or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def linear(self, x: str, rows: int, columns: int, name: str = "") -> str:
        return self.put("Add", self.put("MatMul", x, self.weight(rows, columns)), self.weight(columns), name=name)

    def model(self) -> ir.Model:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "s", 8])
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs]
        graph = helper.make_graph(self.nodes, "drawn", [x], outputs, self.initializers)
        return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def check(model: ir.Model) -> tuple[int, int, int]:
    """(sizes, scales, offsets) folded; the outputs are the same."""
    result = model.clone()
    found = fold_constants(result, run_once)
    before, after = runner(model), runner(result)
    for batch, length in ((1, 1), (2, 5), (3, 4)):
        feeds = {"x": rng.normal(size=(batch, length, 8)).astype(np.float32)}
        expected = before(feeds)
        for name, array in after(feeds).items():
            assert_close(array, expected[name], name)
    return found.sizes, found.scales, found.offsets


def attention(graph: Drawn, last: bool = True, scores: str = "", weights: str = "") -> str:
    """One head; returns what it writes before its output projection."""
    q, k, v = (graph.linear("x", 8, 4) for _ in range(3))
    s = graph.put("MatMul", q, graph.put("Transpose", k, perm=[0, 2, 1]), name=scores)
    return graph.put("MatMul", graph.put("Softmax", s, axis=-1 if last else 1, name=weights), v)


def test_keys_lose_their_bias_and_values_give_theirs_to_the_output() -> None:
    graph = Drawn("y")
    graph.linear(attention(graph), 4, 8, name="y")
    assert check(graph.model()) == (0, 0, 2)


def test_a_softmax_over_another_axis_forgets_nothing() -> None:
    graph = Drawn("y")
    graph.linear(attention(graph, last=False), 4, 8, name="y")
    assert check(graph.model())[2] == 0


def test_scores_that_somebody_else_reads_keep_the_bias_of_the_keys() -> None:
    graph = Drawn("y", "scores")
    graph.linear(attention(graph, scores="scores"), 4, 8, name="y")
    assert check(graph.model())[2] == 1  # that of the values


def test_probabilities_may_be_read_elsewhere() -> None:
    graph = Drawn("y", "weights")
    graph.linear(attention(graph, weights="weights"), 4, 8, name="y")
    assert check(graph.model())[2] == 2


def test_values_keep_their_bias_where_nobody_takes_it() -> None:
    graph = Drawn("y")
    graph.put("MatMul", attention(graph), graph.weight(4, 8), name="y")
    assert check(graph.model())[2] == 1  # that of the keys


def test_a_bias_before_a_norm_goes_into_the_norm_before_it() -> None:
    graph = Drawn("y")
    r = graph.put("LayerNormalization", "x", graph.weight(8), graph.weight(8), axis=-1)
    up = graph.put("Relu", graph.linear(r, 8, 12))
    total = graph.put("Add", graph.linear(up, 12, 8), r)
    graph.put("LayerNormalization", total, graph.weight(8), graph.weight(8), axis=-1, name="y")
    assert check(graph.model()) == (0, 0, 1)


def test_a_bias_that_would_come_back_to_itself_stays() -> None:
    """The other reader of the norm leads to the very bias that would go: to take it out would lose what it should take in."""
    graph = Drawn("y")
    r = graph.put("LayerNormalization", "x", graph.weight(8), graph.weight(8), axis=-1)
    total = graph.put("Add", graph.linear(r, 8, 8), r)
    graph.put("LayerNormalization", total, graph.weight(8), graph.weight(8), axis=-1, name="y")
    assert check(graph.model())[2] == 0


def test_a_norm_whose_output_goes_through_something_unknown_is_left() -> None:
    graph = Drawn("y", "z")
    r = graph.put("LayerNormalization", "x", graph.weight(8), graph.weight(8), axis=-1)
    graph.put("Tanh", r, name="z")
    up = graph.put("Relu", graph.linear(r, 8, 12))
    total = graph.put("Add", graph.linear(up, 12, 8), r)
    graph.put("LayerNormalization", total, graph.weight(8), graph.weight(8), axis=-1, name="y")
    assert check(graph.model())[2] == 0


def test_a_factor_goes_into_weight_and_bias() -> None:
    graph = Drawn("y")
    y = graph.put("Transpose", graph.linear("x", 8, 4), perm=[0, 2, 1])
    graph.put("Div", y, graph.number(np.float32(3)), name="t")
    graph.put("Tanh", "t", name="y")
    assert check(graph.model()) == (0, 1, 0)


def test_a_factor_of_a_product_goes_into_one_side() -> None:
    graph = Drawn("y")
    q, k = graph.linear("x", 8, 4), graph.linear("x", 8, 4)
    s = graph.put("MatMul", q, graph.put("Transpose", k, perm=[0, 2, 1]))
    graph.put("Tanh", graph.put("Mul", graph.number(np.float32(0.3)), s), name="y")
    assert check(graph.model()) == (0, 1, 0)


@pytest.mark.parametrize("shared", ["weight", "product"])
def test_a_factor_stays_where_somebody_else_reads_what_it_scales(shared: str) -> None:
    graph = Drawn("y", "z")
    weight = graph.weight(8, 4)
    product = graph.put("MatMul", "x", weight)
    graph.put("Tanh", graph.put("Mul", product, graph.number(np.float32(0.3))), name="y")
    graph.put("Sigmoid", product if shared == "product" else graph.put("MatMul", "x", weight), name="z")
    assert check(graph.model())[1] == 0


def test_a_factor_that_adds_an_axis_or_is_not_one_number_stays() -> None:
    for number in (np.full((1, 1, 1, 1), 0.5, np.float32), np.array([1, 2, 3, 4], np.float32), np.float32(0)):
        graph = Drawn("y")
        graph.put("Mul", graph.linear("x", 8, 4), graph.number(number), name="t")
        graph.put("Tanh", "t", name="y")
        assert check(graph.model())[1] == 0


def test_targets_of_reshapes_become_constants() -> None:
    graph = Drawn("y")
    shape = graph.put("Shape", "x")
    front = graph.put("Slice", shape, graph.number([0]), graph.number([2]))
    target = graph.put("Concat", front, graph.number([2, 4]), axis=0)
    split = graph.put("Transpose", graph.put("Reshape", "x", target), perm=[0, 2, 1, 3])
    size = graph.put("Cast", graph.put("Gather", graph.put("Shape", split), graph.number(3)), to=TensorProto.FLOAT)
    graph.put("Div", split, graph.put("Sqrt", size), name="y")
    model = graph.model()
    assert check(model)[0] == 2
    fold_constants(model, run_once)
    targets = [constant(node.inputs[1]) for node in model.graph if node.op_type == "Reshape"]
    assert [t.tolist() for t in targets if t is not None] == [[0, 0, 2, 4]]


def test_a_target_with_two_sizes_from_elsewhere_stays() -> None:
    graph = Drawn("y")
    b, s = (graph.put("Gather", graph.put("Shape", "x"), graph.number([i])) for i in (0, 1))
    swapped = graph.put("Concat", s, b, graph.number([8]), axis=0)
    graph.put("Reshape", "x", swapped, name="y")
    assert check(graph.model())[0] == 0


def test_what_is_counted_is_no_size() -> None:
    """As many entries of x as are not 0: all of them, in every probe."""
    graph = Drawn("y")
    count = graph.put("Slice", graph.put("Shape", graph.put("NonZero", "x")), graph.number([1]), graph.number([2]))
    graph.put(
        "Add",
        graph.put("Div", graph.put("Cast", count, to=TensorProto.FLOAT), graph.number(np.float32(1))),
        "x",
        name="y",
    )
    assert check(graph.model()) == (0, 0, 0)


def test_a_gemm_of_an_old_operator_set_keeps_its_bias() -> None:
    graph = Drawn("y")
    flat = graph.put("Reshape", "x", graph.number([-1, 8]))
    first = graph.put("Gemm", flat, graph.weight(8, 4), graph.weight(4))
    graph.put("Gemm", first, graph.weight(4, 8), graph.weight(8), name="y")
    new, old = graph.model(), graph.model()
    old.opset_imports[""] = 10
    assert check(new)[2] == 1 and check(old)[2] == 0


def test_moves_in_a_row_become_one_transpose() -> None:
    graph = Drawn("y")
    split = graph.put("Reshape", "x", graph.number([0, 0, 2, 4]))
    heads = graph.put("Transpose", split, perm=[0, 2, 1, 3])
    size = graph.put("Slice", graph.put("Shape", heads), graph.number([2]), graph.number([3]))
    flat = graph.put(
        "Reshape", heads, graph.put("Concat", graph.number([-1]), size, graph.number([4]), axis=0), allowzero=1
    )
    turned = graph.put("Transpose", flat, perm=[0, 2, 1])
    target = graph.put("Concat", graph.number([-1, 2, 4]), size, axis=0)
    graph.put("Tanh", graph.put("Reshape", turned, target), name="y")
    model = graph.model()
    check(model)
    assert fold_constants(model, run_once).moves == 3
    assert [n.attributes.get_ints("perm") for n in model.graph if n.op_type == "Transpose"] == [(0, 2, 3, 1)]


def test_moves_whose_middle_is_read_stay() -> None:
    graph = Drawn("y", "z")
    turned = graph.put("Transpose", "x", perm=[0, 2, 1])
    graph.put("Tanh", turned, name="z")
    graph.put("Sigmoid", graph.put("Transpose", turned, perm=[1, 0, 2]), name="y")
    model = graph.model()
    check(model)
    assert fold_constants(model, run_once).moves == 0


def test_a_reshape_that_is_no_transpose_stays() -> None:
    graph = Drawn("y")
    turned = graph.put("Transpose", "x", perm=[0, 2, 1])
    graph.put("Tanh", graph.put("Reshape", turned, graph.number([0, 4, -1])), name="y")
    model = graph.model()
    check(model)
    assert fold_constants(model, run_once).moves == 0


def expanded(graph: Drawn) -> str:
    """x, of one token, spread over all."""
    first = graph.put("Slice", "x", graph.number([0]), graph.number([1]), graph.number([1]))
    return graph.put("Expand", first, graph.put("Shape", "x"))


def test_an_expand_goes_where_its_readers_broadcast() -> None:
    graph = Drawn("y")
    mask = graph.put("Less", expanded(graph), graph.number(np.float32(0.3)))
    chosen = graph.put("Where", mask, graph.number(np.float32(0)), graph.number(np.float32(-1e9)))
    graph.put("Add", chosen, "x", name="y")
    model = graph.model()
    check(model)
    assert fold_constants(model, run_once).expands == 1


@pytest.mark.parametrize("reader", ["output", "Softmax", "Shape", "small"])
def test_an_expand_stays_where_somebody_would_see_it(reader: str) -> None:
    graph = Drawn("y", "z")
    spread = expanded(graph)
    graph.put("Add", spread, "x", name="y")
    if reader == "output":
        graph.put("Neg", spread, name="z")
    elif reader == "Softmax":
        graph.put("Softmax", spread, axis=1, name="z")
    elif reader == "Shape":
        graph.put("Cast", graph.put("Shape", spread), to=TensorProto.FLOAT, name="z")
    else:
        graph.put("Sigmoid", graph.put("Mul", spread, graph.number(np.float32(2))), name="z")
    model = graph.model()
    check(model)
    assert fold_constants(model, run_once).expands == 0


def test_a_size_that_is_only_at_times_the_same_is_no_constant() -> None:
    """S // 16 is 0 on every small probe."""
    graph = Drawn("y")
    s = graph.put("Gather", graph.put("Shape", "x"), graph.number(1))
    blocks = graph.put("Div", s, graph.number(16))
    graph.put("Add", "x", graph.put("Cast", blocks, to=TensorProto.FLOAT), name="y")
    model = graph.model()
    before = runner(model)
    fold_constants(model, run_once)
    feeds = {"x": np.ones((1, 40, 8), np.float32)}
    assert_close(runner(model)(feeds)["y"], before(feeds)["y"], "y")


def test_a_plan_says_it_and_refuses_another_word() -> None:
    assert '"constants": "folded"' in FOLDED.dumps() and "constants" not in Plan().dumps()
    assert Plan.loads(FOLDED.dumps()) == FOLDED and not FOLDED.is_empty and FOLDED.is_exact
    with pytest.raises(PlanError, match="expected kept or folded"):
        Plan.loads(FOLDED.dumps().replace("folded", "melted"))


def test_equal_arguments_give_equal_bytes() -> None:
    source = load_model(build("bert", "torchscript-eager-17").path)
    one, two = (ir.to_proto(folded(source)).SerializeToString(deterministic=True) for _ in range(2))
    assert one == two
