"""The authors' search (arXiv 2010.03688), exactly as docs/method.md 1.2 states it; `--search axformer`.

Accept a trial if its mean loss is below the best so far *and* more than half the rows have a loss no
greater than under the unpruned model; the best is then its mean loss. Hard attention first, layers 0 to
L-1; then from the last layer down to the first the feed-forward block and the attention block, each
followed by its parts only if the block was rejected with a loss below 1.1 x best. At most L + 2L + 2hL
trials.

Kept because it is the reference. Its verdicts are fitted to the rows that it asks; the default is `robust`.
"""

from __future__ import annotations

import math

import numpy as np

from axformer_onnx.records import FloatArray, PlanScorer
from axformer_onnx.search.elements import Element, halves, hard_attention
from axformer_onnx.search.greedy.walk import Memory, Order, Progress, Proposal, SearchResult, Verdict, half_order, walk
from axformer_passes.anatomy import Anatomy
from axformer_passes.plan import Plan, SharedWeights

FINE_BELOW = 1.1
"""A rejected block's parts are tried if the block's loss is below this many times the best."""


def search_axformer(
    anatomy: Anatomy,
    scorer: PlanScorer,
    *,
    start: Plan | None = None,
    k: int = 30,
    memory: Memory | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Run the authors' search on the rows of `scorer`; the plan is the last one that was accepted."""
    start = start or Plan()
    return walk(axformer_order(anatomy, k, start.shared_weights), judge_axformer, scorer, start, memory, progress)


def axformer_order(anatomy: Anatomy, k: int, shared: SharedWeights = "separate") -> Order:
    """The elements in the authors' order; a block that cannot be taken out hands over to its parts."""
    layers = range(len(anatomy.layers))
    hard = [element for i in layers if (element := hard_attention(anatomy, i, k))]
    parts = [half for i in reversed(layers) for half in halves(anatomy, i, shared)]
    left = len(hard) + sum(half.trials for half in parts)
    for element in hard:
        left -= 1
        yield Proposal(element, left)
    for half in parts:
        left -= half.trials
        yield from half_order(half, left, lambda trial: trial.loss < FINE_BELOW * trial.best)


def judge_axformer(
    element: Element, trial: FloatArray, current: FloatArray, source: FloatArray
) -> Verdict:  # the element does not matter to the authors' rule
    """Mean below the best, and more than half the rows no worse than under the unpruned model."""
    loss, best = float(trial.mean()), float(current.mean())
    no_worse = int(np.count_nonzero(trial <= source))
    lower, majority = loss < best, 2 * no_worse > len(source)
    rows = f"{no_worse} of {len(source)} rows no worse than unpruned"
    if not math.isfinite(loss):
        reason = "the loss is not a finite number"
    else:
        reason = f"loss {loss:.5f} {'<' if lower else '>='} best {best:.5f}; {rows}, needs more than half"
    return Verdict(lower and majority, loss, best, reason, {"rows_no_worse": no_worse})
