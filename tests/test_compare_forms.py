"""The forms of a verdict, read back: JUnit XML by junitparser, Markdown, JSON for github-action-benchmark and for Bencher."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from compared import gate, verdict
from junitparser import Failure, JUnitXml, Skipped

from axformer_onnx.errors import RuntimeFailure
from axformer_onnx.gates import benchmark, bmf, headline, junit, markdown, rates, write
from axformer_onnx.gates.words import gate_row
from axformer_onnx.records import Interval

THREE = (
    gate("passed"),
    gate("failed", "min-speedup", at="1 x 32", allowed=1.0, measured=Interval(0.9, 0.85, 0.95)),
    gate("undecided", "max-divergence", needs="about 3,500 rows"),
)
SCHEMA = {
    "testsuites": ({"name", "time", "tests", "failures", "disabled", "errors"}, ["testsuite"]),
    "testsuite": (
        {
            "name",
            "tests",
            "failures",
            "errors",
            "time",
            "disabled",
            "skipped",
            "timestamp",
            "hostname",
            "id",
            "package",
        },
        ["properties", "testcase", "system-out", "system-err"],
    ),
    "properties": (set(), ["property"]),
    "property": ({"name", "value"}, []),
    "testcase": (
        {"name", "assertions", "time", "classname", "status"},
        ["skipped", "error", "failure", "system-out", "system-err"],
    ),
    "failure": ({"type", "message"}, []),
    "skipped": ({"message", "type"}, []),
    "system-out": (set(), []),
}
"""Attributes and, in this order, children of each element, as the schema of Jenkins' JUnit plugin has them."""


def read(text: str) -> list[tuple[str, list[type]]]:
    """(name, kinds of results) of each test case, by junitparser."""
    (suite,) = JUnitXml.fromstring(text.encode())
    return [(case.name, [type(one) for one in case.result]) for case in suite]


def test_a_gate_is_a_test_case_and_its_outcome_the_result() -> None:
    assert read(junit(verdict(*THREE))) == [
        ("max-drop 0.5", []),
        ("min-speedup 1 at 1 x 32", [Failure]),
        ("max-divergence 0.5", [Skipped]),
    ]
    assert read(junit(verdict(*THREE, strict=True)))[2] == ("max-divergence 0.5", [Failure])


@pytest.mark.parametrize("strict", [False, True])
def test_counts_are_those_of_the_cases_and_every_element_is_one_of_the_schema(strict: bool) -> None:
    text = junit(verdict(*THREE, strict=strict))
    (suite,) = JUnitXml.fromstring(text.encode())
    stated = (suite.tests, suite.failures, suite.errors, suite.skipped)
    suite.update_statistics()
    assert stated == (suite.tests, suite.failures, suite.errors, suite.skipped) == (3, 1 + strict, 0, 1 - strict)
    for element in ElementTree.fromstring(text).iter():
        attributes, children = SCHEMA[element.tag]
        assert set(element.attrib) <= attributes
        places = [children.index(child.tag) for child in element]
        assert places == sorted(places)


def test_names_that_would_be_markup_or_no_text_at_all_stay_text() -> None:
    nasty = 'a<b>&"|`\x1b[31m\x00.onnx'
    text = junit(verdict(gate("failed", why=nasty), candidate=nasty))
    (suite,) = JUnitXml.fromstring(text.encode())
    assert {one.name: one.value for one in suite.properties()}["candidate"] == 'a<b>&"|`\\x1b[31m\\x00.onnx'
    table = markdown(verdict(gate("failed", what=nasty), candidate=nasty))
    assert "\x1b" not in table and "<b>" not in table.replace("\\<b>", "")
    cells = {len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines() if line.startswith("| ")}
    assert cells == {len(gate_row(THREE[0])) + 2, 3 + 2}


