"""The whole line on a tiny model: what is written, what is not, and that a broken run ends where an unbroken one does."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from axformer_onnx.commands import optimization as optimize_module
from axformer_onnx.commands.optimization import OptimizeOptions, OptimizeResult, Watcher, optimize
from axformer_onnx.commands.replay import apply
from axformer_onnx.errors import PlanError, UsageError, VerifyError
from axformer_onnx.records import Scores, Trial
from axformer_onnx.result.report.record import Report
from axformer_onnx.runtime.sessions import make_session
from axformer_onnx.scoring.evaluation import score_warnings
from axformer_onnx.search.greedy import robust
from axformer_onnx.search.greedy.walk import Verdict
from axformer_onnx.tasks.definitions import get_task
from axformer_passes.plan import Plan

tiny_folder = pytest.importorskip("tiny_folder", reason="needs the [export] extra (torch, transformers)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder.make_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> OptimizeResult:
    """One unbroken run, shared by the tests that only look at it."""
    return run(folder, tmp_path_factory.mktemp("whole") / "out")


def run(folder: Path, output: Path, watcher: Watcher | None = None, **changes: Any) -> OptimizeResult:
    options = {"length": (8,), "threads": 1, "search": "robust", **changes}
    return optimize(OptimizeOptions(model=folder, task=get_task("mnli"), output=output, **options), watcher)


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def killer(after: int, error: BaseException) -> Watcher:
    def trial(done: Trial, left: int) -> None:
        if done.index == after:
            raise error

    return Watcher(trial=trial)


def test_output_is_a_complete_model_folder(folder: Path, whole: OptimizeResult) -> None:
    names = {path.name for path in whole.output.iterdir()}
    assert names == {
        "model.onnx", "plan.json", "report.html", "report.json", "report.md", "journal.jsonl", "tokenizer.json", "config.json",
    }  # fmt: skip
    onnx.checker.check_model(str(whole.output / "model.onnx"), full_check=True)
    make_session(whole.output / "model.onnx", threads=1)
    report = Report.load(whole.output / "report.json")
    assert report == whole.report
    for layer, heads, neurons in tiny_folder.USELESS:
        assert layer in whole.plan.attention_blocks or whole.plan.heads[layer] >= set(heads)
        assert layer in whole.plan.feed_forward_blocks or whole.plan.neurons[layer] >= set(neurons)
    assert report.candidate.sha256 == hashlib.sha256((whole.output / "model.onnx").read_bytes()).hexdigest()
    assert report.candidate.parameters < report.source.parameters
    assert report.candidate.size_bytes < report.source.size_bytes
    assert report.candidate.macs is not None and report.source.macs is not None
    assert report.candidate.macs < report.source.macs
    assert report.control is not None and report.control.parameters < report.source.parameters


def test_input_is_untouched(folder: Path, tmp_path: Path) -> None:
    before = hashes(folder)
    run(folder, tmp_path / "out", search="axformer")
    assert hashes(folder) == before


def test_plan_replays_to_the_same_bytes(folder: Path, whole: OptimizeResult, tmp_path: Path) -> None:
    path = apply(whole.output / "plan.json", folder, tmp_path / "again.onnx")
    assert path.read_bytes() == (whole.output / "model.onnx").read_bytes()
    inside = apply(whole.output / "plan.json", folder, tmp_path / "folder")
    assert inside.read_bytes() == path.read_bytes()
    assert (tmp_path / "folder" / "tokenizer.json").is_file() and (tmp_path / "folder" / "plan.json").is_file()


def test_same_seed_gives_the_same_plan_and_model(folder: Path, whole: OptimizeResult, tmp_path: Path) -> None:
    again = run(folder, tmp_path / "out")
    for name in ("plan.json", "model.onnx"):
        assert (again.output / name).read_bytes() == (whole.output / name).read_bytes()


@pytest.mark.parametrize("after", [0, 4, 11])
def test_run_that_crashed_leaves_the_journal_alone_and_resumes(
    folder: Path, whole: OptimizeResult, tmp_path: Path, after: int
) -> None:
    with pytest.raises(MemoryError):
        run(folder, tmp_path / "out", killer(after, MemoryError()))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["journal.jsonl"]
    resumed = run(folder, tmp_path / "out")
    assert resumed.plan == whole.plan and resumed.report.search.resumed_trials == after + 1
    for name in ("plan.json", "model.onnx"):
        assert (resumed.output / name).read_bytes() == (whole.output / name).read_bytes(), name


def test_ctrl_c_writes_the_best_so_far_and_says_so_and_the_next_run_goes_on(
    folder: Path, whole: OptimizeResult, tmp_path: Path
) -> None:
    broken = run(folder, tmp_path / "out", killer(9, KeyboardInterrupt()))
    assert broken.report.search.interrupted and len(broken.report.search.trials) == 10
    assert "interrupted: run the same command again" in (broken.output / "report.md").read_text()
    Plan.loads((broken.output / "plan.json").read_text())
    assert (broken.output / "model.onnx").is_file()
    resumed = run(folder, tmp_path / "out")
    assert not resumed.report.search.interrupted
    assert (resumed.output / "plan.json").read_bytes() == (whole.output / "plan.json").read_bytes()
    assert (resumed.output / "model.onnx").read_bytes() == (whole.output / "model.onnx").read_bytes()


def test_where_nothing_can_go_the_report_says_so_and_the_graph_is_the_source(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robust, "robust_judge", lambda folds: lambda *losses: Verdict(False, 1.0, 1.0, "no"))
    result = run(folder, tmp_path / "out")
    assert result.plan.is_exact and result.report.control is None and result.report.is_unchanged
    assert "Nothing was removed: none of" in (result.output / "report.md").read_text()
    assert result.report.comparison.difference.value == 0.0
    assert result.report.candidate.parameters <= result.report.source.parameters  # folded biases are none


def test_result_can_be_optimised_again_by_its_path(folder: Path, whole: OptimizeResult, tmp_path: Path) -> None:
    again = run(whole.output, tmp_path / "out", data=str(folder / "data"))
    assert again.report.source.sha256 == whole.report.candidate.sha256
    assert again.report.candidate.parameters <= whole.report.candidate.parameters


def test_roles_are_disjoint_and_recorded(whole: OptimizeResult) -> None:
    rows = {record.role: record for record in whole.report.data}
    assert rows.keys() == {"search", "select", "report"}
    assert rows["search"].rows + rows["select"].rows == 90 and rows["report"].rows == 60
    assert len({record.sha256 for record in rows.values()}) == 3


def test_other_options_are_refused_in_the_same_folder_until_overwrite(
    folder: Path, whole: OptimizeResult, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(folder, out)
    before = hashes(out)
    with pytest.raises(UsageError, match=r"another run: options\.k was 30, now 7"):
        run(folder, out, k=7)
    assert hashes(out) == before
    assert run(folder, out, k=7, overwrite=True).report.search.k == 7
    header = json.loads((out / "journal.jsonl").read_text().splitlines()[0])
    assert header["options"]["k"] == 7


def test_folder_of_the_source_and_folders_of_others_are_refused(folder: Path, tmp_path: Path) -> None:
    before = hashes(folder)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="holds the model to optimize"):
            run(folder, folder, overwrite=overwrite)
    assert hashes(folder) == before
    (tmp_path / "diary.txt").write_text("dear diary")
    with pytest.raises(UsageError, match="not empty and holds no earlier run"):
        run(folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def test_graph_that_fails_its_check_is_not_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise VerifyError("outputs differ")

    monkeypatch.setattr(optimize_module, "write_planned", refuse)
    with pytest.raises(VerifyError, match="outputs differ"):
        run(folder, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["journal.jsonl"]


def test_plan_of_another_model_is_refused(folder: Path, whole: OptimizeResult, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="a plan for another model"):
        apply(whole.output / "plan.json", whole.output, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["taken.onnx", "taken"])
def test_apply_does_not_overwrite_unasked(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "plan.json").write_text(Plan().without_heads(0, [1]).dumps())
    target = tmp_path / name
    if name == "taken":
        target.mkdir()
    occupied = target / "file" if name == "taken" else target
    occupied.write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        apply(tmp_path / "plan.json", folder, target)
    assert occupied.read_text() == "mine"
    apply(tmp_path / "plan.json", folder, target, overwrite=True)
    with pytest.raises(UsageError, match="the input is never modified"):
        apply(tmp_path / "plan.json", folder, folder / "model.onnx", overwrite=True)


def test_constant_answers_and_scores_below_the_most_frequent_label_are_warned_of() -> None:
    answers = np.array([[1.0, 0.0]] * 4)
    constant = Scores(answers, np.ones(4), "accuracy", 50.0, {"accuracy": 50.0}, 50.0, "no")
    found = score_warnings(constant, "the result")
    assert len(found) == 2
    assert "the result gives every row the class 'no'" in found[0]
    assert "no more than always answering the most frequent label (50.00 %)" in found[1]
    fine = Scores(answers, np.ones(4), "accuracy", 75.0, {"accuracy": 75.0}, 50.0, None)
    assert score_warnings(fine, "the result") == []
