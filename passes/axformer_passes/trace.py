"""Run a tiny probe input once with every intermediate value exposed, so that all shapes and integers are concrete.

The runner comes from the caller (a session, or anything that can run a model), so this package needs no runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from axformer_passes.errors import ModelError
from axformer_passes.prepare import origin

Array = npt.NDArray[Any]
Runner = Callable[[bytes, Mapping[str, Array]], dict[str, Array]]
"""(serialized model, feeds by input name) -> every output by name; without graph optimisations."""

BATCH, TOKENS = 2, 5


PATCHES = (14, 7, 4, 16, 24, 2, 3, 5, 6, 8, 10, 12, 32)
"""Image sides to try, in strides of the first convolution, where the graph leaves them open: common ones first."""


def probe_feeds(
    model: ir.Model, batch: int = BATCH, tokens: int = TOKENS, seed: int = 0, patches: int = PATCHES[0]
) -> dict[str, Array]:
    """Small inputs for every graph input: ids from 2 upwards, masks of ones, types of zeros, positions in order.

    A dynamic first axis becomes `batch`; every other dynamic axis `tokens`. What a convolution reads gets its channels and
    `patches` strides a side.
    """
    rng = np.random.default_rng(seed)
    return {str(value.name): _probe(value, batch, tokens, patches, rng) for value in model.graph.inputs}


def _probe(value: ir.Value, batch: int, tokens: int, patches: int, rng: np.random.Generator) -> Array:
    if value.shape is None or value.dtype is None:
        raise ModelError(f"graph input {value.name!r} declares no shape or type; export it with both")
    open_axes = _convolved(value, patches)
    shape = tuple(
        d if isinstance(d, int) else batch if axis == 0 else open_axes.get(axis, tokens)
        for axis, d in enumerate(value.shape)
    )
    name, dtype = str(value.name).lower(), value.dtype.numpy()
    if dtype.kind == "b" or "mask" in name:
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        if "type" in name or "segment" in name:
            return np.zeros(shape, dtype)
        if "position" in name:
            return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape).astype(dtype)
        return rng.integers(2, 8, shape).astype(dtype)
    return np.asarray(rng.normal(size=shape)).astype(dtype)


def _convolved(value: ir.Value, patches: int) -> dict[int, int]:
    """{axis: size} of an input that a convolution reads: its channels, and `patches` strides on every further axis."""
    for node in value.consumers():
        weight = origin(node.inputs[1]) if node.op_type == "Conv" else None
        if weight is None or weight.value.const_value is None:
            continue
        shape = weight.value.const_value.shape
        strides = list(node.attributes.get_ints("strides", [1] * (len(shape) - 2)))
        channels = int(shape[1]) * node.attributes.get_int("group", 1)  # type: ignore[arg-type]
        return {1: channels, **{2 + i: stride * patches for i, stride in enumerate(strides)}}
    return {}


def probed(model: ir.Model, runner: Runner) -> tuple[dict[str, Array], dict[str, Array]]:
    """(feeds, values) of the first probe that the model accepts.

    Only models with open image sides are tried more than once. Raises: ModelError with the runner's own words.
    """
    sizes = PATCHES if any(_convolved(v, 1) for v in model.graph.inputs) else PATCHES[:1]
    first: Exception | None = None
    for patches in sizes:
        feeds = probe_feeds(model, patches=patches)
        try:
            return feeds, trace(model, runner, feeds)
        except Exception as error:  # the runner's own kinds, which this package does not know
            first = first or error
    text = str(first).strip().splitlines()
    raise ModelError(f"the model does not run on a small probe input: {text[0][:300] if text else first!r}")


def trace(model: ir.Model, runner: Runner, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Every value of the main graph that depends on the inputs or holds integers, by name.

    Constants that merely move weights about (Transpose, Cast of an initializer) are left out: they are large and
    their shapes are known.
    """
    proto = ir.to_proto(model)
    known = {output.name for output in proto.graph.output}
    for node in model.graph:
        for value in node.outputs:
            if value.name and value.name not in known and origin(value) is None:
                proto.graph.output.append(onnx.ValueInfoProto(name=value.name))
    del proto.graph.value_info[:]
    return {**feeds, **runner(proto.SerializeToString(), feeds)}
