"""Model + Plan -> Model: the one place where passes run, in a fixed order: prune, harden, clean up."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.cleanup import Cleanup
from axformer_passes.errors import VerifyError
from axformer_passes.files import serialized
from axformer_passes.harden import Harden, require_hardenable
from axformer_passes.plan import Plan
from axformer_passes.prune import Prune
from axformer_passes.recognise import Examined, examine
from axformer_passes.trace import Runner


def apply_plan(model: ir.Model, plan: Plan, runner: Runner, *, examined: Examined | None = None) -> ir.Model:
    """A new model: `model` with `plan` carried out. `model` is not touched; equal arguments give equal bytes.

    `examined` saves the second walk where the caller has just examined `model` himself; it is used up by this call.

    Raises: PlanError (does not fit), RecogniseError (an operator on the way cannot follow the cut), VerifyError (the result
    does not run on the probe, or its outputs changed shape: a bug, and no model).
    """
    if plan.is_empty:
        clone = model.clone()
        Cleanup()(clone)
        return clone
    examined = examined or examine(model, runner)
    plan.validate(examined.anatomy)  # here too: onnx-ir wraps what a pass's own `requires` raises
    require_hardenable(model, plan)
    work = examined.labelling.model
    Prune(examined, plan)(work)
    Harden(examined.anatomy, plan, softmax_dtypes(examined))(work)
    Cleanup()(work)
    _forget_passes(work)
    _check(work, examined, runner)
    return work


def softmax_dtypes(examined: Examined) -> dict[int, np.dtype[np.generic]]:
    """Element type of each layer's probabilities, as probed."""
    return {
        layer.index: np.asarray(examined.labelling.values[layer.attention.softmax]).dtype
        for layer in examined.anatomy.layers
        if layer.attention is not None
    }


def _forget_passes(model: ir.Model) -> None:
    model.graph.meta.pop("axformer.names", None)


def _check(model: ir.Model, examined: Examined, runner: Runner) -> None:
    """Run the probe once: the graph must run, and its outputs must have the source's shapes."""
    try:
        outputs = runner(serialized(model), examined.labelling.feeds)
    except Exception as error:  # the runner's own kinds
        raise VerifyError(f"the pruned graph does not run: {str(error).strip().splitlines()[0][:300]}") from None
    for name, array in outputs.items():
        expected = np.shape(examined.labelling.values[name])
        if np.shape(array) != expected:
            raise VerifyError(f"output {name!r} of the pruned graph has shape {np.shape(array)}, expected {expected}")
