"""What the tests of the passes share: a plan carried out on a zoo model in both ways, and the tolerance.

    removed_outputs   the parts cut out of the graph (`apply_plan`), run in ONNX Runtime
    gated_outputs     the source's stages, parts switched off by run-time inputs (`gate`, `search/stages`)

The oracle is torch (`torch_oracle`), which shares nothing with either but the Plan.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
import torch
import torch_oracle
from zoo import FAMILY, Feeds, ZooModel, onnx_outputs

from axformer_onnx.runtime.sessions import run_once
from axformer_onnx.scoring.stage_sessions import StageSessions, setting_of
from axformer_passes.apply import apply_plan
from axformer_passes.io.files import load_model, serialized
from axformer_passes.plan import Hard, Plan
from axformer_passes.probe import Recipe, describe

Array = npt.NDArray[Any]
TOLERANCE = 1e-5
"""Largest difference, relative to the largest value of the output: float32 sums in another order."""
_CLEAR = 1e-4
_SHAPES = ((1, 1), (2, 7), (3, 12))


def removed(model: ZooModel, plan: Plan) -> ir.Model:
    """The graph with `plan` carried out, after the full checker with strict shape inference."""
    result = apply_plan(model.opened(), plan, run_once)
    proto = ir.to_proto(result)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    return result


@functools.lru_cache(maxsize=4)
def sessions(path: Path, family: str | None = None) -> StageSessions:
    """The stage sessions of a file; each is made once a process. `family`: whose inputs it takes, where not any will do."""
    model = load_model(path)
    describe(model, FAMILY[family].recipe if family else Recipe())
    return StageSessions(model, threads=1)


def gated_outputs(stages: StageSessions, plan: Plan, feeds: Feeds) -> list[Array]:
    """The source's outputs, all stages in sequence, each in the form and with the inputs that `plan` asks for."""
    tensors: dict[str, Array] = dict(feeds)
    for stage in stages.stages:
        setting = setting_of(stage, plan)
        session = stages.session(stage, setting.form)
        given = {**tensors, **setting.feeds}
        found = session.run(list(stage.outputs), {i.name: given[i.name] for i in session.get_inputs()})
        tensors.update(zip(stage.outputs, found, strict=True))
    return [tensors[name] for name in stages.staged.graph_outputs]


def assert_three_ways_agree(model: ZooModel, plan: Plan, shapes: tuple[tuple[int, int], ...] = _SHAPES) -> None:
    """removed = gated = torch with the same activations zeroed, at several batch sizes and lengths, with padding."""
    graph = serialized(removed(model, plan))
    stages = sessions(model.path, model.family)
    for batch, length in shapes:
        feeds, expected = clear_sample(model, plan, batch, length)
        assert_close(onnx_outputs(graph, feeds)[0], expected, f"removed, {batch} x {length}, {plan.to_json()}")
        assert_close(gated_outputs(stages, plan, feeds)[0], expected, f"gated, {batch} x {length}, {plan.to_json()}")


def assert_close(found: Array, expected: Array, what: str = "") -> None:
    """Equal shapes, and values within TOLERANCE of the output's scale."""
    assert found.shape == expected.shape, what
    scale = max(float(np.abs(expected).max(initial=0)), 1e-6)
    worst = float(np.abs(found.astype(np.float64) - expected).max(initial=0)) / scale
    assert worst <= TOLERANCE, f"{what}: {worst:.1e} of the largest value"


def clear_sample(model: ZooModel, plan: Plan, batch: int, length: int) -> tuple[Feeds, Array]:
    """Feeds, and torch's answer to them, on which no hard attention hangs on the last bits of two near-equal probabilities.

    There float32 may order the two either way and both answers are right. Exact ties have tests of their own.
    """
    for seed in range(100):
        feeds = model.feeds(batch, length, seed=seed)
        with pytest.MonkeyPatch.context() as patch:
            margins: list[float] = [math.inf]
            patch.setattr(torch_oracle, "hard_softmax", functools.partial(_noting, torch_oracle.hard_softmax, margins))
            expected = torch_oracle.masked_outputs(model, feeds, plan)
        if min(margins) > _CLEAR:
            return feeds, expected
    raise AssertionError("no clear sample among 100")


def _noting(hard_softmax: Any, margins: list[float], scores: torch.Tensor, rule: Hard) -> torch.Tensor:
    soft = scores.double().softmax(dim=-1).sort(dim=-1, descending=True).values
    if rule.k < soft.shape[-1]:
        last, first = soft[..., rule.k - 1], soft[..., rule.k]
        margins.append(float(torch.where(last > 0, (last - first) / last, torch.ones_like(last)).min()))
    return hard_softmax(scores, rule)  # type: ignore[no-any-return]
