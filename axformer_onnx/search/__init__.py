"""From an anatomy and a scorer to a plan. `greedy` walks elements one by one, `compensated` chooses levels under a goal.

What both share is here: elements, the journal, the random control.
"""

from __future__ import annotations

from axformer_onnx.search.control import random_plan
from axformer_onnx.search.journal import Journal, open_journal

__all__ = ["Journal", "open_journal", "random_plan"]
