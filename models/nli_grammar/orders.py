"""Comparisons and times over three people or events: transitivity, antonyms, superlatives, ties.

Variables "0", "1", "2" are ranks on one scale (height, age, time of day); x is above y when x - y >= 1.
"""

from __future__ import annotations

import random

from . import lexicon
from .logic import Constraint, Statement, judge

LARGEST = 9  # ranks 0..9: three ranks are enough for any order of three


def above(first: int, second: int, by: int = 1) -> Constraint:
    """rank(first) - rank(second) >= by."""
    return Constraint(((str(first), 1), (str(second), -1)), by)


def pair(rng: random.Random) -> tuple[str, str, int | None]:
    """A random premise and hypothesis with their label."""
    kind = rng.choice((_heights, _heights, _arrivals, _events))
    names, scale = kind(rng)
    first, says = _premise(rng, names, scale)
    second, claims = _hypothesis(rng, names, scale)
    verdict = judge(says, claims, (), LARGEST)
    return lexicon.sentence(first), lexicon.sentence(second), verdict


class Scale:
    """Phrases of a relation: more, less, and by name in `rest`: equal, not_more, not_less, most, least."""

    def __init__(self, more: list[str], less: list[str], **rest: list[str]) -> None:
        self.more, self.less, self.rest = more, less, rest


def _heights(rng: random.Random) -> tuple[list[str], Scale]:
    up, down, base = rng.choice(lexicon.SCALES)
    most, least = lexicon.SUPERLATIVES[up], lexicon.SUPERLATIVES[down]
    scale = Scale(
        [f"is {up} than"], [f"is {down} than"], equal=[f"is exactly as {base} as"],
        not_more=[f"is not {up} than", f"is at most as {base} as"],
        not_less=[f"is not {down} than", f"is at least as {base} as"],
        most=[f"is the {most} of the three"], least=[f"is the {least} of the three"],
    )  # fmt: skip
    return rng.sample(lexicon.NAMES, 3), scale


def _arrivals(rng: random.Random) -> tuple[list[str], Scale]:
    verb, base = rng.choice((("arrived", "arrive"), ("left", "leave"), ("finished", "finish"), ("woke up", "wake up")))
    scale = Scale(
        [f"{verb} after", f"{verb} later than"], [f"{verb} before", f"{verb} earlier than"],
        equal=[f"{verb} at the same time as"],
        not_more=[f"did not {base} after"], not_less=[f"did not {base} before"],
        most=[f"was the last of the three to {base}"], least=[f"was the first of the three to {base}"],
    )  # fmt: skip
    return rng.sample(lexicon.NAMES, 3), scale


def _events(rng: random.Random) -> tuple[list[str], Scale]:
    verb = rng.choice(("started", "took place", "was held"))
    scale = Scale(
        [f"{verb} after", f"{verb} later than"], [f"{verb} before", f"{verb} earlier than"],
        equal=[f"{verb} at the same time as"],
        not_more=["was no later than"], not_less=["was no earlier than"],
        most=["was the last of the three events"], least=["was the first of the three events"],
    )  # fmt: skip
    return [f"the {event}" for event in rng.sample(lexicon.EVENTS, 3)], scale


def _compare(rng: random.Random, names: list[str], scale: Scale, x: int, y: int) -> tuple[str, Statement]:
    relation = rng.choices(("more", "less", "equal", "not_more", "not_less"), (16, 6, 2, 1, 1))[0]
    forms = {"more": scale.more, "less": scale.less, **scale.rest}[relation]
    says = {
        "more": (above(x, y),), "less": (above(y, x),), "equal": (above(x, y, 0), above(y, x, 0)),
        "not_more": (above(y, x, 0),), "not_less": (above(x, y, 0),),
    }[relation]  # fmt: skip
    return f"{names[x]} {rng.choice(forms)} {names[y]}", says


def _extreme(rng: random.Random, names: list[str], scale: Scale, x: int) -> tuple[str, Statement]:
    others = [other for other in range(3) if other != x]
    if rng.random() < 0.75:
        return f"{names[x]} {rng.choice(scale.rest['most'])}", tuple(above(x, other) for other in others)
    return f"{names[x]} {rng.choice(scale.rest['least'])}", tuple(above(other, x) for other in others)


def _premise(rng: random.Random, names: list[str], scale: Scale) -> tuple[str, Statement]:
    x, y, z = rng.sample(range(3), 3)
    first, says = _compare(rng, names, scale, x, y)
    if rng.random() < 0.7:
        return first, says
    if rng.random() < 0.3:
        last, also = _extreme(rng, names, scale, z)
    else:
        last, also = _compare(rng, names, scale, *rng.choice(((y, z), (z, y), (x, z), (z, x))))
    joint = rng.choice((", and {}", ", while {}", ", but {}", "; {}"))
    return first + joint.format(last), says + also


def _hypothesis(rng: random.Random, names: list[str], scale: Scale) -> tuple[str, Statement]:
    x, y = rng.sample(range(3), 2)
    if rng.random() < 0.15:
        return _extreme(rng, names, scale, x)
    return _compare(rng, names, scale, x, y)
