"""What a search is, what it is handed, and what it hands back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from axformer_onnx.options import SEARCHES, SearchKind

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_onnx.data import DataRoles, Rows
    from axformer_onnx.inputs import Given
    from axformer_onnx.options import OptimizeOptions
    from axformer_onnx.records import Trial
    from axformer_onnx.result.report import CompensationRecord, SearchRecord
    from axformer_onnx.scoring import Machine, StageSessions
    from axformer_onnx.search import Journal
    from axformer_passes.plan import Plan
    from axformer_passes.recognise import Examined


@dataclasses.dataclass(frozen=True)
class Watcher:
    """Who is told how far the run is; the default tells nobody.

    step     a line: what begins now
    trial    a trial of a search, and the most that can follow
    part     (what, how much of it is done, how much there is), of a compensated search
    """

    step: Callable[[str], None] = lambda text: None
    trial: Callable[[Trial, int], None] = lambda trial, left: None
    part: Callable[[str, int, int], None] = lambda what, done, of: None


@dataclasses.dataclass(frozen=True)
class Working:
    """The model that a search works on, examined."""

    model: ir.Model
    examined: Examined

    def sessions(self, machine: Machine) -> StageSessions:
        """Sessions of its stages."""
        from axformer_onnx.scoring import StageSessions

        return StageSessions(self.model, provider=machine.provider, threads=machine.threads, examined=self.examined)

    def with_biases(self) -> Working:
        """The same with a bias at every output projection that can have one."""
        from axformer_onnx.runtime import run_once
        from axformer_passes.apply import with_biases

        model = with_biases(self.model, run_once, examined=self.examined)
        return self if model is self.model else Working.of(model)

    @classmethod
    def of(cls, model: ir.Model) -> Working:
        """Examine it."""
        from axformer_onnx.runtime import run_once
        from axformer_passes.recognise import examine

        return cls(model, examine(model, run_once))


@dataclasses.dataclass(frozen=True)
class SearchRun:
    """What a search is handed.

    working   what it works on: the source, narrowed where `start` says so
    start     the plan that removes nothing, with the exact rewrites
    journal   asked before anything is measured, told before it is used
    folder    the output folder that is being built
    """

    options: OptimizeOptions
    given: Given
    working: Working
    start: Plan
    journal: Journal
    folder: Path
    watcher: Watcher


@dataclasses.dataclass(frozen=True)
class Decided:
    """What a search decided: the plan, where its weights lie, its graph if it is built, and records and notes for the report."""

    plan: Plan
    weights: Path | None
    search: SearchRecord
    compensation: CompensationRecord | None = None
    interrupted: bool = False
    built: Path | None = None
    notes: tuple[str, ...] = ()


class Search(SearchKind):
    """A search that can be run."""

    def rows_by_role(self, roles: DataRoles) -> dict[str, Rows]:
        """Search and select rows apart, and those of the report."""
        return {"search": roles.search, "select": roles.select, "report": roles.report}

    def expected_tokens(self, options: OptimizeOptions, given: Given) -> float:
        """Tokens that it will run through the whole model, about; a part of the model counts as that part."""
        raise NotImplementedError

    def run(self, run: SearchRun) -> Decided:
        """Find a plan. Ctrl-C ends it with the best so far. Raises: AxformerError."""
        raise NotImplementedError


def search_named(name: str) -> Search:
    """The search that `--search` calls so. Raises: UsageError."""
    search = SEARCHES[name]
    assert isinstance(search, Search)
    return search
