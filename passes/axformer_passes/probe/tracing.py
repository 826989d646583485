"""Run a tiny probe input once with every intermediate value exposed, so that all shapes and integers are concrete.

The runner comes from the caller (a session, or anything that can run a model), so this package needs no runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy.typing as npt
import onnx
import onnx_ir as ir

from axformer_passes.errors import AxformerError, ProbeError
from axformer_passes.graph import origin
from axformer_passes.io import Detached, detached
from axformer_passes.probe.float32_twin import widening
from axformer_passes.probe.inputs import BATCH, PATCHES, TOKENS, probe_feeds, probe_sizes
from axformer_passes.probe.recipe import recipe_of

Array = npt.NDArray[Any]
Runner = Callable[[Detached, Mapping[str, Array]], dict[str, Array]]
"""(model without its large weights, feeds by input name) -> every output by name; without graph optimisations."""


class Step(NamedTuple):
    """What is added to a probe: rows, times 2 tokens (of sound: its own number), times the patches of its images."""

    batch: int
    tokens: int
    patches: int


def probed(model: ir.Model, runner: Runner) -> tuple[dict[str, Array], dict[str, Array]]:
    """(feeds, values) of the first probe that the model accepts.

    Only models with open image sides, and inputs of numbers (sound) of open length, are tried more than once.
    Raises: ProbeError with the runner's own words; ModelError.
    """
    first: AxformerError | None = None
    for sizes in probe_sizes(model):
        feeds = probe_feeds(model, **sizes)
        try:
            return feeds, trace(model, runner, feeds)
        except AxformerError as error:
            first = first or error
    told = bool(recipe_of(model).sample)
    what, do = ("the sample", "") if told else ("a small probe input", "; give inputs that it takes: --sample FILE.npz")
    text = [*str(first).strip().splitlines(), repr(first)]
    raise ProbeError(f"the model does not run on {what}: {text[0][:300]}{do}")


def traced(
    model: ir.Model,
    runner: Runner,
    steps: Sequence[Step],
    *,
    padded: bool = False,
    names: Collection[str] | None = None,
) -> list[dict[str, Array]] | None:
    """The values of `model` on probes of several unlike sizes, one a step; None where it does not run at all of them.

    Sizes within a graph are polynomials in the sizes of its inputs: what is equal at several unlike ones is equal.

    padded   masks end in zeros, so that what is counted in them is no size
    names    of the values that are wanted; None: all that `trace` gives
    """
    for sizes in probe_sizes(model):
        tokens, patches = sizes.get("tokens", TOKENS), sizes.get("patches", PATCHES[0])
        width = 2 if tokens == TOKENS else tokens
        try:
            probes = [
                probe_feeds(
                    model, BATCH + step.batch, tokens + step.tokens * width, patches=patches * (1 + step.patches)
                )
                for step in steps
            ]
            return [trace(model, runner, _padded(feeds) if padded else feeds, names) for feeds in probes]
        except AxformerError:  # a graph of fixed sizes that declares open ones, say
            continue
    return None


def _padded(feeds: dict[str, Array]) -> dict[str, Array]:
    """The same with the last token masked, in the first row the last two."""
    found = dict(feeds)
    for name, array in feeds.items():
        if "mask" in name.lower() and array.ndim == 2 and array.shape[1] > 2:
            found[name] = array.copy()
            found[name][:, -1] = 0
            found[name][0, -2] = 0
    return found


def trace(
    model: ir.Model, runner: Runner, feeds: Mapping[str, Array], names: Collection[str] | None = None
) -> dict[str, Array]:
    """Every value of the main graph that depends on the inputs or holds integers, by name; of those in `names`, if it is given.

    Constants that merely move weights about (Transpose, Cast of an initializer) are left out: they are large and
    their shapes are known. A bfloat16 model that the runner refuses is run as its float32 twin (`float32_twin.py`).

    Raises: ModelError, RuntimeFailure where the model does not run.
    """
    graph = detached(model)
    proto = graph.proto
    if names is not None:
        del proto.graph.output[:]
    known = {output.name for output in proto.graph.output}
    for node in model.graph:
        for value in node.outputs:
            wanted = names is None or value.name in names
            if value.name and wanted and value.name not in known and origin(value) is None:
                proto.graph.output.append(onnx.ValueInfoProto(name=value.name))
    del proto.graph.value_info[:]
    return {**feeds, **widening(runner)(graph, feeds)}
