"""Which part of the matrix (architecture x file) a test run takes: a sample by a seed, another one at every commit.

    AXFORMER_TEST_SEED=7 pytest       the sample of seed 7; without it the seed is the commit
    pytest --whole-matrix             everything, as `make test-all` runs it

    @pytest.mark.matrix               a case for each of many files of the zoo
    @pytest.mark.sampled(8)           many cases of any other kind, of which 8 run; 0: those of the whole matrix alone

A test marked `matrix` has a case for each of many files of the zoo, named by its parameters `family` and `exporter`; one
exporter of all its cases may stand in the mark. Files are drawn, not cases: what one test has exported the others find; each
drawn file runs in a quarter of the tests that have it. Every family, every exporter (each operator set) and every rewrite of a file
keeps at least one file, and every test a case. Tests without a mark always run, and so do cases that are asked for by name
(`pytest FILE::TEST`, `-k`).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import pytest

SEED = "AXFORMER_TEST_SEED"
SHARE = 0.08
"""Of the files, those that the rule above keeps among them: so that a file is seen in 55 commits at 99 % (0.92 ** 55 is 1 %)."""

File = tuple[str, str]
"""(family, exporter)."""


def seed_of_this_run() -> str:
    """AXFORMER_TEST_SEED, else the commit's hash, else (no git) a fixed word."""
    if given := os.environ.get(SEED):
        return given
    try:
        asked = ["git", "rev-parse", "HEAD"]
        found = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "no commit"
    return found.stdout.strip()[:12]


def drawn_files(files: Iterable[File], seed: str, share: float = SHARE) -> frozenset[File]:
    """At least `share` of the files, by their hashes with the seed; all words (`words_of`) are among them."""
    order = sorted(set(files), key=lambda file: _hash(seed, *file))
    lacking, drawn = {word for file in order for word in words_of(file)}, dict[File, None]()
    while lacking:
        best = max(order, key=lambda file: len(lacking & words_of(file)))  # of equal ones the first
        drawn[best] = None
        lacking -= words_of(best)
    for file in order:
        if len(drawn) >= round(share * len(order)):
            break
        drawn[file] = None
    return frozenset(drawn)


def drawn_words(words: Iterable[str], count: int, seed: str, *of: str) -> frozenset[str]:
    """`count` of these words, others for every case `of`."""
    return frozenset(sorted(words, key=lambda word: _hash(seed, word, *of))[:count])


def words_of(file: File) -> frozenset[str]:
    """What must be in every sample: the family, the exporter, and each rewrite of its file ("dynamo-20+ort+int8" has two)."""
    family, exporter = file
    base, *rewrites = exporter.split("+")
    return frozenset({f"family {family}", f"exporter {base}", *(f"+{rewrite}" for rewrite in rewrites)})


def drawn_cases(
    cases: Sequence[tuple[str, File]], seed: str, share: float = SHARE, exported: frozenset[File] = frozenset()
) -> list[bool]:
    """For each (test, file): does it run? A drawn file in a quarter of the tests that have it, and of a test that is left
    without any of these one file.

    That is one of those `exported` anyway, where it has any; else one that is soon written (dynamo takes thirty times as long).
    """
    drawn = drawn_files((file for _, file in cases), seed, share)
    tests: dict[File, set[str]] = {}
    for test, file in cases:
        if file in drawn:
            tests.setdefault(file, set()).add(test)
    runs = {(test, file) for file, some in tests.items() for test in _quarter(some, file, seed)}
    served, own = {test for test, _ in runs}, dict[str, File]()
    for test, file in sorted(cases, key=lambda case: _dearness(case[1], exported, seed)):
        if test not in served and (file in drawn or test not in own):
            own[test] = file
    return [(test, file) in runs or own.get(test) == file for test, file in cases]


def _quarter(tests: Iterable[str], file: File, seed: str) -> list[str]:
    """A quarter of the tests of a file, at least one: all of them on one file would prove less than the same on three."""
    order = sorted(tests, key=lambda test: _hash(seed, test, *file))
    return order[: max(1, len(order) // 4)]


def _dearness(file: File, exported: frozenset[File], seed: str) -> tuple[bool, bool, str]:
    return file not in exported, file[1].startswith("dynamo"), _hash(seed, *file)


def file_of(parameters: Mapping[str, Hashable], exporter: str = "") -> File:
    """The file that a case is about. `exporter`: of all cases of the test, where it is no parameter. "tf5/" is no other file."""
    found = str(parameters.get("exporter", exporter))
    return str(parameters.get("family", "")), found.removeprefix("tf5/")


def sample(items: list[pytest.Item], seed: str, share: float = SHARE) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """(run, left out), in the order given."""
    marked = [(item, mark) for item in items if (mark := item.get_closest_marker("matrix"))]
    cases = [(item.nodeid.split("[", 1)[0], file_of(_parameters(item), *mark.args)) for item, mark in marked]
    left_out = _beyond_samples(items, seed)
    runs = drawn_cases(cases, seed, share, _exported(item for item in items if id(item) not in left_out))
    left_out |= {id(item) for (item, _), does in zip(marked, runs, strict=True) if not does}
    return [i for i in items if id(i) not in left_out], [i for i in items if id(i) in left_out]


def _exported(items: Iterable[pytest.Item]) -> frozenset[File]:
    """The files of tests that are not marked `matrix`, as far as their parameters name them."""
    given = (getattr(item, "callspec", None) for item in items if not item.get_closest_marker("matrix"))
    return frozenset(file_of(spec.params) for spec in given if spec and {"family", "exporter"} <= spec.params.keys())


def _beyond_samples(items: Iterable[pytest.Item], seed: str) -> set[int]:
    """Cases of tests marked `sampled` that are not among the first by their hashes, by id."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled"):
            cases.setdefault(item.nodeid.split("[", 1)[0], []).append(item)
    left_out = set[int]()
    for found in cases.values():
        (mark,) = found[0].iter_markers("sampled")
        left_out |= {id(item) for item in sorted(found, key=lambda item: _hash(seed, item.nodeid))[mark.args[0] :]}
    return left_out


def _parameters(item: pytest.Item) -> Mapping[str, Hashable]:
    callspec = getattr(item, "callspec", None)
    if callspec is None or "family" not in callspec.params:
        raise pytest.UsageError(f"{item.nodeid}: marked `matrix`, but has no parameter `family`")
    return dict(callspec.params)


def _hash(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()
