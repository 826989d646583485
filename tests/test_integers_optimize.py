"""`optimize --quantize int8`, the whole line on a tiny model: integers are chosen, verified, replayed to the same bytes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import tiny_folder

from axformer_onnx.commands import OptimizeResult, optimize
from axformer_onnx.inputs import open_source, read_rows
from axformer_onnx.options import OptimizeOptions
from axformer_onnx.result.report import PointRecord
from axformer_onnx.search.compensated import expected_tokens, goals, preparation
from axformer_onnx.search.compensated.latency_table import LatencyTable
from axformer_onnx.search.compensated.levels import Unit
from axformer_onnx.tasks import get_task
from axformer_passes.io import model_path
from axformer_passes.plan import Plan

pytestmark = pytest.mark.usefixtures("latency_cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder.make_folder(tmp_path_factory.mktemp("tiny") / "model", search=160)


def asked(folder: Path, output: Path, **changes: Any) -> OptimizeOptions:
    options = {"length": (8,), "threads": 1, "effort": "low", "quantize": "int8", **changes}
    return OptimizeOptions(**{"model": folder, "task": get_task("mnli"), "output": output, **options})


def run(folder: Path, output: Path, **changes: Any) -> OptimizeResult:
    return optimize(asked(folder, output, **changes))


@pytest.fixture(scope="module")
def sized(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> OptimizeResult:
    return run(folder, tmp_path_factory.mktemp("sized") / "out", size=0.8)


def products(path: Path) -> int:
    return sum(node.op_type == "MatMulInteger" for node in onnx.load(path).graph.node)


def test_a_size_is_met_by_integers_and_the_report_says_where_they_are(sized: OptimizeResult) -> None:
    plan, graph = sized.plan, sized.output / "model.onnx"
    assert plan.int8 is not None and (plan.int8.attention or plan.int8.feed_forward)
    assert products(graph) and graph.stat().st_size <= 0.8 * sized.report.source.size_bytes
    assert plan == Plan.loads((sized.output / "plan.json").read_text()), "plan.json names them"
    said = {x.layer: x.int8 for x in sized.report.layers}
    assert {layer for layer, kinds in said.items() if "attention" in kinds} == plan.int8.attention
    assert "| integers |" in (sized.output / "report.md").read_text()


def test_apply_replays_the_plan_to_the_same_bytes(
    sized: OptimizeResult, folder: Path, tmp_path: Path, call: Any
) -> None:
    code, _, error = call("apply", sized.output, folder, "-o", tmp_path / "again")
    assert code == 0, error
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (sized.output / "model.onnx").read_bytes()


def test_a_run_that_goes_on_from_the_journal_ends_with_the_same_bytes(
    sized: OptimizeResult, folder: Path, tmp_path: Path
) -> None:
    lines = (sized.output / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "journal.jsonl").write_text("".join(lines[: len(lines) // 2]))
    again = run(folder, tmp_path / "out", size=0.8)
    assert again.plan == sized.plan
    assert (again.output / "model.onnx").read_bytes() == (sized.output / "model.onnx").read_bytes()


def test_two_processes_end_with_the_same_plan(sized: OptimizeResult, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(sized.output, tmp_path / "out")
    kept = (tmp_path / "out" / "journal.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out" / "journal.jsonl").write_text("".join(line for line in kept if "sweep" not in line[:60]))
    assert run(folder, tmp_path / "out", size=0.8, jobs=2).plan == sized.plan


def test_nothing_is_removed_where_the_structure_stays_whole(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "out", structure="whole", size=0.8)
    assert result.plan.int8 is not None and not (result.plan.heads or result.plan.neurons)
    assert result.report.control is None, "there is nothing to draw at random"
    assert products(result.output / "model.onnx") >= 4


def test_where_the_structure_stays_whole_unused_calibration_rows_are_said_and_no_refit_is_expected(
    folder: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "more.jsonl"
    rows.write_text('{"premise": "a b", "hypothesis": "c d"}\n')
    whole = asked(folder, tmp_path / "out", model=model_path(folder), structure="whole", calibration=rows)
    given = read_rows(whole, open_source(whole))
    assert [note for note in given.notes if "calibration rows" in note] == [
        "the calibration rows are not used by --structure whole, which removes nothing"
    ]
    pruned = whole.model_copy(update={"structure": "pruned"})
    assert expected_tokens(whole, given, 4) < expected_tokens(pruned, given, 4)


@pytest.mark.parametrize("structure", ["pruned", "whole"])
def test_hard_attention_is_priced_unless_the_structure_stays_whole(
    structure: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Priced(Exception):
        pass

    def table(key: dict[str, Any], units: Sequence[Unit], measure: object) -> LatencyTable:
        raise Priced(key["hard"])

    monkeypatch.setattr(preparation, "cached_table", table)
    with pytest.raises(Priced) as raised:
        run(folder, tmp_path / "out", structure=structure, effort="medium")
    assert raised.value.args == ((preparation.HARD_LADDER if structure == "pruned" else ()),)


def test_where_the_fastest_holds_and_nothing_may_be_removed_no_slower_one_is_built(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def table(key: object, units: Sequence[Unit], measure: object) -> LatencyTable:
        return LatencyTable(1, 8, 6.0, 6.0, [(1.0, 0.4)] * len(units))  # type: ignore[arg-type]

    def built(name: str) -> list[PointRecord]:
        report = run(folder, tmp_path / name, structure="whole", max_drop=60.0).report
        assert report.compensation is not None
        return report.compensation.frontier

    monkeypatch.setattr(preparation, "cached_table", table)
    found = built("holds")
    fastest = max(found, key=lambda point: point.predicted or 0.0)
    assert len(found) == 2 and fastest.chosen and fastest.divergence > 0
    monkeypatch.setattr(goals, "within_drop", lambda points, drop: points[:1])
    assert len(built("does not")) > 2
