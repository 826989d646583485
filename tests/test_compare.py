"""`compare` from end to end on the example model: outcomes, exit codes, files, and the workflow of docs/ci run by a shell."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from compared import workflow
from junitparser import Failure, JUnitXml

import axformer_onnx as ax
from axformer_onnx.records import Interval, LogRatio
from axformer_onnx.runtime import LatencyRow

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "models" / "nli-mini"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models `same.onnx`, `again.onnx` (stored anew) and `worse.onnx` (without half of its heads), and `rows.jsonl`."""
    folder = tmp_path_factory.mktemp("compared")
    lines = (EXAMPLE / "data" / "validation.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "rows.jsonl").write_text("".join(lines[:120]), encoding="utf-8")
    shutil.copyfile(EXAMPLE / "model.onnx", folder / "same.onnx")
    again = onnx.load(EXAMPLE / "model.onnx")
    again.doc_string = "stored anew"
    onnx.save(again, folder / "again.onnx")
    plan = ax.Plan()
    for layer in range(6):
        plan = plan.without_heads(layer, range(4))
    ax.apply(plan, EXAMPLE, folder / "worse.onnx")
    return folder


def compared(here: Path, candidate: str, **options: Any) -> Any:
    """By the Python face, on few rows and one shape."""
    return ax.compare(EXAMPLE, here / candidate, task="mnli", data=here / "rows.jsonl", length=8, threads=1, **options)


def command(here: Path, candidate: str, *options: str) -> list[str]:
    """The same by the command line."""
    models = [str(EXAMPLE), str(here / candidate)]
    return ["compare", *models, "--task", "mnli", "--data", str(here / "rows.jsonl"), "--length", "8", *options]


clocks: list[str] = []
"""By which each repetition was asked for."""


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock finds in each repetition, as logarithms; it never ends. None measured: disturbed."""
    found: list[float] = []
    clocks.clear()

    def latency(models: Any, shapes: Any, *rest: Any, wait_seconds: float, say: Any, clock: str) -> list[LatencyRow]:
        clocks.append(clock)
        log = found.pop(0) if len(found) > 1 else found[0]
        reliable, rows = log == log, list[LatencyRow]()
        for batch, length in shapes:
            for i, name in enumerate(models):
                ratio = Interval(1.0, 1.0, 1.0) if i else None
                why = "" if reliable else "a neighbour"
                counted = LogRatio(log, 0.01, 30.0) if i else None
                row = LatencyRow(name, batch, length, 1, 2, ratio, 30, 30, reliable, why, log_ratio=counted)
                rows.append(dataclasses.replace(row, cpu=Interval(1.2, 1.1, 1.3) if i and not reliable else None))
        return rows

    monkeypatch.setattr("axformer_onnx.commands.comparison.latency_of", latency)
    return found


def test_a_model_that_lost_half_its_heads_fails_by_name_and_the_command_exits_with_one(
    here: Path, call: Any, speeds: list[float]
) -> None:
    speeds.append(0.4)
    code, out, err = call(
        *command(here, "worse.onnx", "--max-drop", "1", "--max-size-ratio", "1", "--min-speedup", "1.2")
    )
    assert code == 1
    assert out.splitlines()[-1] == "Failed: max-drop 1."
    assert "scoring" in err
    rows = [line.split() for line in out.splitlines() if line.startswith(" --")]
    assert [(row[0], row[-1]) for row in rows] == [
        ("--max-drop", "failed"), ("--min-speedup", "passed"), ("--max-size-ratio", "passed"),
    ]  # fmt: skip


def test_a_model_stored_anew_is_no_failure_and_strict_makes_what_is_undecided_one(
    here: Path, call: Any, speeds: list[float]
) -> None:
    speeds.append(0.0)
    given = command(here, "again.onnx", "--max-drop", "5", "--min-speedup", "1")
    code, out, _ = call(*given)
    assert code == 0
    assert out.splitlines()[-1] == "Undecided (no failure without --strict): min-speedup 1 at 1 x 8."
    assert "no number of --repetitions would decide it" in " ".join(out.split())
    code, out, err = call(*given, "--strict", "--json")
    assert code == 1
    found = json.loads(out)
    assert (found["outcome"], found["ok"], found["strict"]) == ("undecided", False, True)
    assert [gate["outcome"] for gate in found["gates"]] == ["passed", "undecided"]
    assert found["figures"]["models"][str(EXAMPLE / "model.onnx")]["score"] > 50
    assert "Undecided (a failure with --strict)" in err


def test_a_speed_that_could_not_be_measured_is_undecided_and_is_not_tracked(
    here: Path, tmp_path: Path, speeds: list[float]
) -> None:
    speeds.append(float("nan"))
    result = compared(here, "worse.onnx", min_speedup=3.0, repetitions=2, bmf=tmp_path / "bmf.json")
    (gate,) = result.gates
    assert (gate.outcome, gate.measured, result.ok) == ("undecided", None, True)
    assert "a neighbour" in gate.why
    assert not [name for name in json.loads((tmp_path / "bmf.json").read_text()) if "speed" in name]


def test_where_the_machine_is_never_free_cpu_time_is_said_and_can_be_asked_for(here: Path, speeds: list[float]) -> None:
    speeds.append(float("nan"))
    (gate,) = compared(here, "worse.onnx", min_speedup=1.0, repetitions=1).verdict.gates
    assert gate.outcome == "undecided" and "a neighbour; in CPU time, on one thread, 1.20x [1.10, 1.30]" in gate.why
    assert "--clock cpu" in gate.needs and set(clocks) == {"either"}
    speeds[:] = [0.3]
    by_cpu = compared(here, "worse.onnx", min_speedup=1.0, clock="cpu")
    assert by_cpu.outcome == "passed" and clocks[-1] == "cpu"
    assert any("CPU time on one thread (--clock cpu)" in warning for warning in by_cpu.verdict.warnings)


def test_a_slower_model_fails_the_gate_on_speed_after_as_many_repetitions_as_it_takes(
    here: Path, speeds: list[float]
) -> None:
    speeds += [0.0, -0.05, -0.05, -0.05, -0.05]
    result = compared(here, "again.onnx", min_speedup=1.0)
    (gate,) = result.gates
    assert gate.outcome == "failed" and "after 4 repetitions" in gate.why
    assert result.figures.latency[1].rounds == 4 * 30


def test_the_same_file_passes_without_a_look_at_the_clock(here: Path, speeds: list[float]) -> None:
    result = compared(here, "same.onnx", min_speedup=1.0, max_drop=0, max_divergence=0, max_size_ratio=1, strict=True)
    assert result.ok and [gate.outcome for gate in result.gates] == ["passed"] * 4
    assert repr(result).startswith("CompareResult(Passed: max-drop 0, max-divergence 0, min-speedup 1 at 1 x 8")
    assert result._repr_html_().count("<tr>") == 5


def test_without_labels_agreement_and_divergence_are_gates(here: Path, tmp_path: Path, speeds: list[float]) -> None:
    speeds.append(0.0)
    rows = [json.loads(line) for line in (here / "rows.jsonl").read_text().splitlines()]
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({name: row[name] for name in ("premise", "hypothesis")}) + "\n" for row in rows)
    )
    given = {"task": "mnli", "metric": "agreement", "data": texts, "max_drop": 5, "max_divergence": 0.01, "length": 8}
    worse = ax.compare(EXAMPLE, here / "worse.onnx", **given)
    assert [gate.outcome for gate in worse.gates] == ["failed", "failed"]
    assert [gate.what for gate in worse.gates] == ["drop of agreement", "divergence"]
    assert ax.compare(EXAMPLE, here / "again.onnx", **given).outcome == "passed"


def test_every_form_is_written_and_a_summary_is_added_to(here: Path, tmp_path: Path, speeds: list[float]) -> None:
    speeds.append(0.3)
    paths = {name: tmp_path / "out" / name for name in ("junit", "markdown", "benchmark", "bmf")}
    for _ in range(2):
        compared(here, "worse.onnx", max_drop=1.0, min_speedup=1.0, **paths)
    (suite,) = JUnitXml.fromfile(str(paths["junit"]))
    assert [[type(one) for one in case.result] for case in suite] == [[Failure], []]
    assert paths["markdown"].read_text().count("\n| --max-drop |") == 2
    assert len(json.loads(paths["benchmark"].read_text())) == len(json.loads(paths["bmf"].read_text())) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(paths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "error: no gate was named; give one of --max-drop, --max-divergence, --min-speedup, --max-size-ratio."),
        (["--max-drop", "-1"], "Invalid value for '--max-drop'"),
        (["--max-drop", "1", "--task", "sst3"], "error: unknown task"),
        (["--min-speedup", "1", "--clock", "cpu", "--provider", "cuda"], "error: --clock cpu is for --provider cpu"),
    ],
)
def test_a_mistake_exits_with_two_as_ever(here: Path, call: Any, options: list[str], message: str) -> None:
    code, out, err = call(
        "compare", str(EXAMPLE), str(here / "worse.onnx"), "--data", str(here / "rows.jsonl"), *options
    )
    assert code == 2 and message in err and out == ""
    code, _, err = call("compare", str(EXAMPLE), str(EXAMPLE), "--task", "mnli", "--max-drop", "1")
    assert code == 2 and "given twice" in err


# -- the workflow -------------------------------------------------------------------------------------------------------


def run_steps(folder: Path, summary: Path) -> list[tuple[str, int, str]]:
    """(name, exit code, output) of the workflow's `run` steps but the installation, as the runner has them: bash -e, from `folder`.

    A step that fails ends the job. The program is this one.
    """
    found, (job,) = workflow(), workflow()["jobs"].values()
    folder_of_programs = folder / "bin"
    folder_of_programs.mkdir()
    program = folder_of_programs / "axformer-onnx"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m axformer_onnx "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ, **found["env"], "GITHUB_STEP_SUMMARY": str(summary), "PYTHONPATH": f"{ROOT}:{ROOT / 'passes'}",
        "PATH": f"{folder_of_programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    # what the test leaves out: the clock, which no test may depend on; one sure gate in its place
    environment["GATES"] = re.sub(
        r"--min-speedup \S+", "--length 8 --repetitions 1 --wait-for-quiet 0", environment["GATES"]
    )
    done = []
    for step in job["steps"]:
        if "run" not in step or "pip install" in step["run"]:
            continue
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        ran = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        done.append((step["name"], ran.returncode, ran.stdout + ran.stderr))
        if ran.returncode:
            break
    return done


@pytest.mark.parametrize(("candidate", "code"), [("worse.onnx", 1), ("again.onnx", 0)])
def test_the_workflow_fails_on_a_planted_regression_and_passes_without(
    here: Path, tmp_path: Path, candidate: str, code: int
) -> None:
    for name, graph in (("baseline/model", EXAMPLE / "model.onnx"), ("model", here / candidate)):
        (tmp_path / name / "data").mkdir(parents=True)
        shutil.copyfile(graph, tmp_path / name / "model.onnx")
        for companion in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(EXAMPLE / companion, tmp_path / name / companion)
    shutil.copyfile(here / "rows.jsonl", tmp_path / "model" / "data" / "validation.jsonl")
    summary = tmp_path / "summary.md"
    summary.write_text("# An earlier step\n")
    ((name, returned, output),) = run_steps(tmp_path, summary)
    assert (name, returned) == ("Compare", code), output
    text = summary.read_text()
    assert text.startswith("# An earlier step\n") and f"| **{'failed' if code else 'undecided'}** |" in text
    (suite,) = JUnitXml.fromfile(str(tmp_path / "gates" / "junit.xml"))
    assert suite.failures == code and suite.tests == 2
    assert json.loads((tmp_path / "gates" / "benchmark.json").read_text())
    assert json.loads((tmp_path / "gates" / "bmf.json").read_text())


def test_the_workflow_is_one_that_the_runner_takes() -> None:
    found = workflow()
    assert set(found) == {"name", True, "permissions", "env", "jobs"}  # YAML reads "on" as true
    (job,) = found["jobs"].values()
    assert job["runs-on"] and all(("uses" in step) != ("run" in step) for step in job["steps"])
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]) for step in job["steps"] if "uses" in step)
    assert all(isinstance(value, str) for value in found["env"].values())


def test_options_that_the_pages_on_continuous_integration_show_exist(call: Any) -> None:
    _, text, _ = call("compare", "--help")
    for page in (ROOT / "docs" / "ci").iterdir():
        others = r"--adapter json|--file \S+"  # of bencher
        shown = re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(others, "", page.read_text(encoding="utf-8")))
        assert shown and [option for option in shown if option not in text] == [], page.name
