"""What moved between two results of `bench/guard.py`, beyond noise.

    python bench/moved.py                  the last two recorded on one kind of machine
    python bench/moved.py NEW              against the last recorded on a machine like that of NEW
    python bench/moved.py NEW OLD [--all]  against OLD, whatever machine it is of; --all: what did not move, too

A like machine: same CPU, cores, instruction sets and GPU, the same minor version of ONNX Runtime, the same effort. Exit code 1
where a figure got worse that follows from code and seed (quality beyond its interval, work, size); times, ratios and memory are
shown and never fail. Exit code 0 where there is nothing to compare with.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guarding.figures import Figure
from guarding.moves import Move, is_alike, moves, table

RESULTS = Path(__file__).resolve().parent / "results" / "guard"


def main() -> int:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("new", type=Path, nargs="?")
    parser.add_argument("old", type=Path, nargs="?")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the recorded ones are")
    parser.add_argument("--all", action="store_true", help="also what did not move")
    a = parser.parse_args()
    recorded = {path: read(path) for path in sorted(a.results.glob("*.json"))}
    new = read(a.new) if a.new else max(recorded.values(), key=lambda result: result["created"], default=None)
    old = read(a.old) if a.old else last_alike(new, recorded.values()) if new else None
    if new is None or old is None:
        print(
            "nothing to compare with: no earlier result of a like machine; `python bench/guard.py --record` makes one"
        )
        return 0
    found = moves(figures(old), figures(new))
    print(f"{old['created']} -> {new['created']}, {new['hardware']['cpu']}, {new['hardware']['cores_usable']} cores")
    print(said(found, a.all))
    return 1 if any(move.is_failure for move in found) else 0


def read(path: Path) -> dict[str, Any]:
    """A result. Raises: SystemExit where it is none."""
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        figures(result), result["created"], result["hardware"]["cpu"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path}: {error}; expected a result of `python bench/guard.py --json FILE`") from None
    return result


def figures(result: dict[str, Any]) -> list[Figure]:
    """Of a result."""
    return [Figure.from_json(one) for one in result["figures"]]


def last_alike(new: dict[str, Any], recorded: Any) -> dict[str, Any] | None:
    """The last one before `new` that was recorded on a like machine."""
    earlier = [one for one in recorded if one["created"] < new["created"] and is_alike(one, new)]
    return max(earlier, key=lambda result: result["created"], default=None)


def said(found: Sequence[Move], everything: bool = False) -> str:
    """The table of what moved, and a line that counts."""
    shown = [move for move in found if everything or move.verdict != "as before"]
    failures = sum(move.is_failure for move in found)
    counted = f"{len(found)} figures, {sum(move.verdict == 'as before' for move in found)} as before"
    end = (
        f"{failures} that follow from code and seed got worse"
        if failures
        else "nothing that follows from code and seed got worse"
    )
    return "\n".join([*([table(shown)] if shown else []), f"{counted}; {end}"])


if __name__ == "__main__":
    sys.exit(main())
