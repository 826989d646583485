"""What a compensated search is asked for."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Goal:
    """drop: points of the metric below the source, at most; speedup: a factor, at least; size: part of the file, at most."""

    kind: Literal["drop", "speedup", "size"] = "drop"
    value: float = 0.0

    @property
    def words(self) -> str:
        """For example "--speedup 2"."""
        return f"--{'max-drop' if self.kind == 'drop' else self.kind} {self.value:g}"
