"""The support matrix: which files it is made of, and `make support`, which writes docs/support.md.

    python tests/support.py                      in the environment with transformers 5: its rows are kept
    python tests/support.py docs/support.md      in the other one: its own rows, and the page of all

With `--only FAMILY,..` these families are measured, and the page's word is taken for the others: for a family that is new, where
nothing changed that the others hang on (`make support ONLY=gemma2`).

Files of transformers 5 are called "tf5/dynamo-20". Rows that were measured before, on the same file by the same sources, are not
measured again: they lie in tests/.cache/support, where the tests (test_support.py) leave theirs too. So an interrupted run goes on
where it was.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from support_words import TRANSFORMERS_5
from zoo import CASES, FURTHER_CASES, TEXT_ENCODERS, UNEXPORTABLE, build
from zoo_export import EXPORTERS_5
from zoo_variant_cases import FURTHER_VARIANT_CASES, VARIANT_CASES

if TYPE_CHECKING:
    from support_cells import Row

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "support.md"
_CACHE = Path(__file__).parent / ".cache" / "support"
_OF_FIVE = _CACHE / "transformers-5.json"
_OLDER = (11, 13, 15, 16)
FIVE = TRANSFORMERS_5 + "/"
IS_FIVE = int(transformers.__version__.split(".")[0]) >= 5
_BY_FIVE = ("torchscript-sdpa-17", "dynamo-20", "dynamo-23", *EXPORTERS_5)
QUICK: list[tuple[str, str]] = [] if IS_FIVE else list(CASES)
SLOW: list[tuple[str, str]] = (
    [
        *((family, FIVE + exporter) for family, exporter in (*CASES, *FURTHER_CASES) if exporter in _BY_FIVE),
        *(("bert", f"{FIVE}{exporter}-{how}") for exporter in EXPORTERS_5 for how in ("23", "fused", "int8")),
    ]
    if IS_FIVE
    else [
        *(("bert", f"dynamo-{opset}") for opset in (19, 21, 22)),
        *((family, f"torchscript-eager-{opset}") for family in TEXT_ENCODERS for opset in _OLDER),
        *FURTHER_CASES,
        *VARIANT_CASES,
        *FURTHER_VARIANT_CASES,
    ]
)
ROWS = [*QUICK, *SLOW]
"""Every (family, exporter) of this environment that has a row in the matrix."""


def measured(family: str, exporter: str) -> Row:
    """The row, measured now, and kept for `remembered`."""
    from support_cells import checked

    row = dataclasses.replace(checked(family, exporter.removeprefix(FIVE)), exporter=exporter)
    path = _kept_at(family, exporter)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(dataclasses.asdict(row)), encoding="utf-8")
    os.replace(partial, path)
    return row


def remembered(family: str, exporter: str) -> Row | None:
    """The row as it was measured before on the same file by the same sources; None: it was not."""
    path = _kept_at(family, exporter)
    return _row_of(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _row_of(data: dict[str, Any]) -> Row:
    from support_cells import Refusal, Row

    cells = {name: Refusal(**found) if found else None for name, found in data["cells"].items()}
    return Row(data["family"], data["exporter"], cells, tuple(Refusal(**found) for found in data["left"]))


def _kept_at(family: str, exporter: str) -> Path:
    path = build(family, exporter.removeprefix(FIVE)).path
    digest = hashlib.sha256(_sources() + path.name.encode())
    for beside in sorted(path.parent.glob(f"{path.name}*")):
        digest.update(beside.read_bytes())
    return _CACHE / f"{family}-{exporter.replace('/', '-')}-{digest.hexdigest()[:16]}.json"


@functools.cache
def _sources() -> bytes:
    """A digest of all that decides what a row says, beside the file: the passes, the gates, the oracles."""
    from axformer_onnx.runtime.sessions import run_once
    from axformer_onnx.scoring.stage_sessions import StageSessions

    digest = hashlib.sha256()
    package, tests = sorted((ROOT / "passes").rglob("*.py")), sorted(Path(__file__).parent.glob("*.py"))
    deciding = [
        p
        for p in tests
        if p.name.startswith(("support_", "surgery", "torch_oracle", "graph_", "unrounded_", "zoo_families"))
    ]
    runners = [Path(str(inspect.getsourcefile(one))) for one in (StageSessions, run_once)]
    for path in [*package, *runners, *deciding]:
        digest.update(path.read_bytes())
    return digest.digest()


# -- make support ------------------------------------------------------------------------------------------------------


def _row(case: tuple[str, str]) -> tuple[Row | None, str]:
    """One row, or what is wrong with it."""
    warnings.simplefilter("ignore")
    try:
        return remembered(*case) or measured(*case), ""
    except Exception as error:  # the checker's and ONNX Runtime's kinds beside AssertionError
        return None, f"{type(error).__name__} {' '.join(str(error).split())[:300]}"


def main(target: Path | None, only: frozenset[str] = frozenset(), processes: int = 2) -> int:
    """Measure what is not remembered, then write the page, or without `target` what the page needs of this environment.

    only   families to measure; of the others the page's rows are taken. Empty: all

    1, and nothing written, where a cell is wrong in value.
    """
    stated = [] if not only else _stated(PAGE.read_text(encoding="utf-8"))
    rows: list[Row] = [row for row in stated if row.family not in only and row.exporter.startswith(FIVE) == IS_FIVE]
    cases = [case for case in ROWS if case not in {(row.family, row.exporter) for row in rows}]
    with concurrent.futures.ProcessPoolExecutor(processes) as pool:
        for number, (case, (row, error)) in enumerate(zip(cases, pool.map(_row, cases), strict=True), start=1):
            if row is None:
                print(f"WRONG {' '.join(case)}: {error}", flush=True)
            else:
                rows.append(row)
            print(f"\r{number} of {len(cases)}", end="", file=sys.stderr, flush=True)
    if len(rows) < len(ROWS):
        return 1
    if target is None:
        _OF_FIVE.write_text(json.dumps(_of_this_environment(rows)), encoding="utf-8")
    else:
        _write(target, rows)
    return 0


def _stated(text: str) -> list[Row]:
    """The rows as a page has them."""
    from support_cells import OPERATIONS, Refusal, Row
    from support_page import documented, documented_left

    left = documented_left(text)
    return [
        Row(
            *file,
            {o: Refusal("", *refusals[o]) if o in refusals else None for o in OPERATIONS},
            tuple(sorted(Refusal("", *found) for found in left.get(file, ()))),
        )
        for file, refusals in documented(text).items()
    ]


def _of_this_environment(rows: list[Row]) -> dict[str, Any]:
    reasons = [[f, FIVE + e, reason] for (f, e), reason in UNEXPORTABLE.items() if e in _BY_FIVE]
    return {
        "rows": [dataclasses.asdict(row) for row in rows],
        "unexportable": reasons,
        "version": transformers.__version__,
    }


def _write(target: Path, rows: list[Row]) -> None:
    from support_page import page

    if not _OF_FIVE.exists():
        sys.exit(f"{_OF_FIVE}: not there; run this with transformers 5 first, as `make support` does")
    five = json.loads(_OF_FIVE.read_text(encoding="utf-8"))
    target.write_text(
        page([*rows, *map(_row_of, five["rows"])], five["unexportable"], five["version"]), encoding="utf-8"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("page", nargs="?", type=Path)
    parser.add_argument("--only", default="", type=lambda text: frozenset(filter(None, text.split(","))))
    arguments = parser.parse_args()
    sys.exit(main(arguments.page, arguments.only))
