"""The pruned model that a refit runs: its heads and neurons are cut out, the rest of the plan is left to gates.

    inside of a block   heads or neurons, as long as some are left: gone from the graph, so that a run costs what is left of it
    the rest            whole blocks, blocks without any head or neuron, hard attention: gates, as in any search

so that layers, blocks and stages are called as in the source. Where that cannot be had, everything is left to gates.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from axformer_onnx.errors import PlanError, RecogniseError, VerifyError
from axformer_onnx.runtime import run_once
from axformer_onnx.scoring import StageSessions
from axformer_passes.apply import apply_plan, reweighted
from axformer_passes.blocks import BlockKind, gone_classes, inputs_of, kind_of
from axformer_passes.integers import simulated
from axformer_passes.plan import Plan
from axformer_passes.stages import writable

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_passes.cut import Weights
    from axformer_passes.recognise import Examined
    from axformer_passes.stages import Stage

logger = logging.getLogger(__name__)


def pruned_sessions(
    source: StageSessions, plan: Plan, weights: Weights, threads: int | None
) -> tuple[StageSessions, Plan]:
    """The model with these weights, as small as it can be, and what is left of the plan for its gates.

    plan, weights   as `expanded` and `reweighted` want them
    """
    inside, rest = divided(plan, source.staged.examined)
    if not inside.is_exact:
        try:
            model = apply_plan(
                source.model, inside, run_once, examined=source.examined, weights=weights, weights_of=plan
            )
            cut = StageSessions(_rounding(model, plan, inside), provider=source.provider, threads=threads)
            if _blocks_of_stages(cut) == _blocks_of_stages(source):
                return cut, rest
            reason = "other stages"
        except (PlanError, RecogniseError, VerifyError) as error:
            reason = str(error)
        logger.info("the refit runs at full width: %s", reason)
    model = _rounding(reweighted(source.model, plan, weights, run_once, examined=source.examined), plan, Plan())
    return StageSessions(model, provider=source.provider, threads=threads), plan


def _rounding(model: ir.Model, plan: Plan, gone: Plan) -> ir.Model:
    """The model that computes in float32 what its integers will, where the plan has some; `gone`: what it lacks already."""
    if not plan.int8:
        return model
    return simulated(model, dataclasses.replace(plan.int8.without_neurons(gone.neurons), tables=0), run_once)


def divided(plan: Plan, examined: Examined) -> tuple[Plan, Plan]:
    """(heads and neurons of blocks that stay and keep some; the rest of the plan)."""
    inside: dict[BlockKind, dict[int, frozenset[int]]] = {"attention": {}, "feed_forward": {}}
    for layer in examined.anatomy.layers:
        for block in layer.blocks:
            if gone_classes(examined, plan, layer.index, block):
                kind = kind_of(block)
                units = plan.heads if kind == "attention" else plan.neurons
                inside[kind][layer.index] = units[layer.index]
    heads, neurons = inside["attention"], inside["feed_forward"]
    rest = dataclasses.replace(plan, heads=_without(plan.heads, heads), neurons=_without(plan.neurons, neurons))
    return Plan(heads=heads, neurons=neurons), rest


def _without(units: Mapping[int, frozenset[int]], taken: Mapping[int, frozenset[int]]) -> dict[int, frozenset[int]]:
    return {layer: ids for layer, ids in units.items() if layer not in taken}


def _blocks_of_stages(sessions: StageSessions) -> list[list[tuple[int, BlockKind, bool, bool]]]:
    """By stage its blocks: can it be bypassed, and does it make what their output projections read?"""
    examined = sessions.staged.examined

    def described(stage: Stage, layer: int, kind: BlockKind) -> tuple[int, BlockKind, bool, bool]:
        there = writable(examined, layer, kind) is not None
        made = there and inputs_of(examined, layer, kind).name in sessions.staged.made_in(stage)
        return layer, kind, stage.can_bypass, made

    return [[described(stage, b.layer, b.kind) for b in stage.blocks] for stage in sessions.stages]


__all__ = ["divided", "pruned_sessions"]
