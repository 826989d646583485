"""Choices through stages against torch with the same weights; races against full evaluation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.stats import entropy

from axformer_onnx.search.compensated.divergence import Divergence, is_lost
from axformer_onnx.tasks import CLASSIFICATION, REGRESSION

torch = pytest.importorskip("torch", reason="needs the [export] extra (torch, transformers)")

from weights_oracle import weighted_outputs  # noqa: E402
from zoo import ZooModel, build  # noqa: E402

from axformer_onnx.compensate.moments import Sample  # noqa: E402
from axformer_onnx.runtime.sessions import run_once  # noqa: E402
from axformer_onnx.runtime.spill import Shelf  # noqa: E402
from axformer_onnx.scoring.stage_sessions import StageSessions  # noqa: E402
from axformer_onnx.search.compensated.levels import Choice, Levels, build_levels  # noqa: E402
from axformer_passes.apply import narrowed, with_biases  # noqa: E402
from axformer_passes.io.files import load_model  # noqa: E402
from axformer_passes.plan import Hard, Plan  # noqa: E402

FAMILIES = ("bert", "distilbert", "modernbert", "gpt2", "albert", "mobilebert")


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def test_row_divergence_is_the_relative_entropy_of_the_outputs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50, 4)) * 3
    expected = [entropy(p, q) for p, q in zip(softmax(a), softmax(b), strict=True)]
    assert CLASSIFICATION.divergence(a, b) == pytest.approx(expected)
    assert REGRESSION.divergence(a[:, :1], b[:, :1]) == pytest.approx((a[:, 0] - b[:, 0]) ** 2)
    assert (CLASSIFICATION.divergence(a, a) == 0).all()


@pytest.mark.sampled(6)
@pytest.mark.parametrize("effect", [-0.1, -0.02, 0.0, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("tail", ["normal", "lognormal"])
@pytest.mark.parametrize("rows", [384, 1280])
def test_a_race_says_what_all_rows_say_in_99_of_100_cases(effect: float, tail: str, rows: int) -> None:
    rng, wrong, cases, shortened = np.random.default_rng(7), 0, 2000, 0
    for _ in range(cases):
        incumbent = rng.lognormal(-4, 1.5, rows)
        noise = rng.normal(0, 1, rows) if tail == "normal" else (rng.lognormal(0, 1.2, rows) - math.exp(0.72)) / 3.69
        candidate = incumbent + incumbent.std() * (effect + noise)
        lost = next((n for n in range(64, rows, 64) if is_lost(candidate[:n], incumbent[:n], rows)), None)
        shortened += lost is not None
        wrong += lost is not None and candidate.mean() < incumbent.mean()
    assert wrong <= 0.01 * cases, f"{wrong} of {cases} verdicts differ"
    assert effect < 0.3 or shortened > 0.9 * cases, "a candidate that is clearly worse is not dropped early"


def test_few_rows_decide_nothing() -> None:
    assert not is_lost(np.full(47, 2.0), np.zeros(47), 100) and is_lost(np.full(48, 2.0), np.zeros(48), 100)


def test_the_more_rows_were_seen_the_less_it_takes() -> None:
    rng = np.random.default_rng(0)
    d = rng.normal(0, 1, 96)
    d += 2 * d.std(ddof=1) / math.sqrt(96) - d.mean()  # two standard errors behind
    assert not is_lost(d, np.zeros(96), 960) and is_lost(d, np.zeros(96), 128)


@pytest.fixture(params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[ZooModel, StageSessions, Levels]]:
    model = build(request.param, "torchscript-eager-17")
    source = with_biases(narrowed(load_model(model.path), run_once)[0], run_once)
    sessions = StageSessions(source, threads=1)
    samples = []
    for seed in range(3):
        feeds = model.feeds(3, 6, seed=seed)
        samples.append(Sample(feeds, feeds["attention_mask"].astype(bool)))
    with Shelf(2**20) as shelf:
        yield model, sessions, build_levels(sessions, samples, shelf)


class OnePart:
    """A scorer of one batch, as `StageScorer` is for rows of text."""

    def __init__(self, sessions: StageSessions, feeds: dict[str, np.ndarray]) -> None:
        self._sessions, self._feeds, self.rows, self.stages_run = sessions, feeds, 3, 0

    def outputs(self, settings: list) -> np.ndarray:
        tensors = dict(self._feeds)
        for stage, setting in zip(self._sessions.stages, settings, strict=True):
            session = self._sessions.session(stage, setting.form)
            given = {**tensors, **setting.feeds}
            found = session.run(list(stage.outputs), {i.name: given[i.name] for i in session.get_inputs()})
            tensors.update(zip(stage.outputs, found, strict=True))
        return np.asarray(tensors[self._sessions.staged.graph_outputs[0]], dtype=np.float64)


@pytest.mark.slow
def test_choice_through_stages_equals_torch_with_these_weights(case: tuple[ZooModel, StageSessions, Levels]) -> None:
    model, sessions, levels = case
    feeds = model.feeds(3, 6, seed=9)
    part = OnePart(sessions, feeds)
    divergence = Divergence(sessions, levels, [part], kind=CLASSIFICATION)  # type: ignore[list-item]
    rng = np.random.default_rng(4)
    layer = next(unit.layers[0] for unit in levels.units if unit.kind == "attention")
    for hard in ((), ((layer, Hard(2, "truncated")),)):
        rungs = tuple(int(rng.integers(0, len(unit.rungs) - 1)) for unit in levels.units)
        choice = Choice(rungs, hard)
        plan, weights = levels.plan(choice, Plan())
        expected = weighted_outputs(model, feeds, dataclasses.replace(plan, weights=None), weights)
        found = part.outputs(divergence.settings(choice))
        scale = np.abs(expected).max()
        assert np.abs(found - expected.reshape(found.shape)).max() <= 2e-5 * scale
        assert divergence.of(choice, 0) == pytest.approx(
            CLASSIFICATION.divergence(part.outputs(sessions.settings(Plan())), found), abs=1e-9
        )


def test_unchanged_choice_does_not_diverge(case: tuple[ZooModel, StageSessions, Levels]) -> None:
    model, sessions, levels = case
    part = OnePart(sessions, model.feeds(3, 6, seed=1))
    divergence = Divergence(sessions, levels, [part], kind=CLASSIFICATION)  # type: ignore[list-item]
    assert divergence.of(Choice((0,) * len(levels.units)), 0) == pytest.approx(np.zeros(3), abs=1e-12)


def test_divergences_are_multiplied_by_the_weights_of_their_rows(
    case: tuple[ZooModel, StageSessions, Levels],
) -> None:
    model, sessions, levels = case
    part = OnePart(sessions, model.feeds(3, 6, seed=1))
    choice, weights = Choice((1,) * len(levels.units)), np.array([0.25, 1.0, 3.0])
    plain = Divergence(sessions, levels, [part], kind=CLASSIFICATION).of(choice, 0)  # type: ignore[list-item]
    weighted = Divergence(sessions, levels, [part], kind=CLASSIFICATION, weights=[weights])  # type: ignore[list-item]
    assert plain.min() > 0 and weighted.of(choice, 0) == pytest.approx(weights * plain)
    assert weighted.race(choice).divergence == pytest.approx(weights * plain)
