"""The walk that both searches share: propose an element, score the plan, judge, remember.

An *order* is a generator: it yields the next element to try and receives the trial with its verdict. A
*judge* is a pure function of three loss arrays. `walk` drives them, writes each answer to the journal, and
answers from the journal what an interrupted run has asked before, without scoring.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Mapping
from typing import Protocol

from axformer_onnx.records import FloatArray, PlanScorer, StageScore, Trial, plan_digest
from axformer_onnx.search.elements import Element, Half
from axformer_passes.plan import Plan


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a judge says of one trial; `loss` is its mean loss, `best` the mean loss that it had to beat."""

    accepted: bool
    loss: float
    best: float
    reason: str
    details: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Proposal:
    """The next element to try, and the most trials that can follow after it."""

    element: Element
    left: int


Order = Generator[Proposal, Trial, None]
Judge = Callable[[Element, FloatArray, FloatArray, FloatArray], Verdict]
"""(element, losses of the trial, of the current plan, of the unpruned model: float64[rows]) -> Verdict."""
Progress = Callable[[Trial, int], None]
"""(the trial just answered, the most trials that can follow)."""


class Memory(Protocol):
    """What the walk asks of a journal."""

    def recall(self, index: int, element: str, plan: Plan) -> Trial | None:
        """The answer to trial `index`, if an earlier run wrote it. UsageError: it was another question."""

    def remember(self, trial: Trial) -> None:
        """Write the answer before the next question is asked."""

    def recall_stage(self, stage: int, plan: Plan) -> StageScore | None:
        """A stage on the select rows, if an earlier run wrote it."""

    def remember_stage(self, stage: int, plan: Plan, score: StageScore) -> None:
        """Write a stage on the select rows."""


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """Where a search ended.

    plan           the plan to apply: `stages[chosen]`
    stages         every plan the search stood on; stage 0 is the unpruned model
    accepted       the elements of the accepted trials, in the order of the trials
    scores         stages on the select rows, those that had to be scored (docs/method.md 1.3); else empty
    interrupted    the search was stopped by hand before its last trial
    """

    plan: Plan
    stages: tuple[Plan, ...]
    trials: tuple[Trial, ...]
    chosen: int
    accepted: tuple[Element, ...] = ()
    scores: Mapping[int, StageScore] = dataclasses.field(default_factory=dict)
    interrupted: bool = False


def walk(
    order: Order,
    judge: Judge,
    scorer: PlanScorer,
    start: Plan,
    memory: Memory | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Follow `order` from `start`; an accepted trial becomes the current plan. Ctrl-C ends it there."""
    losses = _Losses(scorer, start)
    stages, trials, accepted, interrupted = [start], list[Trial](), list[Element](), False
    try:
        proposal = next(order, None)
        while proposal is not None:
            trial = _ask(proposal.element, len(trials), stages, judge, losses, memory)
            trials.append(trial)
            if trial.accepted:
                stages.append(trial.plan)
                accepted.append(proposal.element)
            if progress is not None:
                progress(trial, proposal.left)
            proposal = _send(order, trial)
    except KeyboardInterrupt:
        interrupted = True
    return SearchResult(
        plan=stages[-1],
        stages=tuple(stages),
        trials=tuple(trials),
        chosen=len(stages) - 1,
        accepted=tuple(accepted),
        interrupted=interrupted,
    )


def half_order(half: Half, left: int, fine: Callable[[Trial], bool]) -> Generator[Proposal, Trial, bool]:
    """Propose the block of `half`, then its parts if `fine` says so of the rejected trial (or no block is).

    Parts that several layers share are proposed as long as one of these layers has its block: the loss of one block says nothing
    of the others.

    left       the most trials that can follow after this half
    returns    whether the whole block went
    """
    behind, went = len(half.parts), False
    if half.block is not None:
        trial = yield Proposal(half.block, left + behind)
        went = trial.accepted
        if half.is_shared:
            wanted = not went or half.parts[0].is_left(trial.plan)
        else:
            wanted = not went and fine(trial)
        if not wanted:
            return went
    for element in half.parts:
        behind -= 1
        yield Proposal(element, left + behind)
    return went


def _send(order: Order, trial: Trial) -> Proposal | None:
    try:
        return order.send(trial)
    except StopIteration:
        return None


def _ask(
    element: Element, index: int, stages: list[Plan], judge: Judge, losses: _Losses, memory: Memory | None
) -> Trial:
    """Answer one trial, from memory or by scoring; a scored answer is remembered before it is used."""
    plan = element.applied_to(stages[-1])
    known = memory.recall(index, element.name, plan) if memory else None
    if known is not None:
        return known
    began = time.monotonic()
    current, source = losses.of(stages[-1]), losses.of(stages[0])
    found = losses.score(plan)
    verdict = judge(element, found, current, source)
    trial = Trial(
        index=index,
        stage=len(stages) - 1,
        element=element.name,
        plan=plan,
        loss=verdict.loss,
        best=verdict.best,
        accepted=verdict.accepted,
        reason=verdict.reason,
        seconds=time.monotonic() - began,
        details=verdict.details,
    )
    if memory:
        memory.remember(trial)
    if trial.accepted:
        losses.keep(plan, found)
    return trial


class _Losses:
    """Losses of the unpruned and of the current plan; each is scored once, and only when a trial needs it."""

    def __init__(self, scorer: PlanScorer, start: Plan) -> None:
        self._scorer = scorer
        self._start = start
        self._known: dict[str, FloatArray] = {}

    def score(self, plan: Plan) -> FloatArray:
        return self._scorer.losses(plan)

    def of(self, plan: Plan) -> FloatArray:
        key = plan_digest(plan)
        if key not in self._known:
            self.keep(plan, self.score(plan))
        return self._known[key]

    def keep(self, plan: Plan, losses: FloatArray) -> None:
        """Remember the losses of the current plan; of the others only those of the unpruned model stay."""
        first, key = plan_digest(self._start), plan_digest(plan)
        if key != first:
            self._known = {k: v for k, v in self._known.items() if k == first}
        self._known[key] = losses
