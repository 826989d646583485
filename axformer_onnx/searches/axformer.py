"""`--search axformer`: the authors' rule as published (arXiv 2010.03688), kept as the reference (docs/method.md 1.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axformer_onnx.options import SEARCHES
from axformer_onnx.searches.search import SearchRun
from axformer_onnx.searches.walked import Walked, scorer_of

if TYPE_CHECKING:
    from axformer_onnx.data import DataRoles, Rows
    from axformer_onnx.scoring import StageSessions
    from axformer_onnx.search.greedy import SearchResult


class Axformer(Walked):
    """One walk on one set of rows."""

    name = "axformer"
    help = "the paper's rule"

    def rows_by_role(self, roles: DataRoles) -> dict[str, Rows]:
        """It chooses no stage, so its trials see the select rows too."""
        import hashlib

        import numpy as np

        from axformer_onnx.data import Rows

        first, second = roles.search, roles.select
        joined = Rows(
            texts=first.texts + second.texts,
            labels=np.concatenate([first.labels, second.labels]),
            source=first.source.removesuffix(" (search part)"),
            sha256=hashlib.sha256((first.sha256 + second.sha256).encode()).hexdigest(),
            label_names=first.label_names,
        )
        return {"search": joined, "report": roles.report}

    def walk(self, run: SearchRun, sessions: StageSessions) -> SearchResult:
        """The authors' order and verdicts."""
        from axformer_onnx.search.greedy import search_axformer

        return search_axformer(
            sessions.staged.examined.anatomy,
            scorer_of(run, sessions, "search"),
            start=run.start,
            k=run.options.k,
            memory=run.journal,
            progress=run.watcher.trial,
        )


AXFORMER = SEARCHES.add(Axformer())
