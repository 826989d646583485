"""Four ways from torch to ONNX: optimum, dynamo (torch.export), torchscript (tracing), and transformers' own (5 and later).

Each writes a raw file; `graph.finish` gives it stable names. Nothing here decides whether it is right: `check` does.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any, Literal, get_args

from axformer_onnx.errors import ModelError, RuntimeFailure, UsageError
from axformer_onnx.exporting import by_transformers
from axformer_onnx.exporting.check import random_inputs
from axformer_onnx.exporting.checkpoint import HEADS, INSTALL, Checkpoint
from axformer_onnx.exporting.quiet import one_line, quiet

Exporter = Literal["optimum", "dynamo", "torchscript", "transformers"]
EXPORTERS: tuple[Exporter, ...] = get_args(Exporter)

OF_MODULES: tuple[Exporter, ...] = ("dynamo", "torchscript")
"""Those that write any torch module; the others know transformers' own classes alone."""

# Operator sets that each exporter writes without a conversion afterwards: lowest, highest, default. 18 is read by
# ONNX Runtime since 1.14; torch's tracer calls itself complete up to 17 only.
OPSETS: dict[Exporter, tuple[int, int, int]] = {
    "optimum": (14, 20, 18),
    "dynamo": (18, 23, 18),
    "torchscript": (14, 20, 17),
    "transformers": (18, 23, 18),
}


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One way to export that shall be tried."""

    exporter: Exporter
    opset: int


def attempts(exporter: str, opset: int | None, able: tuple[Exporter, ...] = EXPORTERS) -> list[Attempt]:
    """What to try, in order. `auto`: all that are installed, in the order of EXPORTERS.

    able  those that can write this kind of model

    Raises: UsageError for an operator set that the exporter does not write; RuntimeFailure for one that is not installed.
    """
    if exporter not in ("auto", *EXPORTERS):
        raise UsageError(f"unknown exporter {exporter!r}; exporters: auto, {', '.join(EXPORTERS)}")
    absent = _absent()
    if exporter in absent:
        raise RuntimeFailure(absent[exporter])
    names = [name for name in EXPORTERS if exporter in ("auto", name) and name not in absent]
    if not any(name in able for name in names):
        raise UsageError(
            f"--exporter {exporter} does not write sentence-transformers folders; exporters: {', '.join(able)}"
        )
    names = [name for name in names if name in able]
    fit = [name for name in names if opset is None or OPSETS[name][0] <= opset <= OPSETS[name][1]]
    if not fit:
        ranges = "; ".join(f"{name} {OPSETS[name][0]} to {OPSETS[name][1]}" for name in names)
        raise UsageError(f"operator set {opset} is not written by the exporter; possible: {ranges}")
    return [Attempt(name, OPSETS[name][2] if opset is None else opset) for name in fit]


def _absent() -> dict[str, str]:
    """The exporters that are not installed, each with what to do."""
    absent = {}
    if not has_optimum():
        absent["optimum"] = (
            "optimum-onnx is not installed, or not for this version of transformers (it needs 4.57): "
            f"--exporter dynamo, or {INSTALL} 'transformers<5'"
        )
    if not by_transformers.has_transformers_exporter():
        absent["transformers"] = (
            f"transformers {by_transformers.installed_version() or '(none installed)'} has no exporter, expected version "
            "5 or later: --exporter dynamo, or, where no optimum-onnx is installed, pip install 'transformers>=5'"
        )
    return absent


def has_optimum() -> bool:
    """optimum-onnx is installed and its exporter can be imported."""
    if importlib.util.find_spec("optimum") is None:
        return False
    try:
        with quiet():
            import optimum.exporters.onnx  # noqa: F401
    except Exception:  # an optimum for another transformers fails in its own way
        return False
    return True


def write_raw(checkpoint: Checkpoint, attempt: Attempt, folder: Path) -> Path:
    """Export into `folder` (weights may lie beside the graph) and return the graph's path.

    Raises: ModelError with the exporter's first line.
    """
    by = {
        "optimum": _by_optimum,
        "dynamo": _by_dynamo,
        "torchscript": _by_torchscript,
        "transformers": _by_transformers,
    }[attempt.exporter]
    try:
        with quiet():
            return by(checkpoint, attempt.opset, folder)
    except Exception as error:  # exporters raise whatever the traced code raises
        others = ", ".join(name for name in EXPORTERS if name != attempt.exporter)
        raise ModelError(
            f"{checkpoint.name}: {attempt.exporter} cannot export {type(checkpoint.module).__name__} to operator "
            f"set {attempt.opset}: {one_line(error)}. Other exporters: {others}"
        ) from None


def _by_optimum(checkpoint: Checkpoint, opset: int, folder: Path) -> Path:
    from optimum.exporters.onnx import onnx_export_from_model

    task = HEADS[checkpoint.head][1]
    onnx_export_from_model(checkpoint.module, folder, task=task, opset=opset, do_validation=False)
    return folder / "model.onnx"


def _by_dynamo(checkpoint: Checkpoint, opset: int, folder: Path) -> Path:
    import torch

    inputs, outputs = _example(checkpoint)
    dims = {name: torch.export.Dim(name) for name in ("batch_size", "sequence_length")}
    path = folder / "model.onnx"
    torch.onnx.export(
        checkpoint.module, (), str(path), kwargs=inputs, dynamo=True, opset_version=opset, verbose=False,
        input_names=list(inputs), output_names=outputs, external_data=True,
        dynamic_shapes={name: {i: dims[d] for i, d in _axes(v).items()} for name, v in inputs.items()},
    )  # fmt: skip
    return path


def _by_torchscript(checkpoint: Checkpoint, opset: int, folder: Path) -> Path:
    import torch

    inputs, outputs = _example(checkpoint)
    path = folder / "model.onnx"
    axes = {name: _axes(value) for name, value in inputs.items()}
    torch.onnx.export(
        checkpoint.module, (inputs,), str(path), dynamo=False, opset_version=opset,
        input_names=list(inputs), output_names=outputs,
        dynamic_axes={**axes, **{name: {0: "batch_size"} for name in outputs}},
    )  # fmt: skip
    return path


def _by_transformers(checkpoint: Checkpoint, opset: int, folder: Path) -> Path:
    inputs, outputs = _example(checkpoint)
    axes = {name: _axes(value) for name, value in inputs.items()}
    return by_transformers.write(checkpoint.module, inputs, axes, outputs, opset, folder)


def _example(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """Inputs to trace with (padded: a full mask may be optimised away) and the names of the outputs."""
    import torch

    checkpoint.config.use_cache = False
    checkpoint.config.return_dict = True
    arrays = random_inputs(checkpoint, 2, min(7, checkpoint.longest), padded=True, seed=0)
    inputs = {name: torch.from_numpy(value) for name, value in arrays.items()}
    with torch.no_grad():
        return inputs, list(checkpoint.module(**inputs).keys())


def _axes(value: Any) -> dict[int, str]:
    return {0: "batch_size", 1: "sequence_length"} if value.ndim == 2 else {0: "batch_size"}
