"""docs/support.md says what is so: every cell measured again, every refusal expected, at least nine cells of ten working."""

from __future__ import annotations

import dataclasses

import pytest
import support
from support_cells import OPERATIONS, Refusal, Row
from support_page import documented, page
from support_words import ARCHITECTURES, GROUPS, MEANINGS, VARIED, group_of
from zoo import FAMILY
from zoo_variants import VARIANTS

DOCUMENTED = documented(support.PAGE.read_text(encoding="utf-8"))
HERE = {case for case in DOCUMENTED if case[1].startswith(support.FIVE) == support.IS_FIVE}
HINT = "docs/support.md says otherwise; where the change is meant, run `make support`"


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "exporter"), support.QUICK)
def test_operations_answer_as_the_oracle_or_are_refused_as_documented(family: str, exporter: str) -> None:
    _assert_as_documented(family, exporter)


@pytest.mark.matrix
@pytest.mark.slow
@pytest.mark.parametrize(("family", "exporter"), support.SLOW)
def test_operations_on_further_files_answer_as_the_oracle_or_are_refused_as_documented(
    family: str, exporter: str
) -> None:
    _assert_as_documented(family, exporter)


def _assert_as_documented(family: str, exporter: str) -> None:
    row = support.measured(family, exporter)
    found = {name: (refusal.operator, refusal.reason) for name, refusal in row.cells.items() if refusal is not None}
    assert found == DOCUMENTED.get((family, exporter), "no row"), HINT


def test_at_least_nine_cells_of_ten_work() -> None:
    refused = sum(map(len, DOCUMENTED.values()))
    assert refused <= 0.1 * len(DOCUMENTED) * len(OPERATIONS)


def test_the_page_has_a_row_for_every_file_of_the_zoo_and_no_other() -> None:
    assert set(support.ROWS) == HERE, HINT
    assert len(support.ROWS) == len(set(support.ROWS))


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
