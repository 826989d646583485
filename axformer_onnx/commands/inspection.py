"""What is in a graph: layers, heads, neurons, parameters, share of compute, and what was not recognised."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from axformer_onnx.data import length_limit, read_json
from axformer_onnx.errors import RuntimeFailure
from axformer_onnx.inputs import locate
from axformer_onnx.probing import at_its_sizes, open_model, size_note, text_sizes
from axformer_onnx.runtime import run_once
from axformer_passes.anatomy import Anatomy
from axformer_passes.blocks import SharedGroup, parameters_by_layer, shared_groups
from axformer_passes.io import parameters_and_size, settings_folder, sha256_of


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """Parameters of a layer's projections and multiply-accumulates at the given shape.

    Norms are not counted; weights that several layers share count in the first of them.
    """

    parameters: int
    macs: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """One graph. `macs` is of the whole graph at batch 1 and `length` tokens; `layers` go with `anatomy.layers`.

    shared_weights   the layers that read the same weights, by kind of block
    notes            what a reader must know of the graph, in sentences
    """

    path: Path
    sha256: str
    anatomy: Anatomy
    parameters: int
    size_bytes: int
    length: int
    macs: int
    layers: tuple[LayerCost, ...]
    shared_weights: tuple[SharedGroup, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        layers = [dataclasses.asdict(cost) for cost in self.layers]
        shared = [dataclasses.asdict(group) for group in self.shared_weights]
        data = {**vars(self), "path": str(self.path), "layers": layers, "shared_weights": shared}
        return {"format": "axformer-inspect/1", **data, "anatomy": self.anatomy.to_json()}


_TOKENS = 128
_FEWER = (64, 32, 16, 8, 4, 2, 1)
"""Tried in turn where nothing says how many tokens the model takes."""
_SAMPLES = (16000, 4000)
"""The same for sound: a second of it at the usual rate, and a quarter."""


def inspect_model(
    model: Path,
    length: int | None = None,
    sample: Path | None = None,
    step: Callable[[str], None] = lambda text: None,
) -> Inspection:
    """Load, recognise and count; `length` None: 128 tokens (16,000 samples of sound), or as many as it takes.

    A checkpoint is exported into the user's cache.

    sample   an .npz file with inputs that the model takes

    Raises: UsageError for a sample that does not fit; ModelError, RecogniseError; RuntimeFailure where the model does not take
    `length` tokens.
    """
    from axformer_passes.recognise import recognise

    located = locate(model, None, None, step)
    path = located.path
    graph = open_model(path, sample)
    anatomy = at_its_sizes(graph, lambda graph: recognise(graph, run_once))
    parameters, size_bytes = parameters_and_size(path)
    most = min(_TOKENS, length_limit({}, read_json(settings_folder(path) / "config.json")))
    tokens, notes = text_sizes(graph)[1], [note for note in (size_note(graph), _form_note(graph)) if note]
    lengths = [tokens] if tokens else [length] if length else _lengths(graph, most)
    length, work, macs = _work(graph, anatomy, path, lengths)
    return Inspection(
        path=path,
        sha256=sha256_of(path),
        anatomy=anatomy,
        parameters=parameters,
        size_bytes=size_bytes,
        length=length,
        macs=macs,
        layers=tuple(map(LayerCost, parameters_by_layer(anatomy), work.values())),
        shared_weights=shared_groups(anatomy),
        notes=(*located.notes, *notes),
    )


def _form_note(graph: ir.Model) -> str:
    from axformer_passes.prepare import dequantised, is_quantised

    if not is_quantised(graph):
        return ""
    if dequantised(graph) is graph:
        return "the model is quantised, with operators that have no form in float32: optimize --search robust cuts it as it is"
    return (
        "the model is quantised: optimize dequantises it, cuts and refits it in float32, and quantises the result again"
    )


def _lengths(graph: ir.Model, most: int) -> list[int]:
    """Lengths to try in turn: tokens from `most` downwards; for sound, whose convolutions take some length, samples first."""
    tokens = [most, *(n for n in _FEWER if n < most)]
    inputs = [v for v in graph.graph.inputs if v.dtype is not None and v.shape is not None]
    sound = any(v.dtype.is_floating_point() and len(v.shape) == 2 for v in inputs)  # type: ignore[union-attr,arg-type]
    return [*_SAMPLES, *tokens] if sound else tokens


def _work(graph: ir.Model, anatomy: Anatomy, path: Path, lengths: list[int]) -> tuple[int, dict[int, int], int]:
    """(tokens, multiply-accumulates by layer, of the whole graph) at the first of `lengths` that the model takes."""
    from axformer_passes.blocks import macs, shares

    first: RuntimeFailure | None = None
    for length in lengths:
        work = {layer.index: 0 for layer in anatomy.layers}
        try:
            whole = macs(graph, run_once, 1, length)
            for share in shares(graph, anatomy, run_once, 1, length):
                work[share.layer] += share.macs
        except RuntimeFailure as error:
            first = first or error
            continue
        return length, work, whole
    raise RuntimeFailure(f"{path}: does not run with {lengths[0]} tokens; try another number with --length. {first}")
