"""Run a tiny probe input once with every intermediate value exposed, so that all shapes and integers are concrete.

The runner comes from the caller (a session, or anything that can run a model), so this package needs no runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from axformer_passes.errors import ModelError
from axformer_passes.prepare import origin

Array = npt.NDArray[np.generic]
Runner = Callable[[bytes, Mapping[str, Array]], dict[str, Array]]
"""(serialized model, feeds by input name) -> every output by name; without graph optimisations."""

BATCH, TOKENS = 2, 5


def probe_feeds(model: ir.Model, batch: int = BATCH, tokens: int = TOKENS, seed: int = 0) -> dict[str, Array]:
    """Small inputs for every graph input: ids from 2 upwards, masks of ones, types of zeros, positions in order.

    A dynamic first axis becomes `batch`; every other dynamic axis `tokens`, the same symbol the same size.
    """
    rng = np.random.default_rng(seed)
    return {str(value.name): _probe(value, batch, tokens, rng) for value in model.graph.inputs}


def _probe(value: ir.Value, batch: int, tokens: int, rng: np.random.Generator) -> Array:
    if value.shape is None or value.dtype is None:
        raise ModelError(f"graph input {value.name!r} declares no shape or type; export it with both")
    shape = tuple(
        d if isinstance(d, int) else (batch if axis == 0 else tokens) for axis, d in enumerate(value.shape)
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
