"""A transformer that exists only as numbers: an Anatomy, and losses as a function of masks.

The scorer knows plans; `MaskModel.losses` knows only masks, so that a test can drive the model without plans.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from axformer_onnx.records import FloatArray
from axformer_passes.anatomy import Anatomy, AttentionBlock, FeedForwardBlock, Layer, Linear
from axformer_passes.plan import Plan


def linear(name: str, rows: int, columns: int) -> Linear:
    return Linear(f"{name}.in", f"{name}.out", f"{name}.weight", f"{name}.bias", rows, columns)


def anatomy(
    layers: int = 3,
    heads: int = 4,
    head_size: int = 4,
    neurons: int = 32,
    fixed: frozenset[int] = frozenset(),
) -> Anatomy:
    """`fixed`: layers whose blocks cannot be taken out (their heads and neurons can)."""
    width = heads * head_size

    def layer(i: int) -> Layer:
        places = (None, None, None, "not an addition") if i in fixed else ("branch", "residual", "sum", None)
        q, k, v, o = (linear(f"{i}.{p}", width, width) for p in "qkvo")
        attention = AttentionBlock(heads, heads, head_size, 0.5, q, k, v, o, f"{i}.softmax", "Softmax", *places)
        up, down = linear(f"{i}.up", width, neurons), linear(f"{i}.down", neurons, width)
        return Layer(i, attention, FeedForwardBlock(neurons, "Gelu", (up,), down, *places))

    return Anatomy(tuple(layer(i) for i in range(layers)), width, 17, "fake", ())


@dataclasses.dataclass
class Masks:
    """1 keeps, 0 removes. Biases go only with a block."""

    heads: FloatArray  # [layers, heads]
    neurons: FloatArray  # [layers, neurons]
    attention: FloatArray  # [layers]
    feed_forward: FloatArray  # [layers]
    hard: FloatArray  # [layers], 1 = hardened

    @classmethod
    def ones(cls, layers: int, heads: int, neurons: int) -> Masks:
        return cls(
            np.ones((layers, heads)),
            np.ones((layers, neurons)),
            np.ones(layers),
            np.ones(layers),
            np.zeros(layers),
        )

    def copy(self) -> Masks:
        return Masks(*(np.array(x) for x in dataclasses.astuple(self)))


class MaskModel:
    """Losses that depend on masks: own effects of every part, products between neighbours, row by row."""

    def __init__(self, seed: int, rows: int, layers: int, heads: int, neurons: int, scale: float = 0.02) -> None:
        draw = np.random.default_rng(seed)
        self.shape = (layers, heads, neurons)
        self.base = draw.gamma(2.0, 0.3, rows)
        self.effects = [
            draw.normal(draw.normal(0, 1, (1, *size)), 3.0, (rows, *size)) * scale / np.prod(size) ** 0.5
            for size in ((layers, heads), (layers, neurons), (layers,), (layers,), (layers,))
        ]
        self.pairs = draw.normal(0, scale, (layers, layers))

    def losses(self, masks: Masks) -> FloatArray:
        heads = masks.heads * masks.attention[:, None]
        neurons = masks.neurons * masks.feed_forward[:, None]
        gone = (
            1 - heads,
            1 - neurons,
            1 - masks.attention,
            1 - masks.feed_forward,
            masks.hard * masks.attention,
        )
        total = self.base.copy()
        for effect, missing in zip(self.effects, gone, strict=True):
            total = total + (effect * missing).reshape(len(total), -1).sum(axis=1)
        return np.maximum(total + (1 - heads).mean(1) @ self.pairs @ (1 - neurons).mean(1), 0.0)


def masks_of(plan: Plan, layers: int, heads: int, neurons: int) -> Masks:
    masks = Masks.ones(layers, heads, neurons)
    for i, ids in plan.heads.items():
        masks.heads[i, sorted(ids)] = 0
    for i, ids in plan.neurons.items():
        masks.neurons[i, sorted(ids)] = 0
    for i in plan.attention_blocks:
        masks.attention[i] = 0
    for i in plan.feed_forward_blocks:
        masks.feed_forward[i] = 0
    for i in plan.hard_attention:
        masks.hard[i] = 1
    return masks


class FakeScorer:
    """A PlanScorer over any function of plans; counts what it was asked."""

    def __init__(
        self, losses: Callable[[Plan], FloatArray], rows: int, metric: Callable[[Plan], float] | None = None
    ) -> None:
        self._losses, self._metric, self.rows = losses, metric, rows
        self.asked: list[Plan] = []
        self.scored: list[Plan] = []
        self.interrupt_at: int | None = None
        self.score_noise = 0.0

    def losses(self, plan: Plan) -> FloatArray:
        self.asked.append(plan)
        if self.interrupt_at is not None and len(self.asked) > self.interrupt_at:
            raise KeyboardInterrupt
        return self._losses(plan)

    def metric(self, plan: Plan) -> float:
        self.scored.append(plan)
        assert self._metric is not None
        return self._metric(plan)

    def metric_noise(self, plan: Plan, base: Plan) -> float:
        return self.score_noise * (plan != base)


def mask_scorer(model: MaskModel, metric: Callable[[Plan], float] | None = None) -> FakeScorer:
    return FakeScorer(lambda plan: model.losses(masks_of(plan, *model.shape)), len(model.base), metric)
