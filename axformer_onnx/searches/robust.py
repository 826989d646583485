"""`--search robust`: removes only what does not matter, with noise measured on rows of three roles (docs/method.md 1.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axformer_onnx.options import SEARCHES
from axformer_onnx.searches.search import SearchRun
from axformer_onnx.searches.walked import Walked, scorer_of

if TYPE_CHECKING:
    from axformer_onnx.scoring import Recalibrated, StageScorer, StageSessions
    from axformer_onnx.search.greedy import SearchResult


class Robust(Walked):
    """Trials on the search rows, then a stage on the select rows."""

    name = "robust"
    help = "removes only what does not matter"

    def walk(self, run: SearchRun, sessions: StageSessions) -> SearchResult:
        """Of a classification, losses are recalibrated: confidence is no evidence."""
        from axformer_onnx.search.greedy import search_robust

        return search_robust(
            sessions.staged.examined.anatomy,
            _recalibrated(run, sessions, "search"),
            _recalibrated(run, sessions, "select"),
            start=run.start,
            k=run.options.k,
            seed=run.options.seed,
            memory=run.journal,
            progress=run.watcher.trial,
        )


def _recalibrated(run: SearchRun, sessions: StageSessions, role: str) -> StageScorer | Recalibrated:
    from axformer_onnx.scoring import Recalibrated

    scorer, reading = scorer_of(run, sessions, role), run.given.reading
    if not reading.task.kind.recalibrates:
        return scorer
    return Recalibrated(scorer, run.given.rows[role].labels, reading.label_map, reading.task.kind)


ROBUST = SEARCHES.add(Robust())
