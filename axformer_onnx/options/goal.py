"""What a compensated search is asked for."""

from __future__ import annotations

import dataclasses
from typing import Literal

GoalKind = Literal["drop", "speedup", "size"]


@dataclasses.dataclass(frozen=True)
class Goal:
    """drop: within so many points of the source; speedup: at least this factor; size: at most this part of the file."""

    kind: GoalKind = "drop"
    value: float = 0.0

    @property
    def words(self) -> str:
        """For example "--speedup 2"."""
        return f"--{'max-drop' if self.kind == 'drop' else self.kind} {self.value:g}"
