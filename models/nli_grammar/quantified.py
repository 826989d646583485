"""Quantifiers, kinds, negation and numbers: "At least three old dogs are running." / "Fewer than two
animals are moving."

Individuals are sorted into cells by the predicates in play (two nouns A and B, a modifier M, two predicates
V and W); a cell that contradicts the lexicon does not exist. A sentence constrains how many individuals of
its noun phrase are inside and outside its predicate. Universal and proportional quantifiers presuppose that
their noun phrase is not empty.
"""

from __future__ import annotations

import dataclasses
import itertools
import random

from . import lexicon
from .lexicon import Taxonomy
from .logic import Constraint, Statement, at_least, judge

LARGEST = 40  # individuals in a cell; far above every number in a sentence


@dataclasses.dataclass(frozen=True)
class Quantifier:
    """Each rule (i, o, c, k) says i * inside + o * outside >= c + k * number."""

    rules: tuple[tuple[int, int, int, int], ...]
    forms: tuple[str, ...]
    presupposes: bool = False
    negatable: bool = False  # whether "Q are not V" reads one way only

    @property
    def counts(self) -> bool:
        """Whether the quantifier names a number."""
        return any(rule[3] for rule in self.rules)


# {Ns} plural, {N} singular noun phrase; {are} {is} predicate in both numbers; {isnt} singular, negated; {k}
# the number
QUANTIFIERS = {
    "all": Quantifier(((0, -1, 0, 0),), ("all {Ns} {are}", "every {N} {is}"), True),
    "no": Quantifier(((-1, 0, 0, 0),), ("no {Ns} {are}", "none of the {Ns} {are}"), True),
    "not all": Quantifier(((0, 1, 1, 0),), ("not all {Ns} {are}", "not every {N} {is}"), True),
    "some": Quantifier(((1, 0, 1, 0),), ("some {Ns} {are}", "at least one {N} {is}"), negatable=True),
    "most": Quantifier(((1, -1, 1, 0),), ("most {Ns} {are}",), True, True),
    "half": Quantifier(((1, -1, 0, 0), (-1, 1, 0, 0)), ("exactly half of the {Ns} {are}",), True, True),
    "at least": Quantifier(((1, 0, 0, 1),), ("at least {k} {Ns} {are}",), negatable=True),
    "more than": Quantifier(((1, 0, 1, 1),), ("more than {k} {Ns} {are}",), negatable=True),
    "at most": Quantifier(((-1, 0, 0, -1),), ("at most {k} {Ns} {are}",)),
    "fewer than": Quantifier(((-1, 0, 1, -1),), ("fewer than {k} {Ns} {are}",)),
    "exactly": Quantifier(((1, 0, 0, 1), (-1, 0, 0, -1)), ("exactly {k} {Ns} {are}",)),
}  # fmt: skip
COUNTING = tuple(name for name, quantifier in QUANTIFIERS.items() if quantifier.counts)
PLAIN = tuple(name for name, quantifier in QUANTIFIERS.items() if not quantifier.counts)
_NOUNS = [(Taxonomy.read(tree), kind) for tree, kind in (
    (lexicon.ANIMALS, "animate"), (lexicon.PEOPLE, "animate"), (lexicon.THINGS, "thing"))]  # fmt: skip
