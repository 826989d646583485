"""The journal: append-only, resumable, and jealous of its header."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from search_fake import FakeScorer, MaskModel, anatomy, mask_scorer

from axformer_onnx.errors import UsageError
from axformer_onnx.records import StageScore, Trial, plan_digest
from axformer_onnx.search.greedy.axformer import search_axformer
from axformer_onnx.search.greedy.robust import search_robust
from axformer_onnx.search.greedy.walk import SearchResult
from axformer_onnx.search.journal import open_journal
from axformer_passes.plan import Plan

HEADER = {"source_sha256": "abc", "options": {"seed": 0, "k": 30}}
MODEL = MaskModel(7, 90, 3, 4, 32)


def select_metric(plan: Plan) -> float:
    return 80.0 - (len(plan.heads) > 1)


def run(path: Path, search: FakeScorer, header: dict[str, Any] = HEADER) -> SearchResult:
    with open_journal(path, header) as journal:
        return search_robust(anatomy(), search, mask_scorer(MODEL, select_metric), memory=journal)


def answers(result: SearchResult) -> list[tuple[object, ...]]:
    return [(t.index, t.stage, t.element, t.plan, t.loss, t.best, t.accepted, t.reason) for t in result.trials]


@pytest.mark.parametrize("killed_after", [1, 2, 6, 9, 14])
def test_killed_run_resumes_to_the_same_plan_without_asking_twice(tmp_path: Path, killed_after: int) -> None:
    whole_scorer = mask_scorer(MODEL)
    whole = run(tmp_path / "whole.jsonl", whole_scorer)
    first, second = mask_scorer(MODEL), mask_scorer(MODEL)
    first.interrupt_at = killed_after
    broken = run(tmp_path / "journal.jsonl", first)
    assert broken.interrupted
    resumed = run(tmp_path / "journal.jsonl", second)
    assert not resumed.interrupted
    assert answers(resumed) == answers(whole)
    assert resumed.plan == whole.plan and resumed.stages == whole.stages and resumed.scores == whole.scores
    asked_again = len(first.asked) + len(second.asked) - len(whole_scorer.asked)
    assert asked_again <= 3  # the interrupted trial, and once more the unpruned and the current plan


def test_finished_journal_answers_everything(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = run(path, mask_scorer(MODEL))
    before = path.read_bytes()
    silent = FakeScorer(lambda plan: pytest.fail("asked again"), len(MODEL.base))
    assert answers(run(path, silent)) == answers(whole)
    assert path.read_bytes() == before


@pytest.mark.parametrize("torn", [b'{"trial": 99, "sta', b"\xff\xfe", b"{"])
def test_torn_last_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    first = mask_scorer(MODEL)
    first.interrupt_at = 8
    with open_journal(path, HEADER) as journal:
        search_axformer(anatomy(), first, memory=journal)
    whole_lines = path.read_bytes()
    path.write_bytes(whole_lines + torn)
    with open_journal(path, HEADER) as journal:
        assert journal.resumed == 7  # eight scorings: the unpruned model, then seven trials
    assert path.read_bytes() == whole_lines


def test_header_torn_by_the_kill_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"format": "axfor')
    assert not run(path, mask_scorer(MODEL)).interrupted
    assert json.loads(path.read_text().splitlines()[0]) == {"format": "axformer-journal/2", **HEADER}


def test_other_header_is_refused_by_name_and_value(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    run(path, mask_scorer(MODEL))
    before = path.read_bytes()
    other = {"source_sha256": "abc", "options": {"seed": 1, "k": 30}}
    with pytest.raises(UsageError, match=r"another run: options.seed was 0, now 1. Use another -o, or --overwrite"):
        open_journal(path, other)
    assert path.read_bytes() == before
    with open_journal(path, other, overwrite=True) as journal:
        assert journal.resumed == 0


def test_journal_of_another_search_order_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    run(path, mask_scorer(MODEL))
    with (
        open_journal(path, HEADER) as journal,
        pytest.raises(UsageError, match="trial 0 is 'layer 2 feed-forward block', but this search asks 'layer 0 hard"),
    ):
        search_axformer(anatomy(), mask_scorer(MODEL), memory=journal)


def test_line_that_lacks_a_part_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    run(path, mask_scorer(MODEL))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    del lines[2]["details"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UsageError, match="line 3 is not a journal line"):
        open_journal(path, HEADER)


def test_damaged_middle_line_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    run(path, mask_scorer(MODEL))
    lines = path.read_text().splitlines()
    lines[3] = lines[3][:10]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match="line 4 is not a journal line"):
        open_journal(path, HEADER)


def test_two_runs_cannot_write_one_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with open_journal(path, HEADER), pytest.raises(UsageError, match="another run is writing"):
        open_journal(path, HEADER)
    with open_journal(path, HEADER) as journal:
        assert journal.resumed == 0
    assert [one.name for one in tmp_path.iterdir()] == [path.name], "the lock is gone"


def test_a_killed_run_does_not_lock_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    code = (
        "import os, pathlib\nfrom axformer_onnx.search.journal import open_journal\n"
        f"journal = open_journal(pathlib.Path({str(path)!r}), {{}})\nos._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    with open_journal(path, {}) as journal:
        assert journal.resumed == 0


KEPT = (
    b'{"format": "axformer-journal/2", "source_sha256": "abc", "options": {"seed": 0, "k": 30}}\n'
    b'{"trial": 0, "stage": 0, "element": "layer 0 head 1", "plan": "49c3c2db5c0ccb9b", "loss": null, "best": 0.25, '
    b'"accepted": false, "reason": "no number", "seconds": 0.125, "details": {"rise": 1, "why": ["a", null]}}\n'
    b'{"select": 0, "plan": "49c3c2db5c0ccb9b", "score": 84.2, "score_noise": 0.4, "rise": -0.01, "noise": null}\n'
    b'{"fact": "sweep 3 [1, 2]", "value": [0.1, 1e-12, 3, {"a": "\\u00e9"}]}\n'
)
"""A journal of one line of every kind, as files have been written from the first version on."""


def test_a_journal_is_written_as_it_has_always_been_and_read_back(tmp_path: Path) -> None:
    path, plan = tmp_path / "journal.jsonl", Plan()
    kept = KEPT.replace(b"49c3c2db5c0ccb9b", plan_digest(plan).encode())
    trial = Trial(
        0, 0, "layer 0 head 1", plan, math.nan, 0.25, False, "no number", 0.12512, {"rise": 1, "why": ["a", None]}
    )
    score, fact = StageScore(84.2, -0.01, math.nan, 0.4), [0.1, 1e-12, 3, {"a": "\u00e9"}]
    with open_journal(path, HEADER) as journal:
        journal.remember(trial)
        journal.remember_stage(0, plan, score)
        journal.fact("sweep 3 [1, 2]", lambda: fact)
    assert path.read_bytes() == kept
    with open_journal(path, HEADER) as journal:
        found, stage = journal.recall(0, "layer 0 head 1", plan), journal.recall_stage(0, plan)
        assert found is not None and stage is not None
        assert repr(found) == repr(dataclasses.replace(trial, seconds=0.125)) and repr(stage) == repr(score)
        assert journal.fact("sweep 3 [1, 2]", lambda: pytest.fail("measured again")) == fact
        assert journal.resumed == 2
    assert path.read_bytes() == kept


@pytest.mark.parametrize(
    "line", [b"[]", b"3", b'{"other": 1}', b'{"fact": 3, "value": 1}', b'{"trial": "x"}', b'{"select": 0}']
)
def test_a_line_of_no_kind_or_with_a_wrong_type_is_refused(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(KEPT + line + b"\n")
    with pytest.raises(UsageError, match="line 5 is not a journal line"):
        open_journal(path, HEADER)


def test_every_line_is_strict_json_even_for_losses_that_are_not_numbers(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    scorer = FakeScorer(lambda plan: MODEL.base if plan.is_empty else MODEL.base * float("nan"), len(MODEL.base))
    run(path, scorer)

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert lines[1]["loss"] is None and lines[1]["accepted"] is False
