"""How the zoo's models become ONNX files, and where the files are kept.

Files lie in tests/.cache/zoo/<versions>/, so a second run exports nothing; a file lock lets
several test processes share them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

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
EXPORTERS = tuple(e for e in ALL_EXPORTERS if e != "optimum" or HAS_OPTIMUM)


def cached(key: str, exporter: str, fresh: Callable[[str], Any], example: dict[str, Any]) -> Path:
    """The file for `key`; exported now if it is not there. `fresh(attention)` makes the torch module."""
    folder = _cache()
    path = folder / f"{key}.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{key}.lock"):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=folder) as temporary, quiet():
                os.replace(_export(exporter, fresh, example, Path(temporary)), path)
    return path


def _export(exporter: str, fresh: Callable[[str], Any], example: dict[str, Any], folder: Path) -> Path:
    kind, *rest = exporter.split("-")
    if kind == "optimum":
        return _by_optimum(fresh("default"), folder)
    module = fresh(rest[0] if len(rest) == 2 else "default")
    inputs = {name: torch.from_numpy(value) for name, value in example.items()}
    path = folder / "model.onnx"
    by = {"dynamo": _by_dynamo, "torchscript": _by_torchscript}[kind]
    by(module, inputs, path, int(rest[-1]))
    return path


def _by_optimum(module: Any, folder: Path) -> Path:
    from optimum.exporters.onnx import onnx_export_from_model

    name = type(module).__name__
    task = {
        "ViTForImageClassification": "image-classification",
        "GPT2ForTokenClassification": "token-classification",
    }
    onnx_export_from_model(module, folder, task=task.get(name, "text-classification"), do_validation=False)
    return folder / "model.onnx"


def _axes(inputs: dict[str, Any]) -> dict[str, dict[int, str]]:
    text = {0: "batch_size", 1: "sequence_length"}
    return {name: text if value.ndim == 2 else {0: "batch_size"} for name, value in inputs.items()}


def _by_torchscript(module: Any, inputs: dict[str, Any], path: Path, opset: int) -> None:
    with torch.no_grad():
        logits = module(**inputs).logits
    axes = {**_axes(inputs), "logits": _axes(inputs)["input_ids"] if logits.ndim == 3 else {0: "batch_size"}}
    torch.onnx.export(
        module, (inputs,), str(path), dynamo=False, opset_version=opset, dynamic_axes=axes,
        input_names=list(inputs), output_names=["logits"],
    )  # fmt: skip


def _by_dynamo(module: Any, inputs: dict[str, Any], path: Path, opset: int) -> None:
    dims = {name: torch.export.Dim(name) for name in ("batch_size", "sequence_length")}
    shapes = {name: {i: dims[d] for i, d in axes.items()} for name, axes in _axes(inputs).items()}
    torch.onnx.export(
        module, (), str(path), kwargs=inputs, dynamo=True, opset_version=opset, dynamic_shapes=shapes,
        input_names=list(inputs), output_names=["logits"], external_data=False, verbose=False,
    )  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print and warn much that says nothing about the graph; an export that fails still raises."""
    noisy = (
        "torch.onnx",
        "torch.onnx._internal.exporter._registration",
        "optimum.exporters.onnx",
        "onnxscript",
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
    for package in (
        "torch",
        "transformers",
        "onnxscript",
        "onnx",
        *(("optimum-onnx",) if HAS_OPTIMUM else ()),
    ):
        digest.update(importlib.metadata.version(package).encode())
    return Path(__file__).parent / ".cache" / "zoo" / digest.hexdigest()[:16]
