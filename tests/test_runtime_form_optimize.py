"""`optimize --runtime-form measured`: a second graph where one is measured faster, and the portable graph whatever comes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import tiny_folder
from onnxruntime.quantization import quantize_dynamic
from zoo import build

from axformer_onnx.commands import OptimizeResult, optimize
from axformer_onnx.errors import UsageError, VerifyError
from axformer_onnx.options import OptimizeOptions, make
from axformer_onnx.records import Interval
from axformer_onnx.result import runtime_form
from axformer_onnx.result.output_folder import RUNTIME_MODEL
from axformer_onnx.result.report import Report, markdown
from axformer_onnx.result.runtime_form import MeasuredForms, keep_faster_form
from axformer_onnx.runtime import LatencyRow, run_once
from axformer_onnx.scoring import Machine
from axformer_onnx.tasks import get_task
from axformer_passes.apply import apply_plan
from axformer_passes.io.files import save_model
from axformer_passes.plan import Plan
from axformer_passes.precision import Half
from axformer_passes.probe import TokenSequence
from axformer_passes.runtime_forms import RUNTIME_FORMS

pytestmark = pytest.mark.usefixtures("latency_cache")
FASTER, EQUAL, SLOWER = Interval(1.3, 1.2, 1.4), Interval(1.1, 0.9, 1.2), Interval(0.8, 0.7, 0.9)


class Clock:
    """In the place of measurement: the speedup of each form, in turn of asking; the last one goes on."""

    def __init__(self, *rounds: Mapping[str, Interval]) -> None:
        self.rounds, self.asked = list(rounds), list[list[str]]()

    def __call__(self, models: Mapping[str, Path], shapes: Iterable[tuple[int, int]], *_: Any) -> list[LatencyRow]:
        assert all(path.is_file() for path in models.values())
        speedups = self.rounds.pop(0) if len(self.rounds) > 1 else self.rounds[0]
        self.asked.append(list(models))
        return [
            LatencyRow(name, *shape, 1.0, 1.0, speedups[name] if i else None, 30)
            for shape in shapes
            for i, name in enumerate(models)
        ]


@pytest.fixture
def portable(tmp_path: Path) -> Path:
    """A tiny BERT alone in a folder."""
    path = tmp_path / "result" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(build("bert", "torchscript-eager-17").path.read_bytes())
    return path


def kept(portable: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> MeasuredForms:
    monkeypatch.setattr(runtime_form, "latency_of", clock)
    tokens = TokenSequence(words=range(5, 20))
    return keep_faster_form(portable, portable.parent, [(1, 8), (2, 8)], tokens, Machine(), **changes)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_the_fastest_form_is_kept_if_it_is_faster_twice(portable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = {"fused": EQUAL, "packed": Interval(1.2, 1.1, 1.3), "packed-fused": FASTER}
    clock = Clock(first, {"packed-fused": Interval(1.25, 1.05, 1.4)})
    found = kept(portable, clock, monkeypatch)
    assert (found.kept, found.contrib) == ("packed-fused", True)
    assert [row.ratio and row.ratio.value for row in found.latency] == [None, 1.25, None, 1.25]
    assert {one.form: one.speedup for one in found.tried} == first
    assert [asked[1:] for asked in clock.asked] == [["fused", "packed", "packed-fused"], ["packed-fused"]]
    operators = {node.op_type for node in onnx.load(portable.parent / RUNTIME_MODEL).graph.node}
    assert "MultiHeadAttention" in operators and "Softmax" not in operators
    assert names(portable.parent) == [portable.name, RUNTIME_MODEL]


@pytest.mark.parametrize("again", [EQUAL, SLOWER])
def test_what_was_lucky_once_is_not_kept(portable: Path, again: Interval, monkeypatch: pytest.MonkeyPatch) -> None:
    found = kept(portable, Clock(dict.fromkeys(RUNTIME_FORMS, FASTER), {"fused": again}), monkeypatch)
    assert found.kept is None and found.latency
    assert names(portable.parent) == [portable.name]


def test_a_speed_that_does_not_hold_keeps_nothing_and_is_not_stated(
    portable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = dataclasses.replace(FASTER, reliable=False, why="a neighbour")
    found = kept(portable, Clock({**dict.fromkeys(RUNTIME_FORMS, EQUAL), "fused": lost}, {"fused": lost}), monkeypatch)
    assert found.kept is None and names(portable.parent) == [portable.name]
    told = {one.form: (one.speedup, one.why) for one in found.tried}
    assert told["fused"] == (None, "not measured: a neighbour") and told["packed"][0] == EQUAL


def test_what_is_not_clearly_faster_is_not_measured_again(portable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(dict.fromkeys(RUNTIME_FORMS, EQUAL))
    found = kept(portable, clock, monkeypatch)
    assert found.kept is None and not found.latency and len(clock.asked) == 1
    assert names(portable.parent) == [portable.name]


def test_a_form_that_computes_something_else_is_an_error(portable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = RUNTIME_FORMS["fused"]

    def planted(model: ir.Model, runner: Any) -> Any:
        found = right.rewrite(model, runner)
        node = next(node for node in model.graph if node.op_type == "MultiHeadAttention")
        node.attributes["num_heads"] = ir.AttrInt64("num_heads", 2)
        return found

    wrong = dataclasses.replace(right, rewrite=planted)
    with pytest.raises(VerifyError, match=r"model\.runtime\.onnx: output 'logits' differs from the portable graph's"):
        kept(portable, Clock({"fused": FASTER}), monkeypatch, forms=[wrong])
    assert names(portable.parent) == [portable.name]


def test_a_graph_without_such_places_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    save_model(build("modernbert", "torchscript-eager-17").opened(), path)
    clock = Clock({})
    found = kept(path, clock, monkeypatch)
    assert found.kept is None and not clock.asked
    assert [one.form for one in found.tried] == list(RUNTIME_FORMS)
    assert found.tried[0].why.startswith("Softmax '/model/layers.0/attn/Softmax_output_0': its queries")


def test_fused_integers_that_cannot_be_compared_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A last bit may tip them, so a difference would say nothing."""
    source, path = tmp_path / "plain.onnx", tmp_path / "result" / "model.onnx"
    path.parent.mkdir()
    save_model(apply_plan(build("bert", "torchscript-eager-17").opened(), Plan(constants="folded"), run_once), source)
    quantize_dynamic(source, path)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    found = kept(path, Clock({"fused": FASTER}), monkeypatch)
    assert "fused" not in {one.form for one in found.tried if one.speedup}
    assert names(path.parent) == [path.name]


