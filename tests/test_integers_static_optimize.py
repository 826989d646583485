"""`optimize --quantize int8 --activations static`, the whole line on a tiny model."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny_folder

from axformer_onnx.commands import OptimizeResult, inspect_model, optimize
from axformer_onnx.options import OptimizeOptions
from axformer_onnx.tasks import get_task
from axformer_passes.plan import Plan

pytestmark = pytest.mark.usefixtures("latency_cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder.make_folder(tmp_path_factory.mktemp("tiny") / "model", search=90)


def run(folder: Path, output: Path, **changes: Any) -> OptimizeResult:
    options = {"length": (8,), "threads": 1, "effort": "low", "quantize": "int8", "activations": "static", **changes}
    return optimize(OptimizeOptions(model=folder, task=get_task("mnli"), output=output, **options))


@pytest.fixture(scope="module")
def sized(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> OptimizeResult:
    return run(folder, tmp_path_factory.mktemp("sized") / "out", size=0.7)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_a_size_is_met_by_static_integers_whose_steps_are_in_the_plan(sized: OptimizeResult) -> None:
    plan, graph = sized.plan, sized.output / "model.onnx"
    assert plan.int8 is not None and plan.int8.activations == "static"
    assert "QuantizeLinear" in operators(graph) and "DynamicQuantizeLinear" not in operators(graph)
    assert graph.stat().st_size <= 0.7 * sized.report.source.size_bytes
    assert plan == Plan.loads((sized.output / "plan.json").read_text())
    blocks = {("attention", i) for i in plan.int8.attention} | {("feed_forward", i) for i in plan.int8.feed_forward}
    told = [note for note in sized.report.notes if "--activations static-uint8" in note]
    assert len(told) == (platform.machine() in ("x86_64", "AMD64"))
    assert blocks == {(kind, i) for kind, layers in plan.int8.scales.items() for i in layers}, "no others"


def test_its_plan_is_replayed_to_the_same_bytes(sized: OptimizeResult, folder: Path, tmp_path: Path, call: Any) -> None:
    code, _, error = call("apply", sized.output, folder, "-o", tmp_path / "again")
    assert code == 0, error
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (sized.output / "model.onnx").read_bytes()


def test_a_run_that_goes_on_takes_its_steps_from_the_journal(
    sized: OptimizeResult, folder: Path, tmp_path: Path
) -> None:
    lines = (sized.output / "journal.jsonl").read_text().splitlines(keepends=True)
    (fact,) = (json.loads(line) for line in lines if '"static ranges"' in line)
    changed = json.dumps({**fact, "value": _halved(fact["value"])}) + "\n"
    kept = [line for line in lines if '"outliers"' in line]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "journal.jsonl").write_text("".join([lines[0], *kept, changed]))
    again = run(folder, tmp_path / "out", size=0.7)
    assert again.plan.int8 is not None and again.plan.int8.scales
    for kind, layers in again.plan.int8.scales.items():
        for i, steps in layers.items():
            assert steps == {name: step / 2 for name, step in fact["value"][kind][str(i)].items()}


def _halved(scales: Any) -> Any:
    return scales / 2 if isinstance(scales, float) else {key: _halved(own) for key, own in scales.items()}


def test_a_static_result_is_inspected_scored_and_taken_back_to_floats(
    sized: OptimizeResult, folder: Path, tmp_path: Path, call: Any
) -> None:
    layers = inspect_model(sized.output).layers
    assert len(layers) == 3 and any("optimize dequantises it" in note for note in inspect_model(sized.output).notes)
    code, said, error = call("score", sized.output, "--task", "mnli", "--data", folder / "data", "--json")
    assert code == 0, error
    score = json.loads(said)["models"][str(sized.output / "model.onnx")]["score"]
    assert score == pytest.approx(sized.report.candidate.score)
    changes = {"quantize": "none", "activations": None, "max_drop": 50, "data": folder / "data", "max_search_rows": 60}
    again = run(sized.output, tmp_path / "out", **changes)
    assert again.plan.source == "dequantised" and "QuantizeLinear" not in operators(again.output / "model.onnx")