_PREDICATES = {
    "animate": [Taxonomy.read(tree) for tree in lexicon.ACTIVITIES],
    "thing": [Taxonomy.read(tree) for tree in lexicon.CONDITIONS],
}
_MODIFIERS = {"animate": lexicon.ANIMATE_MODIFIERS, "thing": lexicon.THING_MODIFIERS}
_EXCLUDED = {  # pairs of truth values (first, second) that a relation rules out
    "same": {(0, 1), (1, 0)}, "above": {(1, 0)}, "below": {(0, 1)}, "disjoint": {(1, 1)},
    "independent": set(),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Clause:
    """One sentence's logical form; `noun` is A or B, `predicate` V or W, `number` 0 where none is named."""

    quantifier: str
    number: int
    modified: bool
    negated: bool
    noun: str
    predicate: str


def cells(nouns: str, predicates: str) -> list[str]:
    """The cells that exist under the two relations, each as the letters of what holds in it."""
    found = []
    for a, b, m, v, w in itertools.product((0, 1), repeat=5):
        if (a, b) not in _EXCLUDED[nouns] and (v, w) not in _EXCLUDED[predicates]:
            found.append("".join(x for x, on in zip("ABMVW", (a, b, m, v, w), strict=True) if on) or "-")
    return found


def meaning(clause: Clause, worlds: list[str]) -> tuple[Statement, Statement]:
    """(what the clause says, what it presupposes)."""
    quantifier = QUANTIFIERS[clause.quantifier]
    named = [cell for cell in worlds if clause.noun in cell and ("M" in cell or not clause.modified)]
    inside = {cell for cell in named if (clause.predicate in cell) != clause.negated}
    rules = []
    for i, o, constant, per_number in quantifier.rules:
        terms = tuple((cell, i if cell in inside else o) for cell in named)
        rules.append(Constraint(tuple(t for t in terms if t[1]), constant + per_number * clause.number))
    return tuple(rules), (at_least(1, named),) if quantifier.presupposes else ()


def label(premise: Clause, hypothesis: Clause, nouns: str, predicates: str) -> int | None:
    """The label of a pair of clauses (logic.judge)."""
    worlds = cells(nouns, predicates)
    says, presupposed = meaning(premise, worlds)
    claims, also = meaning(hypothesis, worlds)
    return judge(says, claims, presupposed + also, LARGEST)


def pair(rng: random.Random) -> tuple[str, str, int | None]:
    """A random premise and hypothesis with their label."""
    taxonomy, kind = rng.choice(_NOUNS)
    noun = rng.choice(taxonomy.words)
    other_noun = _related(rng, taxonomy, noun, taxonomy.words)
    predicate, other_predicate, predicates = _predicates(rng, kind)
    modified = rng.choices(((False, False), (True, True), (True, False), (False, True)), (5, 2, 2, 2))[0]
    premise = _clause(rng, modified[0], "A", "V", None)
    hypothesis = _clause(rng, modified[1], "B", "W", premise)
    verdict = label(premise, hypothesis, taxonomy.relation(noun, other_noun), predicates)
    modifier, past = rng.choice(_MODIFIERS[kind]), rng.random() < 0.5
    first = _words(rng, premise, noun, modifier, predicate, past)
    second = _words(rng, hypothesis, other_noun, modifier, other_predicate, past)
    if rng.random() < 0.3:
        frames = ("yesterday", "last night", "on Sunday") if past else ("at the moment", "right now")
        first = f"{rng.choice(frames)}, {first}"
    return lexicon.sentence(first), lexicon.sentence(second), verdict


def _related(rng: random.Random, taxonomy: Taxonomy, word: str, words: list[str]) -> str:
    wanted = rng.choices(("same", "above", "below", "disjoint", "independent"), (12, 4, 4, 3, 1))[0]
    found = [other for other in words if taxonomy.relation(word, other) == wanted]
    return rng.choice(found) if found else word


def _predicates(rng: random.Random, kind: str) -> tuple[str, str, str]:
    taxonomy = rng.choice(_PREDICATES[kind])
    word = rng.choice(taxonomy.words)
    if rng.random() < 0.06:
        other = rng.choice([tree for tree in _PREDICATES[kind] if tree is not taxonomy])
        return word, rng.choice(other.words), "independent"
    second = _related(rng, taxonomy, word, taxonomy.words)
    return word, second, taxonomy.relation(word, second)


def _clause(rng: random.Random, modified: bool, noun: str, predicate: str, premise: Clause | None) -> Clause:
    counting = rng.random() < (0.35 if premise is None else 0.8 if premise.number else 0.1)
    name = rng.choice(COUNTING if counting else PLAIN)
    base = premise.number if premise and premise.number else rng.randint(2, 7)
    number = max(2, base + (rng.randint(-2, 2) if premise else 0)) if counting else 0
    negated = QUANTIFIERS[name].negatable and rng.random() < 0.15
    return Clause(name, number, modified, negated, noun, predicate)


def _words(rng: random.Random, clause: Clause, noun: str, modifier: str, predicate: str, past: bool) -> str:
    form = rng.choice(QUANTIFIERS[clause.quantifier].forms)
    single, several = ("was", "were") if past else ("is", "are")
    pattern = modifier if clause.modified else "{}"
    if clause.negated:
        single, several = single + " not", several + " not"
    return form.format(
        N=pattern.format(noun),
        Ns=pattern.format(lexicon.plural(noun)),
        aN=lexicon.article(pattern.format(noun)),
        be="was" if past else "is",
        k=lexicon.NUMBERS[clause.number],
        **{"is": f"{single} {predicate}", "are": f"{several} {predicate}"},
        isnt=f"{'was' if past else 'is'} not {predicate}",
    )
