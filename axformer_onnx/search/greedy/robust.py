"""The default search: docs/method.md 1.3. Three disjoint sets of rows; noise is measured, not believed.

**Search rows decide trials.** With d the row-wise difference in loss between the trial and the plan it starts from:

    SE(d) = standard deviation of d / sqrt(rows)                    the noise of a paired difference
    step  = mean of d over the folds <= SE(d)  and  median of d over the folds <= SE(d)
    guard = mean of (trial - unpruned) <= SE(trial - unpruned)
    a removal is accepted if step and guard; hard attention if mean of d < -2 SE(d) and guard

* *Paired, by row.* Both plans see the same rows, so the spread between easy and hard rows cancels. SE comes from all
  rows: k fold means have the same expectation but k - 1 degrees of freedom, too rough to compare with.
* *Mean and median of k seeded folds.* Cross-entropy has heavy tails: a few confidently wrong rows can carry a mean.
  The median of means answers for the bulk of the rows (the classical remedy), the mean for the whole.
* *A part that does nothing goes:* the mean need not fall. Differences within float32's rounding count as nothing.
* *No drift.* A hundred steps each within one SE would add up. The guard compares with the unpruned model every time,
  so that the whole way, not each step of it, stays within one SE.
* *Confidence is no evidence.* Give both sets as `recalibrate.Recalibrated` scorers where the task is a classification:
  a model that becomes less overconfident loses cross-entropy while it loses answers, and the guard is worth nothing.
* *Hard attention must pay.* TopK costs time on most providers, so noise is not enough: two standard errors.
* *No skipping.* The authors try a block's parts only if the block costs less than 10 %. A block that matters can hold
  heads that do not, so here the parts are always tried; the price is forward passes, fewest at the top of the model.

**Select rows choose the stage.** Hundreds of questions to the same rows are fitted to them, so other rows choose among
the stages: stage i has i of the accepted elements, in order of risk = (mean + SE of their trial) / weights that are
read no more (the parameters, shared ones counted for every layer). What
helps or does nothing goes first, what might do harm for little goes last (the greedy order of a knapsack), so that one
bad element, wherever the walk met it, does not take the good ones behind it along. The choice is the smallest stage
whose task metric is not below that of stage 0, the unpruned model, and whose loss is not above it beyond one standard
error. (The metric is what counts, but on a few hundred rows it is coarse; the paired loss sees a decline much sooner.)
Each stage contains the one before it, hence the smallest is the last. The smallest of many stages that passes tends to
be one that was lucky. What is removed does not come back, so true scores fall from stage to stage, give or take: the
best non-increasing fit through all of them (isotonic regression) must not be below stage 0's score there either, beyond
one standard error of the paired difference: stage 0's own score is as lucky or unlucky as any. At most STAGES_SCORED
stages, evenly spaced, are scored. **Report rows** are not seen here at all.

Measured on the CoLA checkpoint of 22.7 M parameters (864 search, 432 select, 1,043 report rows; MCC 31.7 unpruned):
with cross-entropy as it is and the smallest stage that passes, 13 % of the parameters went and 8.2 points of MCC with
them (it had gained 0.4 on the select rows); as above, 12 % went for 2.3 points, inside the noise [-6.4, +1.6], where a
random plan of equal size lost 13.0. A fit without a tolerance kept the whole SST-2 model: stage 0 is half a point lucky
on its 1,000 select rows; with it 17 % went for 0.6 points [-2.3, +1.0] of 88.3, a random plan losing 8.5.

Order: from the top layer down (a change near the top re-uses all hidden states below it), in each layer the
feed-forward block, else its neuron groups; the attention block, else its heads; hard attention where attention remains.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from axformer_onnx.records import FloatArray, PlanScorer, StageScore
from axformer_onnx.scoring import ROUNDING
from axformer_onnx.search.elements import Element, halves, hard_attention
from axformer_onnx.search.greedy.walk import (
    Judge,
    Memory,
    Order,
    Progress,
    Proposal,
    SearchResult,
    Verdict,
    half_order,
    walk,
)
from axformer_passes.anatomy import Anatomy
from axformer_passes.plan import Plan, SharedWeights

FOLDS = 5
STAGES_SCORED = 25
HARD_ATTENTION_SE = 2.0


def search_robust(
    anatomy: Anatomy,
    search: PlanScorer,
    select: PlanScorer,
    *,
    start: Plan | None = None,
    k: int = 30,
    seed: int = 0,
    memory: Memory | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Walk on the rows of `search`, then choose a stage on the rows of `select`. Deterministic for a seed.

    Ctrl-C during the walk ends it; the stages so far are still judged on the select rows.
    """
    judge = robust_judge(fold_rows(search.rows, seed))
    start = start or Plan()
    walked = walk(robust_order(anatomy, k, start.shared_weights), judge, search, start, memory, progress)
    stages = stages_by_risk(walked)
    chosen, scores = choose_stage(stages, select, memory)
    return dataclasses.replace(walked, plan=stages[chosen], stages=stages, chosen=chosen, scores=scores)


