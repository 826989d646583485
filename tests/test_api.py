"""`import axformer_onnx as ax`: its names, its examples, its refusals in the words of the command line, its display."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_report import report as make_report

import axformer_onnx as ax
from axformer_onnx import cli
from axformer_onnx.options import ApplyOptions, OptimizeOptions, make
from axformer_onnx.records import Interval
from axformer_onnx.result.report import Report, html, html_table, markdown
from axformer_onnx.result.report.words import options_line
from axformer_onnx.runtime import LatencyRow

ROOT = Path(__file__).parents[1]
FUNCTIONS = ("apply", "compare", "deploy", "export", "inspect", "optimize", "report", "score", "serve")
EXAMPLES = (*FUNCTIONS, "environment", "preview", "Plan", "Task")


@pytest.fixture
def beside_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory as the examples expect it: `models/nli-mini` in it, with few rows, and nothing else."""
    folder, source = tmp_path / "models" / "nli-mini", ROOT / "models" / "nli-mini"
    (folder / "data").mkdir(parents=True)
    for path in source.glob("*.*"):
        (folder / path.name).symlink_to(path)
    for path in (source / "data").iterdir():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / "data" / path.name).write_text("".join(lines[:120]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_in_a_docstring_runs_and_gives_what_it_shows(beside_the_models: Path, name: str) -> None:
    found = doctest.DocTestFinder(recurse=False).find(getattr(ax, name), name, globs={"Plan": ax.Plan})
    (example,) = [one for one in found if one.examples]
    report = list[str]()
    result = doctest.DocTestRunner().run(example, out=report.append)
    assert result.attempted >= 2 and result.failed == 0, "".join(report)


def test_names_are_sorted_and_each_is_there() -> None:
    assert list(ax.__all__) == sorted(ax.__all__)
    assert all(getattr(ax, name) is not None for name in ax.__all__)
    assert set(ax.__all__) <= set(dir(ax))
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        ax.optimise  # noqa: B018


def test_no_module_has_the_name_of_a_public_one() -> None:
    inner = {path.stem for path in (ROOT / "axformer_onnx").iterdir()}
    assert inner.isdisjoint(ax.__all__)


def test_importing_it_imports_the_standard_library_alone() -> None:
    program = "import sys\nbefore = set(sys.modules)\nimport axformer_onnx\nprint(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "axformer_onnx" in imported
    assert {name.partition(".")[0] for name in imported} - {"axformer_onnx"} <= sys.stdlib_module_names
    assert not {name for name in imported if name.startswith("axformer_onnx.")}


def test_the_error_tree_is_that_of_the_tool() -> None:
    assert issubclass(ax.RecogniseError, ax.ModelError) and issubclass(ax.ModelError, ax.AxformerError)
    assert ax.RuntimeFailure.exit_code == ax.VerifyError.exit_code == 3
    assert ax.UsageError.exit_code == ax.PlanError.exit_code == ax.DataError.exit_code == 2


def test_a_signature_names_every_option_of_the_command_line() -> None:
    for name in FUNCTIONS:
        offered = set(inspect.signature(getattr(ax, name)).parameters)
        command = cli.cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        asked = {str(p.name) for p in command.params} - {"as_json", "dry_run", "models"}
        assert asked <= offered, name
        assert all(
            option in (getattr(ax, name).__doc__ or "")
            for option in asked - {"model", "plan", "checkpoint", "out", "output"}
        )


REFUSED: list[tuple[dict[str, Any], list[str], str, str]] = [
    (
        {"max_drop": 1, "search": "axformer"},
        ["--max-drop", "1", "--search", "axformer"],
        "--max-drop 1 is for --search compensated; --search axformer has no goal but the loss",
        "max_drop=1 is for search='compensated'; search='axformer' has no goal but the loss",
    ),
    (
        {"refit_classifier": True, "search": "robust"},
        ["--refit-classifier", "--search", "robust"],
        "--refit-classifier is for --search compensated; --search robust changes no weight",
        "refit_classifier=True is for search='compensated'; search='robust' changes no weight",
    ),
    (
        {"max_drop": 0.5, "speedup": 2},
        ["--max-drop", "0.5", "--speedup", "2"],
        "--max-drop 0.5 and --speedup 2 were given; name one goal",
        "max_drop=0.5 and speedup=2 were given; name one goal",
    ),
    (
        {"batch": 8},
        ["--batch", "8"],
        "--batch needs --length, for example --batch 8 --length 128",
        "batch needs length, for example batch=8 length=128",
    ),
    (
        {"metric": "f1"},
        ["--metric", "f1"],
        "--metric is for --task custom, multilabel and embedding; mnli has its own, and agreement",
        "metric is for task='custom', multilabel and embedding; mnli has its own, and agreement",
    ),
    (
        {"output": "models"},
        ["-o", "models"],
        "models: the folder is not empty and holds no earlier run (nli-mini). Use another -o, or --overwrite",
        "models: the folder is not empty and holds no earlier run (nli-mini). Use another output, or overwrite=True",
    ),
]


@pytest.mark.parametrize(("options", "arguments", "on_the_command_line", "in_python"), REFUSED)
def test_both_faces_refuse_with_the_same_words_each_in_its_own_spelling(
    beside_the_models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    arguments: list[str],
    on_the_command_line: str,
    in_python: str,
) -> None:
    with pytest.raises(ax.UsageError) as refused:
        ax.optimize("models/nli-mini", task="mnli", **options)
    assert str(refused.value) == in_python
    monkeypatch.setattr(sys, "argv", ["axformer-onnx", "optimize", "models/nli-mini", "--task", "mnli", *arguments])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {on_the_command_line}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sped_up": 2}, "there is no option 'sped_up'. Did you mean speedup?"),
        ({"speedup": 0.5}, "speedup is 0.5: expected greater than 1"),
        ({"size": 2}, "size is 2: expected less than 1"),
        ({"effort": "lots"}, "effort is 'lots': expected 'low', 'medium' or 'high'"),
        ({"search": "robst"}, "unknown search 'robst'. Did you mean robust? Known: compensated, robust, axformer"),
        ({"length": [8, 0]}, "length is 0: expected at least 1"),
        ({"threads": "many"}, "threads is 'many': expected a valid integer, unable to parse string as an integer"),
        ({"task": 7}, "task is 7: expected a name, or a Task"),
        ({"task": "custom"}, "task='custom' needs columns, for example columns text_a,text_b"),
    ],
)
def test_a_mistake_in_an_option_is_one_line_that_names_it(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ax.UsageError) as refused:
        ax.optimize(ROOT / "models" / "nli-mini", **{"task": "mnli", **options})
    assert str(refused.value) == message


