"""Models that come quantised: their float32 form, plans on it, and a compensated search from integers to integers.

Two oracles share no code with the product: `unrounded_oracle`, the file without the rounding of its activations, and NumPy.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny_folder
from graph_oracle import masked_graph, run_as_declared
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from surgery import TOLERANCE, removed
from test_integers_optimize import products
from unrounded_oracle import without_rounding
from zoo import ZooModel, build

from axformer_onnx.commands import OptimizeResult, inspect_model, optimize
from axformer_onnx.errors import VerifyError
from axformer_onnx.options import OptimizeOptions
from axformer_onnx.result.verification import verify
from axformer_onnx.runtime import run_once
from axformer_onnx.tasks import get_task
from axformer_passes.apply import apply_plan
from axformer_passes.graph import Cleanup
from axformer_passes.integers.tables import quantise_tables
from axformer_passes.io.files import load_model, save_model, serialized
from axformer_passes.plan import Plan
from axformer_passes.precision import Int8
from axformer_passes.prepare import dequantised, is_quantised
from axformer_passes.recognise import recognise

BASE = "torchscript-eager-17"
CASES = (
    "bert+int8",
    "bert+int8c",
    "bert+qdq",
    "bert+qdqc",
    "bert+ort+int8",
    "distilbert+int8c",
    "vit+qdqc",
    "gpt2+int8",
)
CHANGED = Plan(source="dequantised").without_heads(0, [1]).without_attention(1).without_neurons(2, range(20))

pytestmark = pytest.mark.usefixtures("latency_cache")


def model_of(case: str) -> ZooModel:
    family, form = case.split("+", 1)
    return build(family, f"{BASE}+{form}")


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# -- the float32 form -------------------------------------------------------------------------------------------------


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", CASES)
def test_the_float32_form_answers_what_the_integers_do_without_rounding_of_activations(case: str) -> None:
    model = model_of(case)
    given = load_model(model.path)
    before = serialized(given)
    floats = dequantised(given)
    assert is_quantised(given) and not is_quantised(floats) and serialized(given) == before
    expected = without_rounding(model.path.read_bytes())
    for batch, length in ((1, 3), (2, 7)):
        feeds = model.feeds(batch, length)
        found = run_as_declared(serialized(floats), feeds)[0]
        assert difference(found, run_as_declared(expected, feeds)[0]) <= TOLERANCE
    assert not recognise(floats, run_once).refused


@pytest.mark.sampled(3)
@pytest.mark.parametrize("case", CASES[:5])
def test_a_plan_on_the_float32_form_equals_the_masked_source_without_rounding(case: str) -> None:
    model = model_of(case)
    graph = serialized(removed(model, CHANGED))
    expected = without_rounding(masked_graph(model, CHANGED))
    feeds = model.feeds(2, 7)
    assert difference(run_as_declared(graph, feeds)[0], run_as_declared(expected, feeds)[0]) <= TOLERANCE
    assert not is_quantised(load_model_of(graph))


def load_model_of(content: bytes) -> ir.Model:
    return ir.from_proto(onnx.ModelProto.FromString(content))


def test_a_float_model_is_its_own_float32_form() -> None:
    model = load_model(build("bert", BASE).path)
    assert dequantised(model) is model


@pytest.mark.parametrize("bits", [8, 4])
def test_our_own_tables_and_products_become_the_numbers_that_they_stand_for(bits: int, tmp_path: Path) -> None:
    draws = np.random.default_rng(3)
    table = draws.standard_normal((2**11, 32)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["rows"]), helper.make_node("Neg", ["rows"], ["y"])],
        "table",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "s", 32])],
        [numpy_helper.from_array(table, "table")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    quantise_tables(model, bits)
    Cleanup()(model)
    assert is_quantised(model)
    floats = dequantised(model)
    assert not is_quantised(floats)
    feeds = {"ids": draws.integers(0, 2**11, (3, 5))}
    expected = run_as_declared(serialized(model), feeds)[0]
    assert np.array_equal(run_as_declared(serialized(floats), feeds)[0], expected)
    sizes = [
        tensor.shape for tensor in (v.const_value for v in floats.graph.initializers.values()) if tensor is not None
    ]
    assert [tuple(shape) for shape in sizes] == [(2**11, 32)], "one table of floats"


def test_a_relu_that_a_quantiser_left_to_the_range_is_written_again() -> None:
    draws = np.random.default_rng(4)
    weight = draws.standard_normal((6, 5)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("QuantizeLinear", ["h", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    numbers = {"w": weight, "scale": np.float32(0.05), "zero": np.uint8(0)}
    graph = helper.make_graph(
        nodes,
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in numbers.items()],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    x = draws.standard_normal((4, 6)).astype(np.float32)
    found = run_as_declared(serialized(dequantised(model)), {"x": x})[0]
    assert difference(found, np.maximum(x @ weight, 0)) <= TOLERANCE


# -- a search ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tiny_folder.make_folder(tmp_path_factory.mktemp("tiny") / "model", search=90)
    floats = made / "model.onnx"
    quantize_dynamic(floats, made / "quantised.onnx", per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
    (made / "quantised.onnx").replace(floats)
    return made


def test_our_own_result_in_integers_is_quantised_again(folder: Path, tmp_path: Path) -> None:
    floats = dequantised(load_model(folder / "model.onnx"))
    blocks = Int8(frozenset(range(3)), frozenset(range(3)), tables=8, stored=True)
    graph = tmp_path / "ours.onnx"
    save_model(apply_plan(floats, Plan(int8=blocks), run_once), graph)
    assert products(graph) >= 12
    plan = Plan(source="dequantised", int8=blocks).without_heads(0, [1]).without_neurons(1, range(12))
    cut = tmp_path / "cut.onnx"
    save_model(apply_plan(load_model(graph), plan, run_once), cut)
    assert products(cut) >= 12 and verify(graph, cut, plan) < 1e-3
    wrong = apply_plan(load_model(graph), plan.without_heads(1, [0]), run_once)
    save_model(wrong, cut)
    with pytest.raises(VerifyError):
        verify(graph, cut, plan)


def run(folder: Path, output: Path, **changes: object) -> OptimizeResult:
    asked = {"size": 0.9, "length": (8,), "threads": 1, "effort": "low", "max_search_rows": 60, **changes}
    return optimize(OptimizeOptions(model=folder, task=get_task("mnli"), output=output, **asked))


@pytest.fixture(scope="module")
def sized(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> OptimizeResult:
    return run(folder, tmp_path_factory.mktemp("sized") / "out")


def test_a_quantised_model_is_pruned_and_quantised_again(sized: OptimizeResult, folder: Path) -> None:
    plan, graph = sized.plan, sized.output / "model.onnx"
    assert plan.source == "dequantised" and plan.int8 is not None and plan.weights is not None
    assert json.loads((sized.output / "plan.json").read_text())["source"] == "dequantised"
    assert graph.stat().st_size <= 0.9 * (folder / "model.onnx").stat().st_size
    assert sized.report.source.size_bytes == (folder / "model.onnx").stat().st_size, "compared with the model as given"
    assert any("comes quantised" in note for note in sized.report.notes)


def test_its_plan_is_replayed_to_the_same_bytes(
    sized: OptimizeResult, folder: Path, tmp_path: Path, call: object
) -> None:
    code, _, error = call("apply", sized.output, folder, "-o", tmp_path / "again")  # type: ignore[operator]
    assert code == 0, error
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (sized.output / "model.onnx").read_bytes()


def test_inspect_says_what_optimize_will_do_with_a_quantised_model(folder: Path) -> None:
    assert any("optimize dequantises it" in note for note in inspect_model(folder).notes)
