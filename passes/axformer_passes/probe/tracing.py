"""Run a tiny probe input once with every intermediate value exposed, so that all shapes and integers are concrete.

The runner comes from the caller (a session, or anything that can run a model), so this package needs no runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir

from axformer_passes.errors import ModelError
from axformer_passes.graph import origin
from axformer_passes.io import Detached, detached
from axformer_passes.probe.float32_twin import widening
from axformer_passes.probe.inputs import probe_feeds, probe_sizes

Array = npt.NDArray[Any]
Runner = Callable[[Detached, Mapping[str, Array]], dict[str, Array]]
"""(model without its large weights, feeds by input name) -> every output by name; without graph optimisations."""


def probed(model: ir.Model, runner: Runner) -> tuple[dict[str, Array], dict[str, Array]]:
    """(feeds, values) of the first probe that the model accepts.

    Only models with open image sides, and inputs of numbers (sound) of open length, are tried more than once.
    Raises: ModelError with the runner's own words.
    """
    first: Exception | None = None
    for sizes in probe_sizes(model):
        feeds = probe_feeds(model, **sizes)
        try:
            return feeds, trace(model, runner, feeds)
        except Exception as error:  # the runner's own kinds, which this package does not know
            first = first or error
    text = str(first).strip().splitlines()
    raise ModelError(f"the model does not run on a small probe input: {text[0][:300] if text else first!r}")


def trace(model: ir.Model, runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Every value of the main graph that depends on the inputs or holds integers, by name.

    Constants that merely move weights about (Transpose, Cast of an initializer) are left out: they are large and
    their shapes are known. A bfloat16 model that the runner refuses is run as its float32 twin (`widen.py`).
    """
    graph = detached(model)
    proto = graph.proto
    known = {output.name for output in proto.graph.output}
    for node in model.graph:
        for value in node.outputs:
            if value.name and value.name not in known and origin(value) is None:
                proto.graph.output.append(onnx.ValueInfoProto(name=value.name))
    del proto.graph.value_info[:]
    return {**feeds, **widening(runner)(graph, feeds)}
