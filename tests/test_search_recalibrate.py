"""Losses at a plan's own temperature, against scikit-learn's and a brute-force search."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from axformer_onnx.records import FloatArray, Scores
from axformer_onnx.scoring.recalibrate import Recalibrated
from axformer_onnx.statistics import recalibrated_losses
from axformer_onnx.tasks import CLASSIFICATION
from axformer_onnx.tasks.labels import LabelMap
from axformer_passes.plan import Plan


def drawn(rows: int = 400, classes: int = 3, seed: int = 0) -> tuple[FloatArray, np.ndarray]:
    """Calibrated logits and labels drawn from them."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 1.5, (rows, classes))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return logits, np.array([draw.choice(classes, p=p) for p in chances])


@pytest.mark.parametrize("scale", [0.05, 1.0, 4.0, 30.0])
def test_confidence_does_not_matter(scale: float) -> None:
    logits, labels = drawn()
    np.testing.assert_allclose(
        recalibrated_losses(logits * scale, labels), recalibrated_losses(logits, labels), atol=1e-4
    )


@pytest.mark.parametrize("seed", range(5))
def test_no_temperature_of_a_grid_is_better(seed: int) -> None:
    logits, labels = drawn(seed=seed)
    overconfident = 3 * logits
    best = min(
        log_loss(labels, np.exp(b * overconfident) / np.exp(b * overconfident).sum(axis=1, keepdims=True))
        for b in np.geomspace(0.02, 20, 400)
    )
    assert recalibrated_losses(overconfident, labels).mean() <= best + 1e-9
    assert recalibrated_losses(overconfident, labels).mean() == pytest.approx(best, abs=1e-4)


def test_model_that_knows_less_has_a_higher_loss_although_its_cross_entropy_fell() -> None:
    logits, labels = drawn()
    overconfident = 6 * logits
    weaker = 0.5 * (overconfident + np.random.default_rng(1).normal(0, 6, logits.shape))

    def cross_entropy(z: FloatArray) -> float:
        return float(log_loss(labels, np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)))

    assert cross_entropy(weaker) < cross_entropy(overconfident)
    assert recalibrated_losses(weaker, labels).mean() > recalibrated_losses(overconfident, labels).mean() + 0.05


def test_model_that_is_wrong_is_no_better_than_a_uniform_answer() -> None:
    logits, labels = drawn(classes=2)
    assert recalibrated_losses(-logits, labels).mean() == pytest.approx(np.log(2), abs=0.01)


def test_logits_are_read_in_the_order_of_the_labels() -> None:
    logits, labels = drawn()
    scores = Scores(logits[:, [2, 0, 1]], np.zeros(len(labels)), "accuracy", 81.5, {"accuracy": 81.5}, 50.0, None)

    class Outputs:
        rows = len(labels)

        def scores(self, plan: Plan) -> Scores:
            return scores

        def losses(self, plan: Plan) -> FloatArray:
            return scores.loss_per_row

        def metric(self, plan: Plan) -> float:
            return scores.value

    scorer = Recalibrated(Outputs(), labels, LabelMap((1, 2, 0), ("a", "b", "c"), ""), CLASSIFICATION)
    np.testing.assert_array_equal(scorer.losses(Plan()), recalibrated_losses(logits, labels))
    assert scorer.metric(Plan()) == 81.5 and scorer.rows == len(labels)
