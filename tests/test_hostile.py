"""Damaged and hostile files: one clear line and an exit code; never a crash, a hang, a read outside the model's folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hostile_graphs  # noqa: F401  (adds its cases)
import hostile_names  # noqa: F401
import pytest
from hostile_files import CANARY, CASES, Hostile

from axformer_onnx import cli
from axformer_passes.errors import ModelError
from axformer_passes.io.files import load_model

PLAN = '{"format": "axformer-plan/1", "feed_forward_blocks": [0]}'
RUN = Path(__file__).with_name("hostile_run.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for the model; outside it lies the canary."""
    (tmp_path / CANARY).write_bytes(b"secret" * 100)
    (tmp_path / "inner").mkdir()
    return tmp_path / "inner"


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command line."""
    monkeypatch.setattr(sys, "argv", ["axformer-onnx", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def assert_one_clear_line(err: str, said: str | None) -> None:
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1
    assert len(err) < 1000
    assert err[:-1].isprintable()
    assert said is None or said in err


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_inspect_refuses_in_one_clear_line(
    case: Hostile, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = case.build(folder)
    code, out, err = run(monkeypatch, capsys, "inspect", str(path))
    if case.said is None and code == 0:
        assert out.replace("\n", "").isprintable()
        return
    assert code in (2, 3)
    assert_one_clear_line(err, case.said)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_apply_refuses_in_one_clear_line_and_writes_nothing(
    case: Hostile, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = case.build(folder)
    plan = folder.parent / "plan.json"
    plan.write_text(PLAN)
    output = folder.parent / "out" / "small.onnx"
    code, _, err = run(monkeypatch, capsys, "apply", str(plan), str(path), "-o", str(output))
    if code == 0:
        assert case.said is None
        return
    assert code in (2, 3)
    assert_one_clear_line(err, case.said)
    assert not output.parent.exists()
    assert sorted(os.listdir(folder.parent)) == [CANARY, "inner", "plan.json"]


def test_nothing_outside_the_models_folder_is_opened_and_memory_is_bounded(tmp_path: Path) -> None:
    """The whole corpus in one process that records every file it opens, as its user would see it."""
    done = subprocess.run([sys.executable, str(RUN), str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, last = map(json.loads, done.stdout.splitlines())
    assert len(lines) == 2 * len(CASES)
    for line in lines:
        assert line["code"] in (0, 2, 3) and not line["outside"] and not line["read"], line
        assert line["err"].count("\n") == (line["code"] != 0), line
    assert last["peak"] < 2 * 2**30


PLANS = {
    "empty": ("", "not JSON"),
    "a_word": ("word", "not JSON"),
    "a_list": ("[]", "expected a JSON object"),
    "a_number_of_ten_thousand_digits": ("1" * 10_000, "not JSON"),
    "depth": ("[" * 100_000, "not JSON"),
    "depth_in_an_object": ('{"format": ' + "[" * 400 + "]" * 400 + "}", '"format" is'),
    "a_long_format": (json.dumps({"format": "x" * 10**6}), '"format" is'),
    "a_long_key": (json.dumps({"format": "axformer-plan/1", "y" * 10**6: 1}), "unknown key"),
    "a_surrogate": ('{"format": "\\ud800"}', '"format" is'),
    "an_escape": (json.dumps({"format": "axformer-plan/1", "source_sha256": "\x1b[31m"}), "another model"),
    "not_a_number": ('{"format": "axformer-plan/1", "attention_blocks": [NaN]}', "list of ids"),
    "a_deep_list_of_ids": ('{"format": "axformer-plan/1", "attention_blocks": [' + "[" * 400 + "]" * 401 + "}", "list of ids"),
    "a_layer_far_away": ('{"format": "axformer-plan/1", "attention_blocks": [1000000000000000000000]}', "names layer"),
    "a_k_beyond_64_bits": ('{"format": "axformer-plan/1", "hard_attention": {"0": {"k": 99999999999999999999}}}', "k is"),
    "a_mode_that_is_a_list": ('{"format": "axformer-plan/1", "hard_attention": {"0": {"k": 1, "mode": []}}}', "mode is"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANS)
def test_a_hostile_plan_is_one_clear_line(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, said = PLANS[name]
    whole = next(case for case in CASES if case.name == "names_with_escapes_in_a_whole_transformer").build(folder)
    (folder / "plan.json").write_text(text)
    code, _, err = run(monkeypatch, capsys, "apply", str(folder / "plan.json"), str(whole), "-o", str(folder / "out"))
    assert code == 2
    assert_one_clear_line(err, said)
    assert not (folder / "out").exists()


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "/dev/zero", "a large file"])
def test_a_plan_that_is_no_plain_file_is_not_read(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = folder / "plan.json"
    if kind == "a folder":
        plan.mkdir()
    elif kind == "a pipe":
        os.mkfifo(plan)
    elif kind == "a large file":
        plan.touch()
        os.truncate(plan, 2**33)
    else:
        plan.symlink_to(kind)
    whole = next(case for case in CASES if case.name == "names_with_escapes_in_a_whole_transformer").build(folder)
    code, _, err = run(monkeypatch, capsys, "apply", str(plan), str(whole), "-o", str(folder / "out"))
    assert code == 2
    assert_one_clear_line(err, str(plan))


def test_a_file_that_may_not_be_read_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = next(case for case in CASES if case.name == "a_producer_with_escapes").build(folder)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelError, match=r"model\.onnx: cannot be read: Permission denied"):
        load_model(whole)
