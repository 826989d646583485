"""Who did what to whom: active and passive, negation, coordination, relative clauses, somebody and nobody.

Variables are 0 or 1, one for each verb and ordered pair of people: "P:0>1" is "person 0 did P to person 1".
Person 3 stands for anybody who is not named. A verb that is a kind of another implies it.
"""

from __future__ import annotations

import itertools
import random

from . import lexicon
from .logic import Constraint, Statement, at_least, at_most, judge

PEOPLE = range(4)
NOBODY = 3  # the unnamed person


def did(verb: str, agents: list[int], patients: list[int]) -> list[str]:
    """The variables of `verb` from any of `agents` to any of `patients`, nobody to himself."""
    return [f"{verb}:{a}>{p}" for a in agents for p in patients if a != p]


def implications(verbs: dict[str, str]) -> Statement:
    """Background: for letters P, Q, R naming verbs, whoever did the narrower verb did the wider one."""
    rules = []
    for narrow, wide in itertools.permutations(verbs, 2):
        same, above = verbs[narrow] == verbs[wide], lexicon.VERBS[verbs[narrow]][1] == verbs[wide]
        if not (same or above):
            continue
        for a, p in itertools.permutations(PEOPLE, 2):
            rules.append(Constraint(((f"{narrow}:{a}>{p}", -1), (f"{wide}:{a}>{p}", 1)), 0))
    return tuple(rules)


def pair(rng: random.Random) -> tuple[str, str, int | None]:
    """A random premise and hypothesis with their label."""
    cast = [f"the {role}" for role in rng.sample(lexicon.ROLES, 3)]
    if rng.random() < 0.4:
        cast = rng.sample(lexicon.NAMES, 3)
    verbs = {letter: rng.choice(list(lexicon.VERBS)) for letter in "PQ"}
    premise = rng.choice((_simple, _simple, _simple, _simple, _coordinated, _coordinated, _relative))
    first, says = premise(rng, cast, verbs)
    if premise is not _relative:
        del verbs["Q"]
    verbs["R"] = _verb_near(rng, rng.choice(sorted(verbs.values())))
    second, claims = _hypothesis(rng, cast, verbs["R"])
    verdict = judge(says, claims, implications(verbs), 1)
    return lexicon.sentence(first), lexicon.sentence(second), verdict


def _verb_near(rng: random.Random, verb: str) -> str:
    above = lexicon.VERBS[verb][1]
    below = [name for name, (_, wide) in lexicon.VERBS.items() if wide == verb]
    options = [verb] * 6 + ([above] * 3 if above else []) + below + [rng.choice(list(lexicon.VERBS))]
    return rng.choice(options)


def _said(rng: random.Random, agent: str, verb: str, patient: str, positive: bool = True) -> str:
    """Active or passive words; `agent` and `patient` may be coordinated."""
    past = lexicon.VERBS[verb][0]
    many_patients = " and " in patient or patient.startswith("both ")
    if rng.random() < 0.7:
        denial = rng.choice((f"did not {verb}", f"never {past}"))
        return f"{agent} {past if positive else denial} {patient}"
    be = "were" if many_patients else "was"
    return f"{patient} {be}{'' if positive else rng.choice((' not', ' never'))} {past} by {agent}"


def _simple(rng: random.Random, cast: list[str], verbs: dict[str, str]) -> tuple[str, Statement]:
    positive = rng.random() < 0.75
    fact = did("P", [0], [1])
    return _said(rng, cast[0], verbs["P"], cast[1], positive), (at_least(1, fact) if positive else at_most(0, fact),)


def _coordinated(rng: random.Random, cast: list[str], verbs: dict[str, str]) -> tuple[str, Statement]:
    x, y, z = cast
    verb, past = verbs["P"], lexicon.VERBS[verbs["P"]][0]
    first, second = did("P", [0], [2]), did("P", [1], [2])
    to_first, to_second = did("P", [2], [0]), did("P", [2], [1])
    return rng.choice((
        (_said(rng, f"{x} and {y}", verb, z), (at_least(1, first), at_least(1, second))),
        (_said(rng, f"either {x} or {y}", verb, z), (at_least(1, first + second),)),
        (_said(rng, f"neither {x} nor {y}", verb, z), (at_most(0, first + second),)),
        (_said(rng, z, verb, f"both {x} and {y}"), (at_least(1, to_first), at_least(1, to_second))),
        (f"{z} {past} {x} but not {y}", (at_least(1, to_first), at_most(0, to_second))),
        (f"nobody except {x} {past} {z}", (at_least(1, first), at_most(0, did("P", [1, NOBODY], [2])))),
    ))  # fmt: skip


def _relative(rng: random.Random, cast: list[str], verbs: dict[str, str]) -> tuple[str, Statement]:
    """X, who P-ed (or was P-ed by) Y, Q-ed (or was Q-ed by) Z."""
    p, q = (lexicon.VERBS[verbs[letter]][0] for letter in "PQ")
    inner_active, outer_active, positive = rng.random() < 0.7, rng.random() < 0.7, rng.random() < 0.8
    inner = did("P", [0], [1]) if inner_active else did("P", [1], [0])
    outer = did("Q", [0], [2]) if outer_active else did("Q", [2], [0])
    clause = f"{p} {cast[1]}" if inner_active else f"was {p} by {cast[1]}"
    if outer_active:
        main = f"{q} {cast[2]}" if positive else f"did not {verbs['Q']} {cast[2]}"
    else:
        main = f"was {'' if positive else 'not '}{q} by {cast[2]}"
    claim = at_least(1, outer) if positive else at_most(0, outer)
    return f"{cast[0]}, who {clause}, {main}", (at_least(1, inner), claim)


def _hypothesis(rng: random.Random, cast: list[str], verb: str) -> tuple[str, Statement]:
    agent, patient = rng.sample(range(3), 2)
    positive = rng.random() < 0.6
    past = lexicon.VERBS[verb][0]
    everyone = list(PEOPLE)
    if rng.random() < 0.7:
        fact, words = did("R", [agent], [patient]), _said(rng, cast[agent], verb, cast[patient], positive)
    elif rng.random() < 0.5:
        fact = did("R", everyone, [patient])
        words = _said(rng, "somebody" if positive else "nobody", verb, cast[patient])
    else:
        fact = did("R", [agent], everyone)
        someone = "somebody" if positive else "nobody"
        words = rng.choice((f"{cast[agent]} {past} {someone}", f"{someone} was {past} by {cast[agent]}"))
    return words, (at_least(1, fact) if positive else at_most(0, fact),)