def test_scores_are_shown_as_a_table_in_a_notebook_and_as_one_line_elsewhere(beside_the_models: Path) -> None:
    result = ax.score("models/nli-mini", task="mnli", length=8)
    (record,) = result.models.values()
    assert f'<td style="padding:2px 8px;text-align:left">{record.score:.2f}</td>' in result._repr_html_()
    assert "\n" not in repr(result) and f"{record.score:.2f}" in repr(result)


def test_a_score_says_undecided_where_speed_could_not_be_measured(
    beside_the_models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waited = []

    def disturbed(models: Any, shapes: Any, *rest: Any, wait_seconds: float, **more: Any) -> list[LatencyRow]:
        waited.append(wait_seconds)
        ratio = Interval(2.0, 1.0, 4.0, reliable=False, why="a neighbour")
        return [
            LatencyRow(name, 1, 8, 1.0, 2.0, ratio if i else None, 30, 2, reliable=False, why="a neighbour")
            for i, name in enumerate(models)
        ]

    monkeypatch.setattr("axformer_onnx.commands.scores.latency_of", disturbed)
    other = ax.apply(ax.Plan().without_heads(0, [1]), "models/nli-mini", tmp_path / "other.onnx")
    result = ax.score("models/nli-mini", other, task="mnli", length=8, wait_for_quiet=7)
    assert ("speed, 1 x 8", "1.00x", "undecided: a neighbour") in result.figures()
    assert any("latency at 1 x 8 does not hold: a neighbour" in warning for warning in result.warnings)
    assert [row["reliable"] for row in result.to_json()["latency"]] == [False, False]
    assert all("wall_ms" not in row for row in result.to_json()["latency"])
    assert waited == [7.0]


def test_a_missing_option_is_named() -> None:
    with pytest.raises(ax.UsageError, match=r"nothing in it says what task it was fine-tuned for.*: give task$"):
        ax.score(ROOT / "models" / "nli-mini")
    with pytest.raises(ax.UsageError, match=r"^--output is missing$"):
        make(ApplyOptions, {"plan": "plan.json", "model": "model.onnx"})


def test_a_plan_that_names_weights_is_not_applied_without_them(tmp_path: Path) -> None:
    with pytest.raises(ax.UsageError, match=r"names its weights, w\.safetensors: give the file or folder"):
        ax.apply(ax.Plan(weights="w.safetensors"), ROOT / "models" / "nli-mini", tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_plan_is_a_plan(tmp_path: Path) -> None:
    plan = ax.Plan().without_heads(0, [1])
    (tmp_path / "point").mkdir()
    (tmp_path / "point" / "plan.json").write_text(plan.dumps())
    paths = [
        ax.apply(given, ROOT / "models" / "nli-mini", tmp_path / f"{number}.onnx")
        for number, given in enumerate((plan, tmp_path / "point", str(tmp_path / "point" / "plan.json")))
    ]
    assert len({path.read_bytes() for path in paths}) == 1


def test_the_notebook_display_escapes_every_text() -> None:
    assert "<td" in html_table(("a",), [("<b>&",)]) and "&lt;b&gt;&amp;" in html_table(("a",), [("<b>&",)])
    report = make_report(task="<script>alert(1)</script>", warnings=["<i>loud</i>"])
    shown = html(report)
    assert "<script" not in shown and "<i>" not in shown and "&lt;i&gt;loud" in shown


def test_the_report_says_with_which_options_it_was_made_as_the_command_line_has_them() -> None:
    given = make(
        OptimizeOptions,
        {
            "model": ROOT / "models" / "nli-mini",
            "task": "mnli",
            "speedup": 2,
            "length": [8, 16],
            "refit_classifier": True,
        },
    )
    assert given.stated() == {"task": "mnli", "speedup": 2.0, "refit_classifier": True, "length": [8, 16]}
    report = make_report(options=given.stated())
    assert options_line(report) == "--task mnli --speedup 2.0 --refit-classifier --length 8 --length 16"
    assert options_line(Report.model_validate_json(report.dumps())) == options_line(report)
    assert options_line(report) in markdown(report)


def test_a_result_is_one_line_and_hands_out_what_is_asked_for_most(tmp_path: Path) -> None:
    report = make_report()
    result = ax.OptimizeResult(report, ax.Plan(), tmp_path)
    assert result.page == tmp_path / "report.html"
    assert "\n" not in repr(result) and repr(result) == str(result) and str(tmp_path / "model.onnx") in repr(result)
    assert result.path == tmp_path / "model.onnx" and result.frontier == ()
    assert (result.score.source, result.score.result) == (report.source.score, report.candidate.score)
    assert result._repr_html_() == html(report)
