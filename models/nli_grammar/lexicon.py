"""Words, and which is a kind of which.

A taxonomy is a nested dictionary. A name that starts with "!" marks exclusive children: nothing is two of
them at once (a dog is no cat). Children of an unmarked name may overlap (a violinist may be a dentist).
Different trees are independent.
"""

from __future__ import annotations

import dataclasses
from typing import Any

Nested = dict[str, Any]

ANIMALS: Nested = {
    "!animal": {
        "!dog": {"poodle": {}, "beagle": {}, "terrier": {}},
        "!cat": {"tabby": {}},
        "!bird": {"parrot": {}, "owl": {}},
        "horse": {"pony": {}},
    }
}
PEOPLE: Nested = {
    "person": {
        "musician": {"violinist": {}, "drummer": {}, "pianist": {}},
        "doctor": {"surgeon": {}, "dentist": {}},
        "!child": {"boy": {}, "girl": {}},
    }
}
THINGS: Nested = {
    "!object": {
        "!vehicle": {"car": {"taxi": {}}, "!boat": {"canoe": {}, "yacht": {}}, "truck": {}},
        "!fruit": {"apple": {}, "pear": {}, "plum": {}},
        "!tool": {"hammer": {}, "saw": {}},
    }
}
ACTIVITIES: tuple[Nested, ...] = (
    {
        "!": {
            "!moving": {"!running": {"sprinting": {}, "jogging": {}}, "walking": {"strolling": {}}, "swimming": {}},
            "!resting": {"sleeping": {"napping": {}}, "sitting": {"sitting on a bench": {}}},
        }
    },
    {"!": {"making noise": {"shouting": {}, "howling": {}}, "silent": {}}},
    {"!": {"happy": {"overjoyed": {}}, "sad": {"miserable": {}}}},
    {"!": {"!indoors": {"in the kitchen": {}, "in the bedroom": {}}, "outdoors": {"on the beach": {}}}},
)
CONDITIONS: tuple[Nested, ...] = (
    {"!": {"damaged": {"broken": {}, "bent": {}}, "undamaged": {}}},
    {"!": {"red": {"scarlet": {}, "crimson": {}}, "blue": {"navy blue": {}}, "white": {}}},
    {"!": {"wet": {"soaked": {}}, "dry": {}}},
    {"!": {"!indoors": {"in the kitchen": {}, "in the attic": {}}, "outdoors": {"on the lawn": {}}}},
)
ANIMATE_MODIFIERS = ("young {}", "old {}", "tall {}", "{} in the picture", "{} from the village")
THING_MODIFIERS = ("old {}", "new {}", "heavy {}", "{} in the picture", "{} from the market")
PLURALS = {"person": "people", "child": "children"}

ROLES = ("chef", "pilot", "lawyer", "waiter", "teacher", "farmer")
NAMES = ("Anna", "Ben", "Carl", "Dora", "Emil", "Fiona")

# base form: (past tense, the verb above it); past tense and participle are the same word in all of them
VERBS: dict[str, tuple[str, str | None]] = {
    "touch": ("touched", None), "hug": ("hugged", "touch"), "push": ("pushed", "touch"),
    "contact": ("contacted", None), "phone": ("phoned", "contact"), "email": ("emailed", "contact"),
    "attack": ("attacked", None), "stab": ("stabbed", "attack"),
    "thank": ("thanked", None), "help": ("helped", None), "hire": ("hired", None),
}  # fmt: skip
NUMBERS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """Words with the path from the root to each, and the names whose children exclude each other."""

    paths: dict[str, tuple[str, ...]]
    exclusive: frozenset[str]

    @classmethod
    def read(cls, nested: Nested) -> Taxonomy:
        """Flatten a nested dictionary; a bare "!" is a root that is no word."""
        paths: dict[str, tuple[str, ...]] = {}
        exclusive: set[str] = set()

        def walk(level: Nested, above: tuple[str, ...]) -> None:
            for key, below in level.items():
                name = key.lstrip("!")
                if key.startswith("!"):
                    exclusive.add(name)
                paths[name] = (*above, name)
                walk(below, paths[name])

        walk(nested, ())
        return cls(paths, frozenset(exclusive))

    @property
    def words(self) -> list[str]:
        """Every word, roots first."""
        return [word for word in self.paths if word]

    def relation(self, first: str, second: str) -> str:
        """What `second` is to `first`: same, above (a first is a second), below, disjoint or independent."""
        a, b = self.paths[first], self.paths[second]
        if a == b:
            return "same"
        shared = sum(1 for x, y in zip(a, b, strict=False) if x == y)
        if shared == len(b):
            return "above"
        if shared == len(a):
            return "below"
        return "disjoint" if shared and a[shared - 1] in self.exclusive else "independent"


def plural(noun: str) -> str:
    """The plural of a noun of this lexicon."""
    if noun in PLURALS:
        return PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("x", "s", "ch", "sh")) else "s")


def article(phrase: str) -> str:
    """The phrase with a or an."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def sentence(text: str) -> str:
    """Capital letter and full stop."""
    return text[0].upper() + text[1:] + "."
