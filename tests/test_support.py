"""docs/support.md says what is so: the cells of the drawn files measured again, every refusal expected, its sums right."""

from __future__ import annotations

import collections
import dataclasses

import pytest
import support
import support_page
from sampling import drawn_words, seed_of_this_run
from support_cells import GATES, OPERATIONS, PLANS, Refusal, Row, checked
from support_page import documented, documented_left, page, rows_of
from support_words import ARCHITECTURES, GROUPS, MEANINGS, VARIED, group_of
from zoo import FAMILY, UNEXPORTABLE
from zoo_variant_cases import UNVARIABLE
from zoo_variants import VARIANTS

TEXT = support.PAGE.read_text(encoding="utf-8")
DOCUMENTED, LEFT = documented(TEXT), documented_left(TEXT)
HERE = {case for case in DOCUMENTED if case[1].startswith(support.FIVE) == support.IS_FIVE}
OPERATIONS_DRAWN = 3
HINT = "docs/support.md says otherwise; where the change is meant, run `make support`"


@pytest.fixture(scope="session")
def whole(request: pytest.FixtureRequest) -> bool:
    """Are all operations carried out on each file, or OPERATIONS_DRAWN of them?"""
    return bool(request.config.option.whole_matrix)


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), support.QUICK)
def test_operations_answer_as_the_oracle_or_are_refused_as_documented(family: str, exporter: str, whole: bool) -> None:
    _assert_as_documented(family, exporter, whole)


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.parametrize(("family", "exporter"), support.SLOW)
def test_operations_on_further_files_answer_as_the_oracle_or_are_refused_as_documented(
    family: str, exporter: str, whole: bool
) -> None:
    _assert_as_documented(family, exporter, whole)


def _assert_as_documented(family: str, exporter: str, whole: bool) -> None:
    if whole:
        row = support.measured(family, exporter)
    else:
        drawn = drawn_words(PLANS, OPERATIONS_DRAWN, seed_of_this_run(), family, exporter)
        row = checked(family, exporter.removeprefix(support.FIVE), drawn)
    assert whole or set(row.cells) == {*drawn, GATES}
    found = {name: (refusal.operator, refusal.reason) for name, refusal in row.cells.items() if refusal is not None}
    documented_cells = DOCUMENTED.get((family, exporter))
    assert documented_cells is not None, "no row"
    assert found == {name: cell for name, cell in documented_cells.items() if name in row.cells}, HINT
    if whole or not documented_cells:  # what is left is told where no operation at all is refused
        assert {(refusal.operator, refusal.reason) for refusal in row.left} == LEFT.get((family, exporter), set()), HINT


def test_at_least_nine_cells_of_ten_work() -> None:
    refused = sum(map(len, DOCUMENTED.values()))
    assert refused <= 0.1 * len(DOCUMENTED) * len(OPERATIONS)


def test_the_page_has_a_row_for_every_file_of_the_zoo_and_no_other() -> None:
    assert set(support.ROWS) == HERE, HINT
    assert len(support.ROWS) == len(set(support.ROWS))


def test_the_sums_are_those_of_the_files_and_refusals_that_the_page_lists() -> None:
    cells, refused = collections.Counter[tuple[str, str]](), collections.Counter[tuple[str, str]]()
    for (family, exporter), refusals in DOCUMENTED.items():
        for group in (group_of(exporter), "cells"):
            cells[family, group] += len(OPERATIONS)
            refused[family, group] += len(refusals)
    for family, *row in rows_of(TEXT, "## In short"):
        for group, said in zip(GROUPS, row, strict=False):
            there, works = cells[family, group], cells[family, group] - refused[family, group]
            expected = "–" if not there else "works" if works == there else f"{works} of {there}" if works else "no"
            assert said == expected, f"{family}, {group}"
        assert int(row[-1]) == cells[family, "cells"]
    assert {family for family, *_ in rows_of(TEXT, "## In short")} == set(FAMILY)
    every = len(DOCUMENTED) * len(OPERATIONS)
    works = every - sum(map(len, DOCUMENTED.values()))
    assert f"{works} of {every} cells work ({100 * works / every:.1f} %)" in TEXT


def test_what_the_page_says_of_operators_operations_and_exporters_is_what_there_is() -> None:
    for section in (
        support_page._operations(),
        support_page._architectures(),
        support_page._exporters(),
        support_page._rules(),
    ):
        assert section in TEXT, HINT


@pytest.mark.skipif(support.IS_FIVE, reason="the page names what transformers 4 cannot export")
def test_the_page_names_every_file_that_cannot_be_made_and_no_other() -> None:
    said = {(family, file.strip("`"), reason) for family, file, reason in rows_of(TEXT, "## What cannot be made")}
    pairs = {(family, exporter, reason) for (family, exporter), reason in UNEXPORTABLE.items()}
    pairs |= {(family, how if "+" in how else f"+{how}", reason) for (family, how), reason in UNVARIABLE.items()}
    assert {entry for entry in said if not entry[1].startswith(support.FIVE)} == pairs, HINT


def test_every_refusal_has_a_reason_and_what_to_do() -> None:
    assert [(case, reason) for case, cells in DOCUMENTED.items() for _, reason in cells.values() if not reason] == []


def test_everything_in_the_matrix_has_a_word() -> None:
    assert set(ARCHITECTURES) == set(FAMILY) and set(MEANINGS) == set(OPERATIONS) and set(VARIED) == set(VARIANTS)
    assert {group_of(exporter) for _, exporter in DOCUMENTED} == set(GROUPS)


def test_what_the_page_says_is_read_again() -> None:
    refusal = Refusal("node_3", "Softmax", "it is | unlike, others")
    cells: dict[str, Refusal | None] = dict.fromkeys(OPERATIONS)
    good = Row("bert", "dynamo-20", cells, (Refusal("conv", "Conv", "a grouped convolution"),))
    bad = dataclasses.replace(
        good, exporter="dynamo-20+int8", cells={**cells, "heads": refusal, "gates": refusal}, left=()
    )
    text = page([good, bad])
    assert "14 of 16 cells work (87.5 %)" in text and "prune `dynamo-20`, then apply `+int8`" in text
    said = ("Softmax", "it is | unlike, others")
    assert documented(text) == {
        ("bert", "dynamo-20"): {},
        ("bert", "dynamo-20+int8"): {"heads": said, "gates": said},
    }
    assert page([good, bad]) == text
