"""What is in a graph: layers, heads, neurons, parameters, share of compute, and what was not recognised."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from axformer_onnx.measure import parameters_and_size
from axformer_onnx.runtime import run_once
from axformer_onnx.tokenizer_files import length_limit, read_json
from axformer_passes.anatomy import Anatomy
from axformer_passes.files import load_model, model_path, sha256_of


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """Parameters of a layer's projections (norms are not counted), and multiply-accumulates at the given shape."""

    parameters: int
    macs: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """One graph. `macs` is of the whole graph at batch 1 and `length` tokens; `layers` go with `anatomy.layers`."""

    path: Path
    sha256: str
    anatomy: Anatomy
    parameters: int
    size_bytes: int
    length: int
    macs: int
    layers: tuple[LayerCost, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        layers = [dataclasses.asdict(cost) for cost in self.layers]
        data = {**vars(self), "path": str(self.path), "layers": layers, "anatomy": self.anatomy.to_json()}
        return {"format": "axformer-inspect/1", **data}


def inspect_model(model: Path, length: int | None = None) -> Inspection:
    """Load, recognise and count; `length` None: 128 tokens, or as many as the model takes.

    Raises: ModelError, RecogniseError; RuntimeFailure where the model does not take `length` tokens.
    """
    from axformer_passes.measure import macs, shares
    from axformer_passes.recognise import recognise

    path = model_path(model)
    length = length or min(128, length_limit({}, read_json(path.parent / "config.json")))
    graph = load_model(path)
    anatomy = recognise(graph, run_once)
    parameters, size_bytes = parameters_and_size(path)
    costs = {layer.index: LayerCost(0, 0) for layer in anatomy.layers}
    for share in shares(graph, anatomy, run_once, 1, length):
        before = costs[share.layer]
        costs[share.layer] = LayerCost(before.parameters + share.parameters, before.macs + share.macs)
    return Inspection(
        path=path,
        sha256=sha256_of(path),
        anatomy=anatomy,
        parameters=parameters,
        size_bytes=size_bytes,
        length=length,
        macs=macs(graph, run_once, 1, length),
        layers=tuple(costs.values()),
    )
