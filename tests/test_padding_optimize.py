"""`optimize --padding removed`, the whole line on a tiny model: said, verified, replayed; refused before a search."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny_folder
from onnxruntime.quantization import quantize_dynamic

from axformer_onnx.commands import OptimizeResult, optimize
from axformer_onnx.errors import PlanError
from axformer_onnx.options import OptimizeOptions
from axformer_onnx.tasks import get_task
from axformer_passes.plan import Plan

pytestmark = pytest.mark.usefixtures("latency_cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder.make_folder(tmp_path_factory.mktemp("tiny") / "model", search=160)


def run(folder: Path, output: Path, **changes: Any) -> OptimizeResult:
    options = {"length": (8,), "threads": 1, "effort": "low", "padding": "removed", **changes}
    return optimize(OptimizeOptions(model=folder, task=get_task("mnli"), output=output, **options))


def test_padding_goes_from_what_was_pruned_and_apply_replays_it(folder: Path, tmp_path: Path, call: Any) -> None:
    result = run(folder, tmp_path / "out", size=0.8)
    assert not result.plan.is_exact and result.plan.padding == "removed"
    assert result.plan == Plan.loads((result.output / "plan.json").read_text())
    assert any(note.startswith("padding is removed (exact): ") for note in result.report.notes)
    assert any(node.op_type == "NonZero" for node in onnx.load(result.output / "model.onnx").graph.node)
    code, _, error = call("apply", result.output, folder, "-o", tmp_path / "again")
    assert code == 0, error
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (result.output / "model.onnx").read_bytes()


def test_what_cannot_be_exact_is_refused_before_anything_is_searched(folder: Path, tmp_path: Path) -> None:
    quantised = Path(shutil.copytree(folder, tmp_path / "quantised"))
    quantize_dynamic(folder / "model.onnx", quantised / "model.onnx")
    with pytest.raises(PlanError, match=r"DynamicQuantizeLinear .* rounds activations"):
        run(quantised, tmp_path / "out", search="robust")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["journal.jsonl"]
    assert "trial" not in (tmp_path / "out" / "journal.jsonl").read_text()
