"""The ranges of a static graph against its plan: every product reads what is rounded by the step that the plan names for it.

`verify` compares graphs whose activations are not rounded, so that a wrong step would not show there. This shares no code with
`axformer_passes.integers`: from each product of the written graph it walks back, and compares numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_onnx.errors import VerifyError
from axformer_passes.anatomy import Anatomy, AttentionBlock, Block
from axformer_passes.graph import constant
from axformer_passes.plan import Plan

Array = npt.NDArray[Any]
_ZEROS = {"static": np.array(0, np.int8), "static-uint8": np.array(128, np.uint8)}


def require_ranges(anatomy: Anatomy, plan: Plan, result: ir.Model) -> int:
    """Check every product of integers in `result`, `anatomy` with `plan` carried out; returns how many there are.

    A product that was taken out of a packed one has a name of its own; its step is one that the plan names for packed ones.

    Raises: VerifyError for a range that is not the plan's.
    """
    steps, packed = _steps(anatomy, plan)
    found, rounding = 0, set[ir.Node]()
    for node in result.graph:
        restored = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        if restored is None or restored.op_type != "DequantizeLinear":
            continue
        names = _names(node)
        wanted = next((steps[name] for name in names if name in steps), packed)
        rounding |= _require_range(names[0], wanted, _zero(plan), node.inputs[0])
        found += 1
    for node in result.graph:
        if node.op_type == "QuantizeLinear" and node not in rounding:
            raise VerifyError(f"{node.outputs[0].name!r} is rounded, and no product of integers reads it")
    return found


def _zero(plan: Plan) -> Array:
    assert plan.int8 is not None
    return _ZEROS[plan.int8.activations]


def _steps(anatomy: Anatomy, plan: Plan) -> tuple[dict[str, set[float]], set[float]]:
    """(steps by the output of each projection, those of projections that are packed in one product)."""
    assert plan.int8 is not None
    steps, packed = dict[str, set[float]](), set[float]()
    for layer in anatomy.layers:
        for kind, block in (("attention", layer.attention), ("feed_forward", layer.feed_forward)):
            known = plan.int8.scales.get(kind, {}).get(layer.index, {})
            for name, output in _outputs(block) if block is not None else ():
                if name in known:
                    packed |= {known[name]} if output in steps else set()
                    steps.setdefault(output, set()).add(known[name])
    return steps, packed


def _outputs(block: Block) -> Iterator[tuple[str, str]]:
    if isinstance(block, AttentionBlock):
        yield from (("query", block.query.output), ("key", block.key.output), ("value", block.value.output))
        yield "output", block.output.output
        return
    for number, linear in enumerate(block.up, start=1):
        yield "up" if number == 1 else f"up{number}", linear.output
    yield "down", block.down.output


def _names(product: ir.Node) -> list[str]:
    """Its own, and that of the sum with its bias."""
    after = [use.node for use in product.outputs[0].uses()]
    return [str(node.outputs[0].name) for node in (product, *after) if node is product or node.op_type == "Add"]


def _require_range(product: str, wanted: set[float], zero: Array, value: ir.Value | None) -> set[ir.Node]:
    """The QuantizeLinear that a product reads. Raises: VerifyError."""
    back = value.producer() if value is not None else None
    given = back.inputs[0] if back is not None and back.op_type == "DequantizeLinear" else None
    to = given.producer() if given is not None else None
    if back is None or to is None or to.op_type != "QuantizeLinear":
        raise VerifyError(f"{product!r} reads what is not rounded, but its weight is of integers")
    for node in (to, back):
        scale = constant(node.inputs[1])
        own = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if scale is None or scale.shape != () or scale.item() not in {np.float32(step).item() for step in wanted}:
            said = " or ".join(f"{step:.6g}" for step in sorted(wanted)) or "none"
            raise VerifyError(f"{product!r} reads what is rounded by steps of {scale}; the plan names {said}")
        if own is None or own.dtype != zero.dtype or own.shape != () or own != zero:
            raise VerifyError(
                f"{product!r} reads what is rounded with the zero point {own}, expected {zero} of {zero.dtype}"
            )
    return {to}


__all__ = ["require_ranges"]
