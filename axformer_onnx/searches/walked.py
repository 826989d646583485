"""What the searches share that remove element by element and change no weight."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from axformer_onnx.searches.search import Decided, Search, SearchRun

if TYPE_CHECKING:
    from axformer_onnx.inputs import Given
    from axformer_onnx.options import OptimizeOptions
    from axformer_onnx.scoring import StageScorer, StageSessions
    from axformer_onnx.search.greedy import SearchResult

_NO_GOAL = "has no goal but the loss"


class Walked(Search):
    """A search that walks the elements of a model one after the other."""

    decisive = ("k", "half")
    refuses: Mapping[str, str] = MappingProxyType(
        {
            "max_drop": _NO_GOAL,
            "speedup": _NO_GOAL,
            "size": _NO_GOAL,
            "refit_classifier": "changes no weight",
            "quantize": "changes no weight",
            "weight_bits": "changes no weight",
            "activations": "changes no weight",
            "embedding_bits": "changes no weight",
            "structure": "removes parts, and does nothing else",
        }
    )

    def expected_tokens(self, options: OptimizeOptions, given: Given) -> float:
        """A trial an element, each of half of the model: what lies before the element is known."""
        anatomy = given.source.anatomy
        elements = sum(len(layer.blocks) for layer in anatomy.layers) + anatomy.heads + len(anatomy.layers)
        return elements * float(given.encoded["search"].row_lengths.sum()) / 2

    def run(self, run: SearchRun) -> Decided:
        """Walk, and record every trial."""
        from axformer_onnx.result.report import search_record

        options, result = run.options, self.walk(run, run.working.sessions(run.options.machine))
        record = search_record(
            result, options.search, seed=options.seed, k=options.k, resumed_trials=run.journal.resumed
        )
        return Decided(result.plan, None, record, interrupted=result.interrupted)

    def walk(self, run: SearchRun, sessions: StageSessions) -> SearchResult:
        """The walk itself."""
        raise NotImplementedError


def scorer_of(run: SearchRun, sessions: StageSessions, role: str) -> StageScorer:
    """Scores plans on the rows of `role`."""
    from axformer_onnx.scoring import StageScorer

    given, reading = run.given, run.given.reading
    anatomy = sessions.staged.examined.anatomy
    rows, task, label_map = given.rows[role], reading.task, reading.label_map
    return StageScorer(sessions, anatomy, given.encoded[role], rows, task, label_map, output=reading.output)
