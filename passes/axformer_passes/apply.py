"""Model + Plan -> Model: the one place where passes run, in a fixed order.

Reweight, prune, harden, lift, clean up; the exact rewrites before and behind the lifting (`rewrites/`); integers, then half
precision last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from axformer_passes.blocks import expanded, kind_of
from axformer_passes.cut import Harden, Prune, Weights, require_hardenable, reweight, weight_key
from axformer_passes.errors import AxformerError, PlanError, VerifyError
from axformer_passes.graph import PART_OF, Cleanup
from axformer_passes.halves import TYPES, halve
from axformer_passes.integers import products_of, quantise
from axformer_passes.io import detached, first_line
from axformer_passes.padding import remove_padding
from axformer_passes.plan import Plan
from axformer_passes.prepare import dequantised, is_quantised, prepared, take_decided
from axformer_passes.prepare.fused import lift
from axformer_passes.probe import Runner, widening
from axformer_passes.readout import NarrowedReadout, narrow_readout
from axformer_passes.recognise import Examined, examine
from axformer_passes.rewrites import REWRITES
from axformer_passes.stages import writable


def apply_plan(
    model: ir.Model,
    plan: Plan,
    runner: Runner,
    *,
    examined: Examined | None = None,
    weights: Weights | None = None,
    weights_of: Plan | None = None,
    fused: bool = True,
) -> ir.Model:
    """A new model: `model` with `plan` carried out. `model` is not touched; equal arguments give equal bytes.

    `examined` saves a walk where the caller has examined `model` already (`as_planned`, if the plan says so); it stays as it is.
    `fused` False leaves what came fused in primitive steps, as it is where a plan has integers.
    `weights` are those that the plan names (`plan.py` says what they may be), or those of `weights_of`, a plan that removes more.

    Raises: PlanError (does not fit), RecogniseError (an operator on the way cannot follow the cut), VerifyError (the result
    does not run on the probe, or its outputs changed shape: a bug, and no model).
    """
    if plan.weights is not None and weights is None:
        raise PlanError(f'the plan names its weights ("weights": {plan.weights!r:.80}), and none were given')
    if plan.is_empty and not weights and fused:
        clone = model.clone()
        Cleanup()(clone)
        return clone
    examined = examined.cloned() if examined else examine(as_planned(model, plan), runner)
    plan.validate(examined.anatomy)  # here too: onnx-ir wraps what a pass's own `requires` raises
    require_hardenable(model, plan)
    reweight(examined, weights_of or plan, weights or {})
    plan = expanded(plan, examined.anatomy)
    work = examined.labelling.model
    products = products_of(examined, plan, plan.int8) if plan.int8 else {}
    Prune(examined, plan)(work)
    Harden(examined.anatomy, plan, softmax_dtypes(examined))(work)
    chosen = [rewrite for rewrite in REWRITES.values() if getattr(plan, rewrite.name) == rewrite.on]
    for rewrite in chosen:
        if rewrite.walked is not None:
            Cleanup()(work)  # what a plan has cut off is no longer in the way
            rewrite.walked(work, runner)
    if fused and not plan.int8:
        lift(work)  # what is fused hides its products, and a fused product has no form in integers
    Cleanup()(work)
    for rewrite in chosen:
        if rewrite.lifted is not None:
            rewrite.lifted(work, runner)
            Cleanup()(work)
    if plan.int8:
        quantise(work, products, plan.int8)
        Cleanup()(work)
    if plan.half:
        halve(work, TYPES[plan.half.type], plan.half.float32, runner)
        Cleanup()(work)
    _forget_passes(work)
    _check(work, examined, runner)
    return work


def as_planned(model: ir.Model, plan: Plan) -> ir.Model:
    """`model` in the form that `plan` is carried out on: its float32 form, where the plan says "source": "dequantised".

    Raises: PlanError where it computes with integers in a way that has no form in floats.
    """
    if plan.source == "given" or not is_quantised(model):
        return model
    floats = dequantised(model)
    if floats is model:
        raise PlanError(
            'the plan says "source": "dequantised", but an operator of the model computes with integers that has no form in '
            "floats; give the model that the plan was made for"
        )
    return floats


def reweighted(
    model: ir.Model, plan: Plan, weights: Weights, runner: Runner, *, examined: Examined | None = None
) -> ir.Model:
    """A new model in the shapes of `model`: its output projections hold `weights`, with zeros at the rows that `plan` removes.

    Nothing is removed: `plan` through the gates of this model is what `apply_plan` makes of `model`. Fused nodes are lowered.
    `examined` as there.

    Raises: as `reweight`.
    """
    examined = examined.cloned() if examined else examine(model, runner)
    plan.validate(examined.anatomy)
    reweight(examined, plan, weights)
    work = examined.labelling.model
    Cleanup()(work)
    _forget_passes(work)
    return work


def narrowed(model: ir.Model, runner: Runner) -> tuple[ir.Model, NarrowedReadout]:
    """`model` with its read-out narrowed, and what was done; the model itself where that is not legal or saves nothing.

    It is what `apply_plan` makes of a plan that says `"readout": "narrow"` and nothing else. Raises: ModelError.
    """
    work = prepared(model)
    take_decided(work, runner)
    found = narrow_readout(work, runner)
    if not found.nodes:
        return model, found
    lift(work)
    Cleanup()(work)
    _forget_passes(work)
    return work, found


def of_real_tokens(model: ir.Model, runner: Runner) -> tuple[str, ...]:
    """The products of `model` that `"padding": "removed"` would compute for real tokens alone, by their first outputs.

    Raises: PlanError where that would not be exact, with the reason; ModelError.
    """
    work = prepared(model)
    take_decided(work, runner)
    lift(work)
    Cleanup()(work)
    return remove_padding(work, runner)


def with_biases(model: ir.Model, runner: Runner, *, examined: Examined | None = None) -> ir.Model:
    """`model` with a bias of zeros at every output projection that lacks one and can be given one; itself where none is missing.

    `examined` as in `apply_plan`.
    """
    examined = examined or examine(model, runner)
    missing: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}
    for layer in examined.anatomy.layers:
        for block in layer.blocks:
            place = writable(examined, layer.index, kind_of(block))
            if place is not None and place.bias is None:
                missing[weight_key(layer.index, kind_of(block), "bias")] = np.zeros(place.columns.size, np.float32)
    return reweighted(model, Plan(), missing, runner, examined=examined) if missing else model


def softmax_dtypes(examined: Examined) -> dict[int, np.dtype[np.generic]]:
    """Element type of each layer's probabilities, as probed."""
    return {
        layer.index: np.asarray(examined.labelling.values[layer.attention.softmax]).dtype
        for layer in examined.anatomy.layers
        if layer.attention is not None
    }


def _forget_passes(model: ir.Model) -> None:
    for key in ("axformer.names", "axformer.values", "axformer.made"):
        model.graph.meta.pop(key, None)
    for node in model.graph:
        for value in node.outputs:
            value.meta.pop(PART_OF, None)


def _check(model: ir.Model, examined: Examined, runner: Runner) -> None:
    """Run the probe once: the graph must run, and its outputs must have the source's shapes."""
    try:
        outputs = widening(runner)(detached(model), examined.labelling.feeds)
    except AxformerError as error:
        raise VerifyError(f"the pruned graph does not run: {first_line(error)}") from None
    for name, array in outputs.items():
        expected = np.shape(examined.labelling.values[name])
        if np.shape(array) != expected:
            raise VerifyError(f"output {name!r} of the pruned graph has shape {np.shape(array)}, expected {expected}")
