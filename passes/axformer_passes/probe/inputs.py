"""Probe inputs: one small, valid input for every graph input, made of what was told of the graph (`recipe`), else of declared
shapes, types and names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from axformer_passes.errors import ModelError
from axformer_passes.graph import origin
from axformer_passes.probe.recipe import Recipe, recipe_of, resized

Array = npt.NDArray[Any]
BATCH, TOKENS = 2, 5


PATCHES = (14, 7, 4, 16, 24, 2, 3, 5, 6, 8, 10, 12, 32)
"""Image sides to try, in strides of the first convolution, where the graph leaves them open: common ones first."""


LENGTHS = (TOKENS, 64, 512, 4096, 32768)
"""Lengths to try where an input holds numbers, not ids: sound is read by strided convolutions, which need some length."""


_NO_NUMBERS = frozenset({ir.DataType.STRING, ir.DataType.UNDEFINED})
MOST_ELEMENTS = 2**28
"""Elements of one input: a graph that declares more cannot be tried on a small one."""


def probe_sizes(model: ir.Model) -> list[dict[str, int]]:
    """Arguments for `probe_feeds`, the likeliest first."""
    sample = recipe_of(model).sample
    if sample:
        return [{"tokens": _tokens_of(model, sample), "patches": _patches_of(model, sample)}]
    if any(convolved(v, 1) for v in model.graph.inputs):
        return [{"patches": n} for n in PATCHES]
    sound = any(v.dtype is not None and v.dtype.is_floating_point() for v in model.graph.inputs)
    return [{"tokens": n} for n in (LENGTHS if sound else LENGTHS[:1])]


def usual_tokens(model: ir.Model) -> int:
    """Tokens of its first probe."""
    return probe_sizes(model)[0].get("tokens", TOKENS)


def _tokens_of(model: ir.Model, sample: Mapping[str, Array]) -> int:
    """The size of the first open axis of a sample that is neither a batch nor a side of an image."""
    open_axes = (
        sample[str(v.name)].shape[axis]
        for v in model.graph.inputs
        for axis, size in enumerate(v.shape or ())
        if axis and not isinstance(size, int) and axis not in convolved(v, 1)
    )
    return next(open_axes, TOKENS)


def _patches_of(model: ir.Model, sample: Mapping[str, Array]) -> int:
    """Strides of the first convolution along the first side of a sample's image."""
    sides = ((sample[str(v.name)].shape[2], convolved(v, 1)[2]) for v in model.graph.inputs if 2 in convolved(v, 1))
    return next((max(1, side // stride) for side, stride in sides), PATCHES[0])


def probe_feeds(
    model: ir.Model, batch: int = BATCH, tokens: int = TOKENS, seed: int = 0, patches: int = PATCHES[0]
) -> dict[str, Array]:
    """Small inputs for every graph input: those that the recipe tells; else ids from 2 upwards, masks of ones, types of zeros,
    positions in order.

    A dynamic first axis becomes `batch`; every other dynamic axis `tokens`. What a convolution reads gets its channels and
    `patches` strides a side. Of a sample, open axes grow or shrink by as much as
    its tokens do.
    """
    rng, recipe = np.random.default_rng(seed), recipe_of(model)
    if recipe.sample:
        longer = tokens - _tokens_of(model, recipe.sample)
        wider = patches / _patches_of(model, recipe.sample)
        return {
            str(v.name): _of_sample(v, recipe.sample[str(v.name)], batch, longer, wider) for v in model.graph.inputs
        }
    return {str(value.name): _probe(value, batch, tokens, patches, rng, recipe) for value in model.graph.inputs}


def _of_sample(value: ir.Value, sample: Array, batch: int, longer: int, wider: float) -> Array:
    """The sample of one input with `batch` rows, `longer` tokens more and sides `wider` times as wide, where its axes are open."""
    sides = convolved(value, 1)
    shape = tuple(
        declared
        if isinstance(declared, int)
        else n
        if axis == 1 and sides
        else batch
        if axis == 0
        else max(1, round(n * wider) if axis in sides else n + longer)
        for axis, (declared, n) in enumerate(zip(value.shape or (), sample.shape, strict=True))
    )
    return resized(sample, shape)


def _probe(value: ir.Value, batch: int, tokens: int, patches: int, rng: np.random.Generator, recipe: Recipe) -> Array:
    if value.shape is None or value.dtype is None:
        raise ModelError(f"graph input {value.name!r} declares no shape or type; export it with both")
    open_axes = convolved(value, patches)
    shape = tuple(
        d if isinstance(d, int) else batch if axis == 0 else open_axes.get(axis, tokens)
        for axis, d in enumerate(value.shape)
    )
    if math.prod(max(n, 1) for n in shape) > MOST_ELEMENTS or min(shape, default=1) < 0:
        raise ModelError(
            f"graph input {value.name!r} is {shape}: more than {MOST_ELEMENTS} elements, or a negative size"
        )
    if value.dtype in _NO_NUMBERS or not isinstance(value.type, ir.TensorType):
        raise ModelError(f"graph input {value.name!r} is of type {value.type}, expected a tensor of numbers")
    name, dtype = str(value.name).lower(), value.dtype.numpy()
    if dtype.kind == "b" or "mask" in name:
        return np.ones(shape, dtype)
    if dtype.kind in "iu":
        if "type" in name or "segment" in name:
            return np.zeros(shape, dtype)
        if "position" in name:
            return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape).astype(dtype)
        sequence = recipe.sequence(name) if len(shape) == 2 else None
        return (sequence.rows(shape[0], shape[1], rng) if sequence else rng.integers(2, 8, shape)).astype(dtype)
    return np.asarray(rng.normal(size=shape)).astype(dtype)


def convolved(value: ir.Value, patches: int) -> dict[int, int]:
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
