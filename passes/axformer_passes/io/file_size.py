"""Parameters and size of a model file, read without loading its weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from axformer_passes.io.reading import read_model


def parameters_and_size(path: str | Path) -> tuple[int, int]:
    """(parameters, size_bytes) of a model file.

    parameters  elements of all initializers and Constant nodes, subgraphs and functions included, that hold
                learned numbers: floats, and integers of 8 bits or fewer (quantised weights)
    size_bytes  the file, and the files with external data that it names

    Raises: ModelError for what is not a model.
    """
    import onnx_ir as ir

    path = Path(path)
    model = read_model(path)
    parameters, files = 0, {path.resolve()}
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            files.add((path.parent / str(tensor.location)).resolve())
        if tensor.dtype.is_floating_point() or (tensor.dtype.bitwidth <= 8 and tensor.dtype != ir.DataType.BOOL):
            parameters += tensor.size
    return parameters, sum(file.stat().st_size for file in files)


def _tensors(model: Any) -> Iterator[Any]:
    """Every constant tensor once: initializers of all graphs, values of Constant nodes."""
    import onnx_ir as ir

    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    containers = [model.graph, *model.functions.values()]
    for container in containers:
        for node in ir.traversal.RecursiveGraphIterator(container):
            if node.op_type == "Constant" and "value" in node.attributes:
                yield node.attributes["value"].as_tensor()