def test_half_precision_has_the_forms_that_its_provider_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(constants="folded", half=Half("fp16"))
    path = tmp_path / "model.onnx"
    save_model(apply_plan(build("bert", "torchscript-eager-17").opened(), plan, run_once), path)
    found = kept(path, Clock({"fused": SLOWER, "packed": FASTER, "packed-fused": SLOWER}), monkeypatch)
    assert (found.kept, found.contrib) == ("packed", False)


# -- the whole line ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder.make_folder(tmp_path_factory.mktemp("tiny") / "model", search=160)


def run(folder: Path, output: Path, **changes: Any) -> OptimizeResult:
    options = {"length": (8,), "threads": 1, "effort": "low", "size": 0.8, **changes}
    return optimize(OptimizeOptions(model=folder, task=get_task("mnli"), output=output, **options))


def test_both_graphs_are_in_the_folder_and_the_report_names_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_form, "latency_of", Clock(dict.fromkeys(RUNTIME_FORMS, FASTER)))
    result = run(folder, tmp_path / "out", runtime_form="measured")
    assert {"model.onnx", RUNTIME_MODEL} <= set(names(result.output))
    report = Report.load(result.output / "report.json")
    assert report.runtime_form is not None and report.runtime_form.file == RUNTIME_MODEL
    assert result.runtime_path == result.output / RUNTIME_MODEL
    assert report.options["runtime_form"] == "measured"
    said = (result.output / "report.md").read_text()
    assert "model.runtime.onnx computes the same as model.onnx (fused), 1.30x [1.20, 1.40] at 1 x 8 as fast" in said
    assert "operators of com.microsoft" in said
    again = run(folder, tmp_path / "out", overwrite=True)  # without: the file of the earlier run goes
    assert RUNTIME_MODEL not in names(again.output) and again.report.runtime_form is again.runtime_path is None
    assert "Runtime form" not in markdown(again.report)
    assert again.path.read_bytes() == result.path.read_bytes()


def test_the_option_takes_two_values(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"--runtime-form is 'fused': expected 'measured' or 'none'"):
        make(OptimizeOptions, {"model": folder, "task": "mnli", "runtime_form": "fused"})
