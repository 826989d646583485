"""The forms that a runtime may compute faster than the portable graph, by name: each an exact rewrite of a finished graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import onnx_ir as ir
import onnx_ir.passes.common as common

from axformer_passes.graph import Cleanup
from axformer_passes.probe import Runner
from axformer_passes.runtime_forms.multi_head import fuse_attention
from axformer_passes.runtime_forms.packing import pack_products


@dataclasses.dataclass(frozen=True)
class Rewritten:
    """A model in another form.

    model     a new one
    changed   tensors at which something was rewritten; none: it is as it was
    left      why other places are as they were
    """

    model: ir.Model
    changed: tuple[str, ...]
    left: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RuntimeForm:
    """One form. `help`: what it is, in a sentence; `contrib`: it has operators of com.microsoft."""

    name: str
    help: str
    contrib: bool
    rewrite: Callable[[ir.Model, Runner], tuple[tuple[str, ...], tuple[str, ...]]]

    def of(self, model: ir.Model, runner: Runner) -> Rewritten:
        """`model`, which is not touched, in this form. Raises: ModelError."""
        work = model.clone()
        _lift_constants(work)
        changed, left = self.rewrite(work, runner)
        if not changed:
            return Rewritten(model.clone(), changed, left)
        Cleanup()(work)
        return Rewritten(work, changed, left)


def _lift_constants(model: ir.Model) -> None:
    """Constant nodes as initializers. onnx-ir renames their tensors, which the model that was cloned has, too: not those."""
    for node in model.graph:
        held = node.attributes.get("value") if node.op_type == "Constant" else None
        if held is not None:
            tensor = held.as_tensor()
            node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(tensor.numpy(), dtype=tensor.dtype))
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def _fused(model: ir.Model, runner: Runner) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = fuse_attention(model, runner)
    return found.outputs, found.left


def _packed(model: ir.Model, _: Runner) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return pack_products(model), ()


def _both(model: ir.Model, runner: Runner) -> tuple[tuple[str, ...], tuple[str, ...]]:
    packed = pack_products(model)
    fused, left = _fused(model, runner)
    return (*packed, *fused), left


RUNTIME_FORMS: dict[str, RuntimeForm] = {
    form.name: form
    for form in (
        RuntimeForm("fused", "each attention is one MultiHeadAttention, with the heads that it has left", True, _fused),
        RuntimeForm("packed", "products that read one tensor are one product", False, _packed),
        RuntimeForm("packed-fused", "both", True, _both),
    )
}
"""By name, in the order in which they are tried."""

__all__ = ["RUNTIME_FORMS", "Rewritten", "RuntimeForm"]