def stages_by_risk(walked: SearchResult) -> tuple[Plan, ...]:
    """The accepted elements one after the other, the least risk for a weight that is read first: stage i has i of them."""
    trials = [trial for trial in walked.trials if trial.accepted]
    risks = [
        (trial.details["mean"] + trial.details["se"]) / max(element.reads, 1)
        for trial, element in zip(trials, walked.accepted, strict=True)
    ]
    stages = [walked.stages[0]]
    for i in sorted(range(len(risks)), key=risks.__getitem__):
        stages.append(walked.accepted[i].applied_to(stages[-1]))
    return tuple(stages)


def robust_order(anatomy: Anatomy, k: int, shared: SharedWeights = "separate") -> Order:
    """From the top layer down: feed-forward half, attention half, hard attention."""
    layers = range(len(anatomy.layers))
    hard = [hard_attention(anatomy, i, k) for i in layers]
    both = [halves(anatomy, i, shared) for i in layers]
    left = sum(half.trials for pair in both for half in pair) + sum(map(bool, hard))
    for i in reversed(layers):
        feed_forward, attention = both[i]
        left -= feed_forward.trials
        yield from half_order(feed_forward, left, lambda rejected: True)
        left -= attention.trials
        removed = yield from half_order(attention, left, lambda rejected: True)
        element = hard[i]
        left -= element is not None
        if element is not None and not removed:
            yield Proposal(element, left)


def robust_judge(folds: Sequence[npt.NDArray[np.intp]]) -> Judge:
    """The verdict over these folds of the rows; see the module's rules."""

    def judge(element: Element, trial: FloatArray, current: FloatArray, source: FloatArray) -> Verdict:
        loss, best = float(trial.mean()), float(current.mean())
        if not np.isfinite(trial).all():
            return Verdict(False, loss, best, "the loss is not a finite number")
        step, whole = trial - current, trial - source
        means = [float(step[rows].mean()) for rows in folds]
        mean, median, noise = float(np.mean(means)), float(np.median(means)), standard_error(step)
        drift, drift_noise = float(whole.mean()), standard_error(whole)
        if element.kind == "hard_attention":
            good = mean < -HARD_ATTENTION_SE * noise - ROUNDING
            asked = f"needs a fall beyond {HARD_ATTENTION_SE:g} SE"
        else:
            good = max(mean, median) <= noise + ROUNDING
            asked = "needs no rise beyond 1 SE"
        guard = drift <= drift_noise + ROUNDING
        reason = (
            f"loss {mean:+.5f} (folds' median {median:+.5f}, SE {noise:.5f}), {asked}: {_yes(good)}; "
            f"{drift:+.5f} (SE {drift_noise:.5f}) against unpruned: {_yes(guard)}"
        )
        details = {"mean": mean, "median": median, "se": noise, "drift": drift, "drift_se": drift_noise}
        return Verdict(good and guard, loss, best, reason, details)

    return judge


def _yes(passed: bool) -> str:
    return "passed" if passed else "failed"


def standard_error(differences: FloatArray) -> float:
    """Standard error of the mean of float64[rows]; 0 for fewer than two rows: nothing is then noise."""
    n = len(differences)
    return float(differences.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0


def fold_rows(rows: int, seed: int, folds: int = FOLDS) -> list[npt.NDArray[np.intp]]:
    """Split 0..rows-1 into `folds` random parts of equal size (give or take one), by the seed."""
    order = np.random.default_rng(seed).permutation(rows)
    return [np.sort(part) for part in np.array_split(order, max(1, min(folds, rows)))]


def choose_stage(
    stages: Sequence[Plan], select: PlanScorer, memory: Memory | None = None
) -> tuple[int, dict[int, StageScore]]:
    """The last stage that is not below stage 0 on the select rows, and the scores of those that were asked."""
    if len(stages) == 1:
        return 0, {}
    source: FloatArray | None = None
    scores: dict[int, StageScore] = {}
    for stage in np.unique(np.linspace(0, len(stages) - 1, STAGES_SCORED).round().astype(int)).tolist():
        plan = stages[stage]
        known = memory.recall_stage(stage, plan) if memory else None
        if known is None:
            source = select.losses(stages[0]) if source is None else source
            rise = select.losses(plan) - source
            score_noise = select.metric_noise(plan, stages[0])
            known = StageScore(select.metric(plan), float(rise.mean()), standard_error(rise), score_noise)
            if memory:
                memory.remember_stage(stage, plan, known)
        scores[stage] = known
    fitted = falling_fit([score.score for score in scores.values()])
    fits = (
        value >= scores[0].score - score.score_noise - ROUNDING
        for value, score in zip(fitted, scores.values(), strict=True)
    )
    passed = [
        stage for (stage, score), fit in zip(scores.items(), fits, strict=True) if fit and holds(score, scores[0])
    ]
    return max(passed, default=0), scores


def falling_fit(scores: Sequence[float]) -> FloatArray:
    """float64[n]: the non-increasing sequence that is nearest to `scores` in squared distance."""
    from scipy.optimize import isotonic_regression

    fitted: FloatArray = isotonic_regression(scores, increasing=False).x
    return fitted


def holds(stage: StageScore, unpruned: StageScore) -> bool:
    """Metric not below the unpruned model's, loss not above it beyond one standard error."""
    return stage.score >= unpruned.score - ROUNDING and stage.rise <= stage.noise + ROUNDING
