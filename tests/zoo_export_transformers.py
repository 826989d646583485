"""The exporter that comes with transformers 5, as the zoo uses it: batch and sequence dynamic, one file.

transformers            its default operator set
transformers-23         operator set 23
transformers-fused      its own fusion for ONNX Runtime on the CPU (`ort_fusions`): operators of com.microsoft
transformers-int8       its quantizer: weights int8, activations quantised at run time
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

Axes = dict[str, dict[int, str]]

HAS_TRANSFORMERS_EXPORTER = importlib.util.find_spec("transformers.exporters") is not None
EXPORTERS_5 = ("transformers",) if HAS_TRANSFORMERS_EXPORTER else ()


def by_transformers(
    module: Any, inputs: dict[str, Any], path: Path, how: str, axes: Axes, outputs: tuple[str, ...]
) -> None:
    """Write `module` to `path`. `how`: "" or what stands behind the dash in the exporter's name."""
    from transformers.exporters import OnnxConfig, OnnxExporter

    auto = torch.export.Dim.AUTO  # with named dimensions torch.export wants the ranges that the model allows
    shapes = {name: dict.fromkeys(axes[name], auto) for name in inputs}
    config = OnnxConfig(dynamic=True, dynamic_shapes=shapes, **_options(how))
    with _no_remarks():
        model = OnnxExporter().export(module, dict(inputs), config).program
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = name
    _name_dimensions(model, axes)
    ir.save(model, path)


def _name_dimensions(model: ir.Model, axes: Axes) -> None:
    """Call the dynamic dimensions of the inputs (s43, s53) what `axes` calls them, wherever they stand."""
    names = {
        value.shape[axis].value: name
        for value in model.graph.inputs
        for axis, name in axes.get(str(value.name), {}).items()
        if value.shape is not None and isinstance(value.shape[axis], ir.SymbolicDim)
    }
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        if value.shape is not None:
            dims = [d if isinstance(d, int) else names.get(d.value, d.value) for d in value.shape]
            value.shape = ir.Shape(dims)


@contextlib.contextmanager
def _no_remarks() -> Iterator[None]:
    """It remarks on every version of torch, onnx and onnxscript but one."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _options(how: str) -> dict[str, Any]:
    from transformers.exporters import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    if how == "fused":
        return {"ort_fusions": "cpu"}
    if how == "int8":
        return {"quantizer": OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig())}
    return {"opset_version": int(how)} if how else {}
