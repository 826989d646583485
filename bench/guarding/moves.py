"""Two results of like machines: what moved beyond noise, and what of that is a failure.

    counted and exact          any change beyond its own tolerance
    quality                    the same rows, answered by both graphs: exact McNemar, 5 % in all by Holm's correction
    times, ratios, memory      further apart, as logarithms, than both intervals (half widths, squared and added) and the noise

Only what follows from code and seed alone fails; a time never does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from axformer_onnx.statistics import mcnemar_exact
from guarding.figures import Figure, unpacked

LEVEL = 0.05
Verdict = Literal["as before", "better", "worse", "gone", "new", "not comparable"]


@dataclasses.dataclass(frozen=True)
class Move:
    """One figure before and now. `decisive`: it follows from code and seed; worse is a failure then."""

    name: str
    before: Figure | None
    now: Figure | None
    verdict: Verdict
    note: str = ""

    @property
    def is_failure(self) -> bool:
        """Deterministic, and worse or no longer there."""
        known = self.before
        return known is not None and known.decisive and self.verdict in ("worse", "gone")


def is_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Were both results measured on the same kind of machine, with the same minor version of ONNX Runtime and the same options?"""
    return _kind(one) == _kind(other)


def _kind(result: Mapping[str, Any]) -> tuple[Any, ...]:
    hardware = result["hardware"]
    runtime = tuple(str(hardware["onnxruntime"]).split(".")[:2])
    machine = hardware["cpu"], hardware["cores_usable"], tuple(hardware.get("instructions", ())), hardware.get("gpu")
    return *machine, runtime, tuple(sorted(result.get("options", {}).items()))


def moves(before: Sequence[Figure], now: Sequence[Figure]) -> list[Move]:
    """A move for every figure of either, in the order of `now`; what is gone comes last.

    Groups (a case, start-up, passes) that only one of them measured are left out.
    """
    groups = {f.group for f in before} & {f.group for f in now}
    earlier, later = ({f.name: f for f in figures if f.group in groups} for figures in (before, now))
    chances = {name: _chance(earlier[name], f) for name, f in later.items() if name in earlier and f.right is not None}
    clear = _holm({name: p for name, p in chances.items() if p is not None})
    found = [_move(earlier.get(name), figure, name in clear) for name, figure in later.items()]
    return [*found, *(Move(name, f, None, "gone") for name, f in earlier.items() if name not in later)]


def _move(before: Figure | None, now: Figure, clear: bool) -> Move:
    if before is None:
        return Move(now.name, None, now, "new")
    if not (before.reliable and now.reliable):
        disturbed = " and ".join(when for when, f in (("before", before), ("now", now)) if not f.reliable)
        return Move(now.name, before, now, "not comparable", f"disturbed {disturbed}")
    if now.right is not None:
        return _answered(before, now, clear)
    if not _is_beyond(before, now):
        return Move(now.name, before, now, "as before")
    return Move(now.name, before, now, _side(before, now), now.why)


def _answered(before: Figure, now: Figure, clear: bool) -> Move:
    if before.rows != now.rows or before.right is None or now.right is None:
        return Move(now.name, before, now, "not comparable", "other rows")
    differ = int((unpacked(before.right) != unpacked(now.right)).sum())
    note = f"{differ} rows answered otherwise" if differ else ""
    return Move(now.name, before, now, _side(before, now) if clear else "as before", note)


def _side(before: Figure, now: Figure) -> Verdict:
    rises = now.value > before.value
    return "better" if rises == (now.better == "higher") else "worse"


def _is_beyond(before: Figure, now: Figure) -> bool:
    """Is the change more than the noise of both?"""
    if before.value <= 0 or now.value <= 0:
        return before.value != now.value
    wide = math.hypot(_half_width(before), _half_width(now)) + max(before.noise, now.noise)
    return abs(math.log(now.value / before.value)) > wide


def _half_width(figure: Figure) -> float:
    """Of the interval, as a logarithm."""
    if figure.low is None or figure.high is None or figure.low <= 0:
        return 0.0
    return math.log(figure.high / figure.low) / 2


def _chance(before: Figure, now: Figure) -> float | None:
    """McNemar's p of two graphs on the same rows; None where these are others."""
    if before.rows != now.rows or before.right is None or now.right is None:
        return None
    return mcnemar_exact(unpacked(before.right), unpacked(now.right)).p_value


def _holm(chances: Mapping[str, float]) -> set[str]:
    """Those that differ, with a chance of LEVEL in all that one of them is wrong (Holm 1979)."""
    found: set[str] = set()
    for number, (name, p) in enumerate(sorted(chances.items(), key=lambda item: item[1])):
        if p > LEVEL / (len(chances) - number):
            break
        found.add(name)
    return found


def table(found: Sequence[Move]) -> str:
    """Aligned columns: figure, before, now, change, verdict."""
    return _aligned([("figure", "before", "now", "change", ""), *(_row(move) for move in found)])


def table_of_figures(figures: Sequence[Figure]) -> str:
    """The same of one result."""
    return _aligned([(figure.name, _cell(figure), _interval(figure), figure.why) for figure in figures])


def _interval(figure: Figure) -> str:
    if figure.low is None or figure.high is None or figure.low == figure.high:
        return ""
    shown = f"[{figure.low:.3g}, {figure.high:.3g}]"
    return f"{shown} against the source" if figure.right is not None else shown


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(move: Move) -> tuple[str, str, str, str, str]:
    verdict = f"{move.verdict}{' (fails)' if move.is_failure else ''}{f': {move.note}' if move.note else ''}"
    return move.name, _cell(move.before), _cell(move.now), _change(move), verdict


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    value = f"{figure.value:.4g}" if figure.value < 1e4 else f"{figure.value:,.0f}"
    return f"{value} {figure.unit}".strip()


def _change(move: Move) -> str:
    if move.before is None or move.now is None:
        return ""
    if move.now.right is not None:
        return f"{move.now.value - move.before.value:+.2f}"
    return f"{100 * (move.now.value / move.before.value - 1):+.1f} %" if move.before.value else ""
