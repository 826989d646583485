"""The fourth way from torch to ONNX: the exporter that comes with transformers 5 (torch.export, with patches per model).

B batch, S tokens.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

Axes = Mapping[str, Mapping[int, str]]


def has_transformers_exporter() -> bool:
    """Whether the installed transformers has an exporter: 5 and later."""
    return installed_version() is not None and importlib.util.find_spec("transformers.exporters") is not None


def installed_version() -> str | None:
    """Version of transformers; None: not installed."""
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return None


def write(module: Any, inputs: dict[str, Any], axes: Axes, outputs: list[str], opset: int, folder: Path) -> Path:
    """Export `module` into `folder`, weights beside the graph; returns the graph's path.

    inputs   example tensors by name, int64[B, S] or float32 images
    axes     {input: {axis: name of the dynamic dimension}}
    outputs  names of the outputs, in the module's order

    Raises: whatever the traced code raises.
    """
    import torch
    from transformers.exporters import OnnxConfig, OnnxExporter

    # AUTO: a named dimension must be given the range that the model's position table allows.
    shapes = {name: dict.fromkeys(axes[name], torch.export.Dim.AUTO) for name in inputs}
    config = OnnxConfig(dynamic=True, dynamic_shapes=shapes, opset_version=opset)
    exporter = OnnxExporter()
    model = exporter.export(module, dict(inputs), config).program
    found = [str(value.name) for value in model.graph.outputs]
    if found != outputs:
        raise ValueError(f"outputs {', '.join(found)}, expected {', '.join(outputs)}")
    name_dimensions(model, axes)
    exporter.save_program(model, folder / "model.onnx")
    return folder / "model.onnx"


def name_dimensions(model: ir.Model, axes: Axes) -> None:
    """Call the dynamic dimensions of the inputs what `axes` calls them, in every shape that the graph states.

    torch.export numbers them: s43, s53.
    """
    names = {
        dim.value: name
        for value in model.graph.inputs
        for axis, name in axes.get(str(value.name), {}).items()
        if value.shape is not None and isinstance(dim := value.shape[axis], ir.SymbolicDim)
    }
    for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else names.get(d.value, d.value) for d in value.shape])
