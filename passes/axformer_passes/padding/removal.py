"""Remove padding where that is exact; refuse with the reason where it is not.

Which operators work on each token alone follows from their records (`region`). That the mask hides padded tokens, and that no
output has entries of its own for them, is measured: the result must answer what the source answers, on rows of different length
whose masked ids are random.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from axformer_passes.errors import AxformerError, PlanError
from axformer_passes.graph import anchor, constant, find
from axformer_passes.io import detached, first_line
from axformer_passes.operators import QUANTISE, Probes, Stop, probes_of, record_of
from axformer_passes.padding.packing import LEAST_OPSET, pack
from axformer_passes.padding.region import Region, Tokens, is_product, region
from axformer_passes.probe import Array, Runner, Step, mask_inputs, probe_feeds, ragged, usual_tokens, widening
from axformer_passes.readout import picked, upstream

logger = logging.getLogger(__name__)
_STEPS = (Step(0, 0, 0), Step(1, 1, 0), Step(3, 3, 0))
_ROWS, _LONGER = 5, (1, 4)
"""Of the batches that are compared, and their tokens beside the probe's."""
_ROUNDED = 1e-4
"""Largest difference relative to the largest value: between two orders of the same float32 sums it stays below 1e-5."""


def remove_padding(model: ir.Model, runner: Runner) -> tuple[str, ...]:
    """Edit `model` in place, so that what works on each token alone does so for real tokens only; the caller cleans up.

    First outputs of the products that do so now; nothing is edited where there are none.
    Raises: PlanError where that would not be exact, or cannot be told.
    """
    tokens = _tokens(model, runner)
    found = region(tokens)
    products = tuple(anchor(node) for node in found if is_product(node))
    if not products:
        return ()
    always = [one for one in dict.fromkeys(_read(tokens, found)) if one != 0]  # where only ones count, the first is one
    trials = [ragged(model, probe_feeds(model, _ROWS, usual_tokens(model) + longer, seed=7)) for longer in _LONGER]
    before = [_answers(model, runner, feeds) for feeds in trials]
    pack(tokens, found, always)
    for feeds, expected in zip(trials, before, strict=True):
        _require_same(_answers(model, runner, feeds), expected, feeds[str(tokens.mask.name)].astype(bool))
    logger.info("padding: %d of %d nodes work on real tokens alone", len(found), len(model.graph))
    return products


def _tokens(model: ir.Model, runner: Runner) -> Tokens:
    opset = model.opset_imports.get("", 0)
    if opset < LEAST_OPSET:
        raise _refused(f"it needs operator set {LEAST_OPSET} or later, the model has {opset}; export it anew")
    if rounding := next((node for node in model.graph if node.op_type in QUANTISE), None):
        raise _refused(
            f"{rounding.op_type} {anchor(rounding)!r} rounds activations, with a range that padded tokens have a part in or that "
            "a last bit tips; start from the float model"
        )
    masks = mask_inputs(model)
    if len(masks) != 1:
        names = ", ".join(str(value.name) for value in masks) or "none"
        raise _refused(f"expected one input with a mask of two axes that says which tokens are real, found {names}")
    probes = probes_of(model, runner, _STEPS)
    tokens = None if probes is None else Tokens(probes, masks[0])
    if tokens is None or any(
        len(set(sizes)) < len(_STEPS) for sizes in zip(*tokens.probes.shape(masks[0]), strict=True)
    ):
        raise _refused("the graph runs at one size alone, so that its tokens cannot be told from other axes")
    return tokens


# -- what outputs read whatever the mask says ----------------------------------------------------------------------------


def _read(tokens: Tokens, found: Region) -> Iterator[int | ir.Value]:
    """Positions of single tokens that are read of what real tokens make; int[B]: one for each row."""
    made = {value for node in found for value in node.outputs}
    inside = set(found)
    for node in tokens.probes.model.graph:
        if node in found or not node.inputs or node.inputs[0] not in made:
            continue
        if record_of(node).orderly:
            made.update(node.outputs)  # another shape, and then the pick
        for one in _picked(tokens.probes, node):
            if isinstance(one, int) or not inside.intersection(upstream([one.producer()])):  # type: ignore[list-item]
                yield one


def _picked(probes: Probes, node: ir.Node) -> Iterator[int | ir.Value]:
    index = constant(node.inputs[1]) if node.op_type == "Gather" else None
    if index is not None and index.dtype.kind in "iu" and node.attributes.get_int("axis", 0) == 1:
        yield from (int(i) for i in index.reshape(-1))
        return
    if node.op_type == "GatherND" and node.attributes.get_int("batch_dims", 0) == 1 and node.inputs[1] is not None:
        if all(len(s) > 1 and np.prod(s[1:]) == 1 for s in probes.shape(node.inputs[1])):
            yield node.inputs[1]
        return
    try:
        rows = picked(probes, node)
    except Stop:
        return
    if rows is not None:
        yield from [find(probes.model.graph, rows.tokens)] if isinstance(rows.tokens, str) else rows.tokens


# -- is it exact? ---------------------------------------------------------------------------------------------------------


def _answers(model: ir.Model, runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
    try:
        found = widening(runner)(detached(model), feeds)
    except AxformerError as error:
        raise _refused(f"the graph does not run on rows of different length: {first_line(error)}") from None
    return {str(value.name): np.asarray(found[str(value.name)]) for value in model.graph.outputs}


def _require_same(found: Mapping[str, Array], expected: Mapping[str, Array], mask: Array) -> None:
    for name, array in expected.items():
        difference = _difference(array, found[name])
        if difference <= _ROUNDED:
            continue
        if array.shape[:2] == mask.shape and _difference(array[mask], found[name][mask]) <= _ROUNDED:
            raise _refused(
                f"output {name!r} has entries for padded tokens, which would hold those of others; "
                "end the graph in what is read of it (a pooled embedding, an answer for each row)"
            )
        raise _refused(
            f"output {name!r} changes by {difference:.1e} of its largest value on rows of different length: "
            "padded tokens are read there, or the mask does not hide them"
        )


def _difference(expected: Array, found: Array) -> float:
    """Relative to the largest value; infinite where shapes differ, or one alone is no number."""
    if expected.shape != found.shape:
        return float("inf")
    a, b = expected.astype(np.float64), found.astype(np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return float("inf")
    a, b = np.where(np.isfinite(a), a, 0), np.where(np.isfinite(b), b, 0)
    return float(np.abs(a - b).max(initial=0.0) / max(float(np.abs(a).max(initial=0.0)), 1e-6))


def _refused(reason: str) -> PlanError:
    return PlanError(f'"padding": "removed" is not possible: {reason}')


__all__ = ["remove_padding"]
