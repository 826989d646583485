"""The command line: one line for every mistake, its exit code, JSON for machines, and a fast start."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from axformer_onnx import cli, commands
from axformer_onnx.errors import ModelError
from axformer_passes.plan import Plan

EXAMPLE = Path(__file__).resolve().parents[1] / "models" / "nli-mini"
tiny_folder = pytest.importorskip("tiny_folder", reason="needs the [export] extra (torch, transformers)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder.make_folder(tmp_path_factory.mktemp("tiny") / "model")


def test_help_and_mistakes_in_options_import_nothing_heavy() -> None:
    program = (
        "import sys\nfrom axformer_onnx import cli\nsys.argv = ['axformer-onnx', 'optimize', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxruntime', 'scipy', 'pyarrow', 'tokenizers', 'numpy', "
        "'rich'}\nsys.exit(', '.join(heavy & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--search-data" in done.stdout


def test_every_verb_has_help_and_the_exit_codes_are_documented(call: Any) -> None:
    code, out, _ = call("--help")
    assert code == 0 and "Exit codes:" in out
    for verb in ("export", "inspect", "apply", "score", "compare", "optimize", "deploy", "serve"):
        assert verb in out
        code, text, _ = call(verb, "--help")
        assert code == 0 and "--json" in text


def test_the_same_option_has_the_same_name_everywhere(call: Any) -> None:
    shared = {
        "score": ["--task", "--data", "--provider", "--seed", "--json", "--threads", "--length"],
        "optimize": [
            "--task",
            "--data",
            "--provider",
            "--seed",
            "--json",
            "--output",
            "--search-data",
            "--calibration",
        ],
        "apply": ["--output", "--json", "--overwrite"],
    }
    for verb, names in shared.items():
        _, text, _ = call(verb, "--help")
        assert all(name in text for name in names), verb


def test_inspect_shows_layers_and_totals(call: Any, folder: Path) -> None:
    code, out, _ = call("inspect", folder)
    assert code == 0 and "4 x 8" in out and "share of compute" in out
    code, out, _ = call("inspect", folder / "model.onnx", "--json")
    data = json.loads(out)
    assert len(data["anatomy"]["layers"]) == len(data["layers"]) == 3
    assert 0 < sum(layer["macs"] for layer in data["layers"]) < data["macs"]
    assert 0 < sum(layer["parameters"] for layer in data["layers"]) < data["parameters"]


def test_optimize_then_score_both(call: Any, folder: Path, tmp_path: Path) -> None:
    out_folder = tmp_path / "out"
    code, out, err = call("optimize", folder, "--task", "mnli", "-o", out_folder, "--threads", 1, "--length", 8)
    assert code == 0, err
    assert "heads kept" in out and f"Written to {out_folder}" in out
    assert "searching" in err
    code, out, _ = call(
        "score", folder, out_folder, "--task", "mnli", "--data", folder / "data", "--length", 8, "--threads", 1
    )
    assert code == 0 and "McNemar" in out and "speed, 1 x 8" in out
    code, out, _ = call("score", folder, "--task", "mnli", "--length", 8, "--threads", 1, "--json")
    data = json.loads(out)
    assert code == 0 and data["comparison"] is None and len(data["models"]) == 1
    report = json.loads((out_folder / "report.json").read_text())
    assert data["models"][str(folder / "model.onnx")]["score"] == pytest.approx(report["source"]["score"])


def test_optimize_prints_its_report_as_json(call: Any, folder: Path, tmp_path: Path) -> None:
    arguments = ("optimize", folder, "--task", "mnli", "-o", tmp_path / "out", "--threads", 1, "--length", 8, "--json")
    code, out, _ = call(*arguments, "--search", "axformer")
    assert code == 0 and json.loads(out)["format"] == "axformer-report/1"
    assert json.loads(out)["search"]["kind"] == "axformer"


def test_apply_writes_the_graph(call: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(Plan().without_heads(0, [1]).dumps())
    code, out, _ = call("apply", tmp_path / "plan.json", folder, "-o", tmp_path / "out", "--json")
    assert code == 0 and Path(json.loads(out)["path"]).is_file()


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


BAD_PLAN = '{"format": "axformer-plan/1", "heads": {"9": [0]}}'
ROW = '{"premise": "w5", "hypothesis": "w6", "label": "neutral"}\n'


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["inspect", "{tmp}/none.onnx"], 2, "no such file"),
        (["inspect", "{tmp}"], 2, "no model.onnx, but half.onnx, text.onnx; name one of them"),
        (["inspect", "{text}"], 2, "not an ONNX model"),
        (["inspect", "{half}"], 2, "truncated"),
        (["optimize", "{model}", "--task", "mlni"], 2, "Did you mean mnli?"),
        (["optimize", "{model}", "--task", "custom"], 2, "--task custom needs --columns"),
        (["optimize", "{model}", "--task", "mnli", "--metric", "f1"], 2, "--metric is for --task custom"),
        (
            ["optimize", "{model}", "--task", "multilabel", "--metric", "f1"],
            2,
            "Metrics: micro-f1, macro-f1, exact-match",
        ),
        (
            ["optimize", "{model}", "--task", "embedding", "--columns", "a,b,c"],
            2,
            "3 text columns (a, b, c); expected 1 or 2",
        ),
        (["optimize", "{model}", "--task", "embedding", "--columns", "premise,hypothesis"], 2, "expected a number"),
        (
            ["optimize", "{model}", "--task", "embedding", "--columns", "premise,hypothesis", "--label", "score"],
            2,
            "no output is called",
        ),
        (["optimize", "{model}", "--task", "sst2"], 2, "no column 'sentence'; found: premise, hypothesis, label"),
        (["optimize", "{model}", "--task", "mnli", "--data", "{tmp}/none.jsonl"], 2, "no such file"),
        (["optimize", "{model}", "--task", "mnli", "--data", "{empty}"], 2, "empty"),
        (["optimize", "{model}", "--task", "mnli", "--columns", "a,b"], 2, "no column 'a', 'b'"),
        (["optimize", "{model}", "--task", "mnli", "--data", "{latin}"], 2, "not UTF-8"),
        (["optimize", "{model}", "--task", "mnli", "--data", "{range}"], 2, "line 2"),
        (["optimize", "{model}", "--task", "mnli", "--provider", "gpux"], 2, "unknown provider"),
        (["optimize", "{model}", "--task", "mnli", "--provider", "qnn"], 3, "is not in this ONNX Runtime"),
        (["optimize", "{model}", "--task", "mnli", "-o", "{text}"], 2, "not a folder"),
        (["optimize", "{model}", "--task", "mnli", "-o", "{tmp}"], 2, "holds no earlier run"),
        (["optimize", "{model}", "--task", "mnli", "--batch", 8], 2, "--batch needs --length"),
        (["optimize", "{model}", "--task", "mnli", "--max-length", 999], 2, "--max-length is 999"),
        (["score", "{model}", "{model}", "--task", "mnli"], 2, "given twice"),
        (["score", "{model}", "a", "b", "--task", "mnli"], 2, "takes one or two"),
        (["apply", "{tmp}/none.json", "{model}", "-o", "{tmp}/x"], 2, "cannot be read"),
        (["apply", "{text}", "{model}", "-o", "{tmp}/x"], 2, "not JSON"),
        (["apply", "{plan}", "{model}", "-o", "{tmp}/x"], 2, "names layer 9"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    call: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, code: int, message: str
) -> None:
    places = {
        "tmp": tmp_path,
        "model": shutil.copytree(folder, tmp_path / "copy"),
        "text": write(tmp_path / "text.onnx", "this is not a model, only a text of some length"),
        "half": write(tmp_path / "half.onnx", (folder / "model.onnx").read_bytes()[:20_000]),
        "empty": write(tmp_path / "empty.jsonl", ""),
        "latin": write(tmp_path / "latin.jsonl", ROW.encode() + '{"premise": "caf\xe9"}\n'.encode("latin-1")),
        "range": write(tmp_path / "range.jsonl", ROW + ROW.replace('"neutral"', "7")),
        "plan": write(tmp_path / "plan.json", BAD_PLAN),
    }
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    got, out, err = call(*(str(a).format(**places) for a in arguments))
    lines = [line for line in err.splitlines() if not line.endswith(" ...")]  # the steps before it
    assert (got, out) == (code, "")
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_mistakes_in_options_exit_with_2(call: Any, folder: Path) -> None:
    for arguments in (["optimize"], ["score"], ["inspect", folder, "--length", "0"], ["nonsense"]):
        code, _, err = call(*arguments)
        assert code == 2 and "Error" in err


def test_second_ctrl_c_stops_with_130_and_says_how_to_go_on(
    call: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "run", stop)
    code, _, err = call("optimize", folder, "--task", "mnli", "-o", tmp_path / "out")
    assert code == 130 and "the same command goes on" in err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")
def test_a_search_that_is_terminated_leaves_its_journal_and_no_temporary_files(tmp_path: Path) -> None:
    output, temporary, model = tmp_path / "out", tmp_path / "temporary", EXAMPLE
    temporary.mkdir()
    command = [sys.executable, "-m", "axformer_onnx", "optimize", model, "--task", "mnli", "-o", output]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as running:  # type: ignore[call-overload]
        deadline = time.monotonic() + 120
        while not any(temporary.glob("axformer-*")) and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert any(temporary.glob("axformer-*")), "it never kept anything"
        running.terminate()
        _, error = running.communicate(timeout=120)
    assert (
        running.returncode == 143
        and error.splitlines()[-1] == "stopped; the same command goes on where the journal ends"
    )
    assert not list(temporary.glob("axformer-*")) and (output / "journal.jsonl").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")
def test_terminated_while_a_module_of_c_is_imported_which_makes_an_error_of_the_exit(
    call: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except SystemExit as exit:
            raise ModelError(f"the model does not run: {exit}") from exit

    monkeypatch.setattr(commands, "run", stop)
    code, _, err = call("optimize", folder, "--task", "mnli", "-o", tmp_path / "out")
    assert code == 143 and "the same command goes on" in err and "does not run" not in err


def test_bug_is_a_traceback_and_not_hidden(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    def bug(*args: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(commands, "run", bug)
    monkeypatch.setattr(sys, "argv", ["axformer-onnx", "optimize", str(folder), "--task", "mnli", "-o", str(tmp_path)])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main()
