"""Cost grows in proportion to the nodes: twice the layers, twice the function calls. Counted, not timed (bench/linear.py times)."""

from __future__ import annotations

import cProfile
import pstats
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from deep_graphs import SPELLINGS, Sizes, contrib, deep_model, eager, thinned_everywhere

from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.blocks.cost import shares
from axformer_passes.blocks.shared import shared_groups
from axformer_passes.recognise.examination import Examined, examine
from axformer_passes.stages.stages import Staged

LAYERS = 24
TWICE = 2.05
"""Calls for twice the layers, relative to those for once: 2, and a little for tables that grow by doubling."""


def deep(layers: int) -> ir.Model:
    """A model of this many layers."""
    return ir.from_proto(deep_model(layers))


def examined(layers: int) -> tuple[ir.Model, Examined]:
    """A model of this many layers and what was recognised in it."""
    model = deep(layers)
    return model, examine(model, run_once)


def recognition(layers: int) -> Callable[[], Any]:
    """examine."""
    model = deep(layers)
    return lambda: examine(model, run_once)


def surgery(layers: int) -> Callable[[], Any]:
    """apply_plan, with something to do in every layer."""
    model, known = examined(layers)
    plan = thinned_everywhere(known.anatomy)
    return lambda: apply_plan(model, plan, run_once, examined=known)


def staging(layers: int) -> Callable[[], Any]:
    """Staged, and every stage in the two forms that every stage has."""
    _, known = examined(layers)

    def act() -> None:
        staged = Staged(known)
        for stage in staged.stages:
            staged.detached(stage, "plain")
            staged.detached(stage, "gated")

    return act


def counting(layers: int) -> Callable[[], Any]:
    """shares, and the layers that share weights."""
    model, known = examined(layers)

    def act() -> None:
        shares(model, known.anatomy, run_once)
        shared_groups(known.anatomy)

    return act


def calls(act: Callable[[], Any]) -> Counter[str]:
    """Calls of Python and C functions by where they are defined. Generators count each time that they go on."""
    profile = cProfile.Profile()
    profile.runcall(act)
    found: Mapping[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    return Counter({f"{file}:{line} {name}": row[1] for (file, line, name), row in found.items()})


def lowering(layers: int) -> Callable[[], Any]:
    """examine and apply_plan where every layer comes in fused operators, which are lowered and lifted."""
    model = ir.from_proto(deep_model(layers, spellings=(contrib,)))
    plan = thinned_everywhere(examine(model, run_once).anatomy)
    return lambda: apply_plan(model, plan, run_once)


STEPS = (recognition, surgery, staging, counting, lowering)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_twice_the_layers_take_twice_the_calls_of_every_function(step: Callable[[int], Callable[[], Any]]) -> None:
    step(3)()  # imports, and tables that are filled once
    once, twice = calls(step(LAYERS)), calls(step(2 * LAYERS))
    often = {name: count for name, count in twice.items() if count > 3 * once[name] and count > 100 * LAYERS}
    assert not often
    assert sum(twice.values()) < TWICE * sum(once.values())


def test_every_spelling_is_recognised_in_every_layer() -> None:
    _, known = examined(2 * len(SPELLINGS))
    assert [len(layer.blocks) for layer in known.anatomy.layers] == [2] * 2 * len(SPELLINGS)
    assert known.anatomy.refused == ()


def test_labels_take_memory_for_a_channel_once_not_for_every_token() -> None:
    wide = examine(ir.from_proto(deep_model(2, Sizes(64, 4, 256), (eager,))), run_once)
    held = {id(_owner(labels)): _owner(labels).nbytes for labels in wide.labelling.of.values()}
    seen = sum(np.prod(labels.shape) * labels.itemsize for labels in wide.labelling.of.values())
    assert sum(held.values()) < seen / 10


def _owner(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array that holds the memory of a view."""
    while isinstance(labels.base, np.ndarray):
        labels = labels.base
    return labels
