"""The whole line on a tiny ALBERT: the default cuts together and says so, `separate` is there for who asks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from axformer_onnx.commands.inspection import inspect_model
from axformer_onnx.commands.optimization import OptimizeOptions, OptimizeResult, optimize
from axformer_onnx.commands.replay import apply
from axformer_onnx.tasks.definitions import get_task
from axformer_passes.io.file_size import parameters_and_size

tiny_folder = pytest.importorskip("tiny_folder", reason="needs the [export] extra (torch, transformers)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import zoo

    found: Path = tiny_folder.make_folder(tmp_path_factory.mktemp("tiny") / "model")
    shutil.copyfile(zoo.build("albert", "torchscript-eager-17", layers=2).path, found / "model.onnx")
    for name, rows, seed in (("search", 60, 1), ("validation", 40, 2)):
        tiny_folder.write_rows(found, found / "data" / f"{name}.jsonl", rows, seed)
    return found


def run(folder: Path, output: Path, **changes: Any) -> OptimizeResult:
    return optimize(
        OptimizeOptions(model=folder, task=get_task("mnli"), output=output, length=(8,), threads=1, **changes)
    )


@pytest.mark.parametrize("search", ["robust", "axformer"])
def test_default_is_together_and_the_report_says_so(folder: Path, tmp_path: Path, search: Any) -> None:
    result = run(folder, tmp_path / "out", search=search)
    assert result.plan.shared_weights == "together"
    assert [note for note in result.report.notes if "--shared-weights together" in note] == [
        f"layers 0-1 share the weights of their {kind} blocks: heads and neurons go in all of them at once "
        "(--shared-weights together)"
        for kind in ("attention", "feed-forward")
    ]
    journal = [json.loads(line) for line in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()]
    assert journal[0]["options"]["shared_weights"] == "together"
    names = [line["element"] for line in journal if "trial" in line]
    assert any(name.startswith("layers 0-1 head") for name in names) or search == "axformer"
    assert not any(name.startswith("layer ") and (" head " in name or " neurons " in name) for name in names)
    found = result.report.candidate.parameters
    assert parameters_and_size(tmp_path / "out" / "model.onnx")[0] == found <= result.report.source.parameters
    replayed = apply(tmp_path / "out" / "plan.json", folder, tmp_path / "again.onnx")
    assert replayed.read_bytes() == (tmp_path / "out" / "model.onnx").read_bytes()


def test_separate_is_named_in_the_notes_and_not_in_the_plan(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "out", shared_weights="separate", search="axformer")
    assert result.plan.shared_weights == "separate" and "shared_weights" not in result.plan.to_json()
    assert any("may grow (--shared-weights separate)" in note for note in result.report.notes)


def test_inspect_names_the_layers_that_share_and_counts_their_weights_once(folder: Path) -> None:
    found = inspect_model(folder, 16)
    data = json.loads(json.dumps(found.to_json(), default=list))
    assert data["shared_weights"] == [
        {"kind": "attention", "layers": [0, 1]},
        {"kind": "feed_forward", "layers": [0, 1]},
    ]
    assert [layer["parameters"] > 0 for layer in data["layers"]] == [True, False]
    assert sum(layer["parameters"] for layer in data["layers"]) < data["parameters"]
    assert data["layers"][0]["macs"] == data["layers"][1]["macs"] > 0


def test_the_command_line_prints_who_shares(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from click.testing import CliRunner

    from axformer_onnx.cli.entry import cli

    out = CliRunner().invoke(cli, ["inspect", str(folder), "--length", "16"]).output
    assert "layers 0-1 share the weights of their attention blocks; they are counted in layer 0" in out
    assert "--shared-weights" in CliRunner().invoke(cli, ["optimize", "--help"]).output
