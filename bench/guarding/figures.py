"""One figure of a result: its value, what is noise in it, and whether it may only get better."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

SINGLE = 0.15
"""Relative noise of seconds that were taken once."""
REPEATED = 0.10
"""Of a median of many, beside its own interval: what one day differs from the next."""
MEMORY = 0.05
"""Of a peak of memory."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number with a name, whose parts are separated by " / ".

    better     which way is better
    decisive   it follows from code and seed alone: worse is a failure
    low, high  95 % interval where there is one; of a quality: of its difference from the source, in points
    noise      relative change that is nothing, beside the interval
    reliable   False: the machine was disturbed, `why` says by what; such a figure is compared with nothing
    rows       digest of the labels, of a quality; `right`: which rows were answered right, as hexadecimal digits of packed bits
    """

    name: str
    value: float
    unit: str
    better: Literal["lower", "higher"] = "lower"
    decisive: bool = False
    low: float | None = None
    high: float | None = None
    noise: float = 0.0
    reliable: bool = True
    why: str = ""
    rows: str | None = None
    right: str | None = None

    @property
    def group(self) -> str:
        """The first part of its name: a case, start-up, passes."""
        return self.name.partition(" / ")[0]

    def to_json(self) -> dict[str, Any]:
        """The fields that are not their default."""
        plain = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in dataclasses.asdict(self).items() if value != plain[name]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Figure:
        """Inverse of `to_json`."""
        return cls(**data)


def count(name: str, value: float, unit: str = "", noise: float = 0.0) -> Figure:
    """What is counted and should be small: the same code gives the same number."""
    return Figure(name, value, unit, decisive=True, noise=noise)


def seconds(name: str, taken: Sequence[float], better: Literal["lower", "higher"] = "lower") -> Figure:
    """The median of times, with the interval that two of them in order bound at 95 % (binomial); of one: as it is."""
    if len(taken) < 6:
        return Figure(name, float(np.median(taken)), "s", better, noise=SINGLE)
    from scipy.stats import binom

    ranked, cut = np.sort(taken), int(binom.ppf(0.025, len(taken), 0.5))
    low, high = float(ranked[max(0, cut - 1)]), float(ranked[-max(1, cut)])
    return Figure(name, float(np.median(ranked)), "s", better, low=low, high=high, noise=REPEATED)


def packed(right: npt.NDArray[np.bool_]) -> str:
    """bool[rows] as hexadecimal digits."""
    return np.packbits(right).tobytes().hex()


def unpacked(digits: str) -> npt.NDArray[np.bool_]:
    """bool[rows and up to seven more, which are False]."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), dtype=np.uint8)).astype(bool)


def digest(parts: Iterable[Any]) -> str:
    """16 hexadecimal digits that stand for these values in this order."""
    return hashlib.sha256(repr(list(parts)).encode()).hexdigest()[:16]
