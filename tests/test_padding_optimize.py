"""`optimize --padding removed`, the whole line on a tiny model: said, verified, replayed; refused before a search."""

from __future__ import annotations

import dataclasses
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
from axformer_onnx.records import Interval
from axformer_onnx.runtime import LatencyRow
from axformer_onnx.scoring import padding_gain
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


def made_up_gain(faster: float) -> Any:
    """In the place of `compare_latency`: every graph behind the first is so many times as fast as it."""

    def compare(sessions: dict[str, Any], feeds: Any, **rest: Any) -> list[LatencyRow]:
        assert list(sessions) == ["kept", "removed"]
        rows = []
        for batch, length, one in feeds:
            assert one["attention_mask"].shape == (batch, length) and one["attention_mask"].sum(axis=1).max() == length
            found = [session.run(None, dict(one))[0] for session in sessions.values()]
            assert found[1] == pytest.approx(found[0], abs=1e-4)
            ratio = Interval(faster, 0.97 * faster, 1.03 * faster)
            rows += [
                LatencyRow("kept", batch, length, 1, 1, None, 12),
                LatencyRow("removed", batch, length, 1, 1, ratio, 12),
            ]
        return rows

    return compare


@pytest.mark.parametrize(("faster", "padding"), [(1.4, "removed"), (1.01, "kept")])
def test_measured_padding_goes_where_batches_of_the_rows_are_faster_without_it(
    folder: Path, tmp_path: Path, faster: float, padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(padding_gain, "compare_latency", made_up_gain(faster))
    result = run(folder, tmp_path / "out", size=0.9, padding="measured")
    assert result.plan.padding == padding
    (note,) = (note for note in result.report.notes if note.startswith("padding "))
    assert f"{faster:.2f}x [" in note and "at batches of 8, " in note and "at batches of 32, " in note
    monkeypatch.setattr(padding_gain, "compare_latency", lambda *a, **b: pytest.fail("the journal has it"))
    (tmp_path / "out" / "report.json").unlink()
    assert run(folder, tmp_path / "out", size=0.9, padding="measured").plan == result.plan


def test_where_no_speed_could_be_measured_padding_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(sessions: Any, feeds: Any, **rest: Any) -> list[LatencyRow]:
        rows = made_up_gain(3.0)(sessions, feeds)
        return [dataclasses.replace(row, reliable=False, why="a neighbour") for row in rows]

    monkeypatch.setattr(padding_gain, "compare_latency", lost)
    result = run(folder, tmp_path / "out", size=0.9, padding="measured", batch=(4,))
    assert result.plan.padding == "kept"
    assert any("not measured at batches of 4, " in note for note in result.report.notes)


def test_measured_padding_that_cannot_go_exactly_stays_and_the_note_says_why(folder: Path, tmp_path: Path) -> None:
    quantised = Path(shutil.copytree(folder, tmp_path / "quantised"))
    quantize_dynamic(folder / "model.onnx", quantised / "model.onnx")
    result = run(quantised, tmp_path / "out", search="robust", padding="measured")
    assert result.plan.padding == "kept"
    assert any(note.startswith("padding stays: ") for note in result.report.notes)