def test_markdown_has_a_row_a_gate_and_names_what_failed_first() -> None:
    text = markdown(verdict(*THREE, warnings=("a neighbour",)))
    lines = text.splitlines()
    assert lines[0] == "## new/model.onnx against old/model.onnx: failed"
    assert lines[2] == "Failed: min-speedup 1 at 1 x 32; undecided: max-divergence 0.5."
    assert "| --min-speedup | drop of accuracy, 1 x 32 | 0.900x [0.850, 0.950] | at least 1x | **failed** |" in lines
    assert "* max-divergence 0.5: undecided, so it is; about 3,500 rows" in lines
    assert "**Warning.** a neighbour" in lines and "| accuracy | 90.00 | 89.00 |" in lines
    assert text.endswith("\n\n")


def test_what_is_tracked_is_ratios_of_which_bigger_is_better() -> None:
    entries = json.loads(benchmark(verdict(*THREE)))
    assert all(set(entry) <= {"name", "unit", "value", "range", "extra"} for entry in entries)
    assert {entry["name"]: entry["value"] for entry in entries} == {
        "mnli: accuracy": 0.99,
        "mnli: speed, 1 x 32": 1.25,
        "mnli: file size, times as small": 2.0,
    }
    assert entries[1]["range"] == "1.2 to 1.3" and all(entry["unit"] == "x" for entry in entries)


def test_bencher_gets_the_ratios_with_their_bounds() -> None:
    found = json.loads(bmf(verdict(*THREE)))
    assert found["mnli: speed, 1 x 32"] == {"speed-ratio": {"value": 1.25, "lower_value": 1.2, "upper_value": 1.3}}
    assert found["mnli: file size"] == {"size-ratio": {"value": 0.5}}
    measures = [name for measures in found.values() for name in measures]
    assert all(re.fullmatch(r"[a-z-]{1,64}", name) for name in measures)


def test_the_headline_says_what_undecided_counts_as() -> None:
    assert headline(verdict(THREE[0])) == "Passed: max-drop 0.5."
    assert headline(verdict(THREE[2])) == "Undecided (no failure without --strict): max-divergence 0.5."
    assert headline(verdict(THREE[2], strict=True)) == "Undecided (a failure with --strict): max-divergence 0.5."
    assert [verdict(THREE[2], strict=strict).ok for strict in (False, True)] == [True, False]
    assert verdict(*THREE).outcome == "failed" and verdict(THREE[0], THREE[2]).outcome == "undecided"


def test_exact_figures_have_no_error_rate() -> None:
    assert rates(verdict(gate("passed"))).startswith("Error rates: a gate that holds fails")
    exact = gate("passed", "max-size-ratio", measured=Interval(0.5, 0.5, 0.5, 1.0))
    assert "exact" in rates(verdict(type(exact)(**{**vars(exact), "error": 0.0})))


def test_a_summary_is_added_to_and_other_forms_are_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "summary.md"
    for text in ("one\n", "two\n"):
        write(path, text, append=True)
    assert path.read_text() == "one\ntwo\n"
    write(path, "three\n")
    assert path.read_text() == "three\n" and list(path.parent.iterdir()) == [path]


def test_a_link_stays_a_link_and_rights_stay_as_they_were(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("before\n")
    target.chmod(0o640)
    link.symlink_to(target)
    write(link, "after\n", append=True)
    assert link.is_symlink() and target.read_text() == "before\nafter\n"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write(pipe, "said\n", append=True)
        assert os.read(reader, 64) == b"said\n" and pipe.is_fifo()
    finally:
        os.close(reader)


def test_standard_output_in_a_file_stays_that_file(tmp_path: Path) -> None:
    program = (
        "import pathlib\nfrom axformer_onnx.gates import write\nprint('before', flush=True)\n"
        "write(pathlib.Path('/dev/stdout'), 'written\\n', append=True)\nprint('after')"
    )
    with (tmp_path / "log").open("a") as log:
        subprocess.run([sys.executable, "-c", program], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "before\nwritten\nafter\n"


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeFailure, match=r"file/gates\.xml: cannot be written: "):
        write(tmp_path / "file" / "gates.xml", "")
