"""How often a comparison may be wrong, and how that is spent (docs/method.md 4).

    error_rate   of a comparison: chance that any gate fails that holds; likewise that any passes that does not
    a gate       error_rate / (gates whose figure is an estimate): Bonferroni, whatever the gates have to do with each other
    a look       what a gate has is spent in equal parts on the looks that it may take while measuring goes on: whoever stops at the
                 first look that decides is wrong at most as often as all looks together

Each bound of an interval is one-sided at what is spent on it, so both of its sides together cost twice that.
"""

from __future__ import annotations

ERROR_RATE = 0.05


def share_of(error_rate: float, gates: int) -> float:
    """What each of so many gates may spend on failing, and again on passing."""
    return error_rate / max(1, gates)


def looks(repetitions: int) -> tuple[int, ...]:
    """After how many repetitions to look, in ascending order: 1, 2, 4, ..., and the last.

    Each look doubles what is known, since every look costs a part of the error rate.

    >>> looks(8), looks(6), looks(1)
    ((1, 2, 4, 8), (1, 2, 4, 6), (1,))
    """
    found = [1]
    while 2 * found[-1] <= repetitions:
        found.append(2 * found[-1])
    return tuple(found) if found[-1] == repetitions else (*found, repetitions)


def look_error(error: float, repetitions: int) -> float:
    """What one look may spend of a gate's `error`."""
    return error / len(looks(repetitions))
