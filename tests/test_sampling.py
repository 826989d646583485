"""The sample of the matrix: the same for a seed, another one for another, and nothing of which there is but one is ever missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sampling import SEED, SHARE, drawn_cases, drawn_files, drawn_words, seed_of_this_run

FILES = [(f"family {i}", f"exporter {j}") for i in range(20) for j in range(25)] + [
    ("family 3", "a spelling of its own")
]
SEEDS = [f"{seed:040x}" for seed in range(50)]


def test_every_family_and_every_exporter_keeps_a_file_whatever_the_seed() -> None:
    for seed in SEEDS:
        drawn = drawn_files(FILES, seed)
        assert {family for family, _ in drawn} == {family for family, _ in FILES}
        assert {exporter for _, exporter in drawn} == {exporter for _, exporter in FILES}


def test_a_file_that_brings_both_is_taken_before_one_that_brings_either() -> None:
    square = [(f"family {i}", f"exporter {j}") for i in range(6) for j in range(9)]
    assert {len(drawn_files(square, seed, 0.0)) for seed in SEEDS} == {9}


def test_every_rewrite_of_a_file_is_kept_though_not_every_chain_of_them() -> None:
    chains = [("bert", f"{base}{rest}") for base in ("a", "b") for rest in ("", "+c", "+d", "+c+d", "+d+e")]
    for seed in SEEDS:
        drawn = drawn_files(chains, seed, 0.0)
        assert {"a", "b", "c", "d", "e"} == {word for _, chain in drawn for word in chain.split("+")}
        assert len(drawn) == 2


def test_a_sample_is_small_and_fifty_seeds_see_nearly_everything() -> None:
    samples = [drawn_files(FILES, seed) for seed in SEEDS]
    assert all(SHARE * len(FILES) - 1 <= len(drawn) < 0.25 * len(FILES) for drawn in samples)
    assert len(frozenset().union(*samples)) > 0.98 * len(FILES)


def test_the_sample_does_not_hang_on_the_order_in_which_cases_are_collected() -> None:
    assert drawn_files(FILES, "7") == drawn_files(reversed(FILES), "7") != drawn_files(FILES, "8")


def test_a_test_runs_on_the_drawn_files_or_where_it_has_none_of_them_on_one_of_its_own() -> None:
    drawn = drawn_files(FILES, "7")
    left = [file for file in FILES if file not in drawn]
    cases = [*(("first", file) for file in FILES), *(("second", file) for file in left[:9])]
    runs = drawn_cases(cases, "7")
    assert {file for (test, file), does in zip(cases, runs, strict=True) if does and test == "first"} == drawn
    assert sum(does for (test, _), does in zip(cases, runs, strict=True) if test == "second") == 1


def test_a_drawn_file_runs_in_a_quarter_of_the_tests_that_have_it_and_no_test_is_left_out() -> None:
    names = [f"test {i}" for i in range(15)]
    cases = [(name, file) for name in names for file in FILES]
    for seed in SEEDS[:10]:
        runs = [case for case, does in zip(cases, drawn_cases(cases, seed), strict=True) if does]
        drawn = drawn_files(FILES, seed)
        assert {file for _, file in runs} == drawn and {name for name, _ in runs} == set(names)
        assert len(runs) == 3 * len(drawn)


def test_a_test_without_drawn_files_takes_one_that_is_exported_anyway_else_one_that_is_soon_written() -> None:
    files = [(f"family {i}", how) for i in range(10) for how in ("dynamo-20", "dynamo-23", "torchscript-17", "optimum")]
    for seed in SEEDS:
        left = [file for file in files if file not in drawn_files(files, seed, 0.0)]
        slow = [file for file in left if file[1].startswith("dynamo")]
        (soon, *_) = (file for file in left if file not in slow)
        cases = [*(("first", file) for file in files), *(("second", file) for file in (*slow, soon))]

        def second(*exported: tuple[str, str], seed: str = seed, cases: list[Any] = cases) -> list[tuple[str, str]]:
            runs = drawn_cases(cases, seed, 0.0, frozenset(exported))
            return [file for (test, file), does in zip(cases, runs, strict=True) if does and test == "second"]

        assert second() == [soon]
        assert second(slow[3]) == [slow[3]]


def test_the_seed_is_the_commit_unless_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SEED, "mine")
    assert seed_of_this_run() == "mine"
    monkeypatch.delenv(SEED)
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        assert seed_of_this_run() == "no commit"
        return
    assert asked.stdout.startswith(seed_of_this_run()) and len(seed_of_this_run()) == 12


MATRIX = """
import pytest

@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), [(f, e) for f in "abcdef" for e in "uvwxyz"])
def test_of_the_matrix(family, exporter):
    pass

@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", range(10))
def test_sampled(number):
    pass

@pytest.mark.parametrize("exporter", "uvwxyz")
def test_that_always_runs(exporter):
    pass
"""


def collected(folder: Path, *arguments: str) -> list[str]:
    """Names of the cases that a run in `folder` takes."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments]
    alone = {**os.environ, SEED: "7", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=alone, check=True)
    return [line.split("::")[1] for line in done.stdout.splitlines() if "::" in line]


def test_pytest_takes_the_sample_unless_the_whole_or_single_tests_are_asked_for(tmp_path: Path) -> None:
    for name in ("conftest.py", "sampling.py"):
        (tmp_path / name).write_text((Path(__file__).parent / name).read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "test_it.py").write_text(MATRIX, encoding="utf-8")
    expected = drawn_files([(f, e) for f in "abcdef" for e in "uvwxyz"], "7")
    found = collected(tmp_path)
    assert sorted(name for name in found if "matrix" in name) == sorted(
        f"test_of_the_matrix[{f}-{e}]" for f, e in expected
    )
    assert len([name for name in found if "sampled" in name]) == 2
    assert len([name for name in found if "always" in name]) == 6
    assert len(collected(tmp_path, "--whole-matrix")) == 52
    assert len(collected(tmp_path, "test_it.py::test_of_the_matrix")) == 36
    assert collected(tmp_path, "-k", "f-z") == ["test_of_the_matrix[f-z]"]


def test_words_are_drawn_anew_for_every_case_and_seed() -> None:
    words = [f"operation {i}" for i in range(7)]
    drawn = {(seed, file): drawn_words(words, 3, seed, *file) for seed in SEEDS[:10] for file in FILES[:40]}
    assert all(len(some) == 3 and some <= set(words) for some in drawn.values())
    assert drawn[SEEDS[0], FILES[0]] == drawn_words(reversed(words), 3, SEEDS[0], *FILES[0])
    for seed in SEEDS[:10]:
        assert frozenset().union(*(drawn[seed, file] for file in FILES[:40])) == set(words), seed
