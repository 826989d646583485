"""How the zoo's models become ONNX files, and where the files are kept.

An exporter's name may carry what was done to the file afterwards, "torchscript-eager-17+ort+int8": see zoo_variants.

Files lie in tests/.cache/zoo/<versions>/, so a second run exports nothing; a file lock lets
several test processes share them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from zoo_export_transformers import EXPORTERS_5, by_transformers

ALL_EXPORTERS = (
    "optimum",
    "torchscript-eager-14",
    "torchscript-eager-17",
    "torchscript-sdpa-14",
    "torchscript-sdpa-17",
    "dynamo-18",
    "dynamo-20",
    "dynamo-23",
    "dynamo-eager-20",
)
# optimum-onnx does not go together with transformers 5: where it is absent the rest of the zoo still stands.
HAS_OPTIMUM = importlib.util.find_spec("optimum") is not None
EXPORTERS = (*(e for e in ALL_EXPORTERS if e != "optimum" or HAS_OPTIMUM), *EXPORTERS_5)


Axes = dict[str, dict[int, str]]


@dataclasses.dataclass(frozen=True)
class Interface:
    """A graph's inputs and outputs, as the exporters are told.

    axes      {input or output: {axis: name of the dynamic dimension}}; None: batch and sequence of every input
    outputs   names of the module's outputs, as the file shall have them
    task      what optimum calls the module's purpose
    shapes    sizes of optimum's example inputs, where its own do not fit
    """

    axes: Axes | None = None
    outputs: tuple[str, ...] = ("logits",)
    task: str = "text-classification"
    shapes: Mapping[str, int] = dataclasses.field(default_factory=dict)


def cached(
    key: str,
    exporter: str,
    fresh: Callable[[str], Any],
    example: dict[str, Any],
    interface: Interface = Interface(),
) -> Path:
    """The file for `key`; exported now if it is not there. `fresh(attention)` makes the torch module."""
    base, *variants = exporter.split("+")
    path = _exported(key.replace(exporter, base), base, fresh, example, interface)
    if variants:
        from zoo_variants import varied

        return varied(path, variants, fresh, example)
    return path


def _exported(
    key: str, exporter: str, fresh: Callable[[str], Any], example: dict[str, Any], interface: Interface
) -> Path:
    folder = _cache()
    path = folder / f"{key}.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{key}.lock"):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=folder) as temporary, quiet():
                os.replace(_export(exporter, fresh, example, Path(temporary), interface), path)
    return path


def _export(
    exporter: str, fresh: Callable[[str], Any], example: dict[str, Any], folder: Path, interface: Interface
) -> Path:
    kind, *rest = exporter.split("-")
    if kind == "optimum":
        return _by_optimum(fresh("default"), folder, interface)
    if kind == "transformers":
        return _by_transformers(fresh("default"), example, folder, "".join(rest), interface)
    module = fresh(rest[0] if len(rest) == 2 else "default")
    inputs = {name: torch.from_numpy(value) for name, value in example.items()}
    path = folder / "model.onnx"
    by = {"dynamo": _by_dynamo, "torchscript": _by_torchscript}[kind]
    by(module, inputs, path, int(rest[-1]), interface.axes or _axes(inputs), interface.outputs)
    return path


def _by_optimum(module: Any, folder: Path, interface: Interface) -> Path:
    from optimum.exporters.onnx import onnx_export_from_model

    bare = getattr(module, "inner", module)
    more = {"do_validation": False, "monolith": True, **interface.shapes}
    onnx_export_from_model(bare, folder, task=interface.task, **more)
    return folder / "model.onnx"


def _by_transformers(module: Any, example: dict[str, Any], folder: Path, how: str, interface: Interface) -> Path:
    inputs = {name: torch.from_numpy(value) for name, value in example.items()}
    path = folder / "model.onnx"
    by_transformers(module, inputs, path, how, interface.axes or _axes(inputs), interface.outputs)
    return path


def _axes(inputs: dict[str, Any]) -> Axes:
    text = {0: "batch_size", 1: "sequence_length"}
    return {name: text if value.ndim == 2 else {0: "batch_size"} for name, value in inputs.items()}


def _by_torchscript(
    module: Any, inputs: dict[str, Any], path: Path, opset: int, axes: Axes, outputs: tuple[str, ...]
) -> None:
    with torch.no_grad():
        logits = module(**inputs).logits
    first = axes[next(iter(inputs))]
    named = {outputs[0]: first if logits.ndim == 3 else {0: "batch_size"}, **axes}
    torch.onnx.export(
        module, (inputs,), str(path), dynamo=False, opset_version=opset, dynamic_axes=named,
        input_names=list(inputs), output_names=list(outputs),
    )  # fmt: skip


def _by_dynamo(
    module: Any, inputs: dict[str, Any], path: Path, opset: int, axes: Axes, outputs: tuple[str, ...]
) -> None:
    dims = {name: torch.export.Dim(name) for inner in inputs for name in axes[inner].values()}
    shapes = {name: {i: dims[d] for i, d in axes[name].items()} for name in inputs}
    _read_operators_once()
    torch.onnx.export(
        module, (), str(path), kwargs=inputs, dynamo=True, opset_version=opset, dynamic_shapes=shapes,
        input_names=list(inputs), output_names=list(outputs), external_data=False, verbose=False,
    )  # fmt: skip


@functools.cache
def _read_operators_once() -> None:
    """The exporter reads the signatures of all operators anew in every call: from here on once for each operator set."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print and warn much that says nothing about the graph; an export that fails still raises."""
    noisy = (
        "torch.onnx",
        "torch.onnx._internal.exporter._registration",
        "optimum.exporters.onnx",
        "onnxscript",
        "onnxruntime",
        "root",
    )
    before = {name: logging.getLogger(name).level for name in noisy}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in noisy:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


def _cache() -> Path:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    if EXPORTERS_5:
        digest.update(Path(__file__).with_name("zoo_export_transformers.py").read_bytes())
    for package in (
        "torch",
        "transformers",
        "onnxscript",
        "onnx",
        *(("optimum-onnx",) if HAS_OPTIMUM else ()),
    ):
        digest.update(importlib.metadata.version(package).encode())
    return Path(__file__).parent / ".cache" / "zoo" / digest.hexdigest()[:16]
