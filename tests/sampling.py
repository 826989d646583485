"""Which part of the matrix (architecture x file) a test run takes: a sample by a seed, another one at every commit.

    AXFORMER_TEST_SEED=7 pytest       the sample of seed 7; without it the seed is the commit
    pytest --whole-matrix             everything, as `make test-all` runs it

A test marked `matrix` has a case for each of many files of the zoo, named by its parameters `family` and `exporter`. Files are
drawn, not cases: what one test has exported the others find. Every family and every exporter (each operator set, each rewrite
of a file, each chain of rewrites) keeps at least one file, and every test a case. Tests without the mark always run, and so do
cases that are asked for by name (`pytest FILE::TEST`, `-k`).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import pytest

SEED = "AXFORMER_TEST_SEED"
SHARE = 0.1
"""Of the files, beside those that the rule above keeps: so that a file is seen in 44 commits at 99 % (0.9 ** 44 is 1 %)."""

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
    """At least `share` of the files, by their hashes with the seed; all names of either kind are among them."""
    order = sorted(set(files), key=lambda file: _hash(seed, *file))
    families, exporters, drawn = set[str](), set[str](), dict[File, None]()
    for family, exporter in order:
        if family not in families or exporter not in exporters:
            drawn[family, exporter] = None
            families.add(family)
            exporters.add(exporter)
    for file in order[: round(share * len(order))]:
        drawn[file] = None
    return frozenset(drawn)


def drawn_cases(cases: Sequence[tuple[str, File]], seed: str, share: float = SHARE) -> list[bool]:
    """For each (test, file): does it run? Those of the drawn files, and of a test that has none of these one file."""
    drawn = drawn_files((file for _, file in cases), seed, share)
    own: dict[str, File] = {}
    for test, file in sorted(cases, key=lambda case: _hash(seed, *case[1])):
        if file in drawn or test not in own:
            own[test] = file
    return [file in drawn or own[test] == file for test, file in cases]


def file_of(parameters: Mapping[str, Hashable]) -> File:
    """The file that a case is about; "" where the test has one family, or one exporter, for all its cases."""
    return str(parameters.get("family", "")), str(parameters.get("exporter", ""))


def sample(items: list[pytest.Item], seed: str, share: float = SHARE) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """(run, left out), in the order given."""
    marked = [item for item in items if item.get_closest_marker("matrix")]
    cases = [(item.nodeid.split("[", 1)[0], file_of(_parameters(item))) for item in marked]
    left_out = {id(item) for item, runs in zip(marked, drawn_cases(cases, seed, share), strict=True) if not runs}
    return [i for i in items if id(i) not in left_out], [i for i in items if id(i) in left_out]


def _parameters(item: pytest.Item) -> Mapping[str, Hashable]:
    callspec = getattr(item, "callspec", None)
    if callspec is None or not {"family", "exporter"} & set(callspec.params):
        raise pytest.UsageError(f"{item.nodeid}: marked `matrix`, but has no parameter `family` or `exporter`")
    return dict(callspec.params)


def _hash(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode()).hexdigest()
