"""docs/zero-shot.md does what it says: its code runs, its rows are rows, its commands exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from axformer_onnx.cli import cli
from axformer_onnx.commands import score
from axformer_onnx.options import ScoreOptions, make

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "zero-shot.md").read_text(encoding="utf-8")
ROWS, SERVING = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nli-small").symlink_to(ROOT / "models" / "nli-mini")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_rows_are_scored_as_pairs(here: Path) -> None:
    exec(ROWS, {"__name__": "rows"})
    (report,) = ((here / "rows" / "validation.jsonl").read_text().splitlines()[:3],)
    assert [json.loads(line)["label"] for line in report].count("entailment") == 1
    asked: dict[str, Any] = {"models": ("nli-small",), "task": "mnli", "data": "rows", "length": 16, "threads": 1}
    found = score(make(ScoreOptions, asked))
    assert found.rows == 3


def test_its_serving_code_classifies_and_a_text_is_nearest_to_itself(here: Path) -> None:
    names: dict[str, Any] = {}
    exec(SERVING, names)
    found = names["classify"]("A man is sleeping.", ["a man is sleeping", "nobody is sleeping"], "{}.")
    assert list(found) == ["a man is sleeping", "nobody is sleeping"]
    assert np.isclose(sum(found.values()), 1) and found["a man is sleeping"] > 0.5


def test_its_commands_have_the_options_that_it_shows() -> None:
    shown = re.findall(r"^    axformer-onnx (\w+)(.*)$", TEXT, re.MULTILINE)
    assert [verb for verb, _ in shown] == ["export", "optimize", "score"]
    for verb, rest in shown:
        help_text = CliRunner().invoke(cli, [verb, "--help"]).output
        assert all(option in help_text for option in re.findall(r"--[a-z-]+", rest)), verb
