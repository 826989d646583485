"""Does padding go from the graphs that a run writes? Said, or refused, before anything is searched."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from axformer_onnx.errors import PlanError, UsageError
from axformer_onnx.inputs import Given, OptimizeOptions
from axformer_onnx.runtime import run_once
from axformer_onnx.search import Journal
from axformer_passes.plan import Plan


def with_padding_chosen(
    options: OptimizeOptions, given: Given, start: Plan, journal: Journal, step: Callable[[str], None]
) -> Given:
    """The choice, and a note that says what it means. `start`: the exact rewrites of the plan.

    With `--padding measured` padding goes where it can go exactly and batches of the search rows are measured faster without it;
    the journal keeps what was measured.

    Raises: PlanError, UsageError where `--padding removed` cannot be done.
    """
    from axformer_passes.apply import of_real_tokens

    if options.padding == "kept":
        return given
    try:
        products = of_real_tokens(given.source.model, run_once)
    except PlanError as error:
        if options.padding == "removed":
            raise
        return _noted(given, f"padding stays: {error}")
    if not products:
        why = f"no product of {options.model} works on each token of a batch alone"
        if options.padding == "removed":
            raise UsageError(f"--padding removed: {why}")
        return _noted(given, f"padding stays: {why}")
    found = ""
    if options.padding == "measured":
        step("measuring batches without their padding")
        pays, measured = journal.fact("padding", lambda: _measured(options, given, start))
        if not pays:
            return _noted(given, f"padding stays, since removing it was not faster at all sizes: {measured}")
        found = f"{measured}; "
    work = f"{len(products)} products of the source are computed for the real tokens of a batch alone"
    return dataclasses.replace(_noted(given, f"padding is removed (exact): {found}{work}"), padding="removed")


def _measured(options: OptimizeOptions, given: Given, start: Plan) -> list[Any]:
    """[does it pay at every size?, what was measured in words]"""
    from axformer_onnx.scoring import PADDING_SIZES, padding_gains

    source, sizes = given.source, [size for size in options.batch if size > 1] or PADDING_SIZES
    found = padding_gains(
        source.model, source.examined, start, given.encoded["search"], sizes, options.machine, options.seed
    )
    words = ", ".join(gain.words for gain in found) or f"there are fewer than {min(sizes)} search rows"
    return [bool(found) and all(gain.pays for gain in found), words]


def _noted(given: Given, note: str) -> Given:
    return dataclasses.replace(given, notes=(*given.notes, note))


__all__ = ["with_padding_chosen"]
