"""Equal weights that an exporter wrote several times: one initializer again.

    MatMul(x, a[I,O])   MatMul(y, b[I,O]), b equal to a byte for byte   ->   MatMul(x, a)   MatMul(y, a)

torch's dynamo exporter folds the transposes of a shared weight (ALBERT) into one matrix for each layer that reads it; without this
nobody sees that these layers share their weights, and the file holds every copy. Only matrices that projections alone read are
compared, so nothing else in the graph is touched; two matrices of different meaning are never equal by chance.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from axformer_passes.graph.values import CHAIN_OPS

READERS = CHAIN_OPS | {
    "MatMul", "Gemm", "Conv", "MatMulInteger", "FusedMatMul", "DynamicQuantizeMatMul", "Attention", "QAttention",
}  # fmt: skip
"""Types of nodes that read the matrix of a projection, in whatever domain."""
_FUSED = frozenset({"Attention", "QAttention"})  # these hold biases, too
_SAMPLE = 512
"""Bytes from the start of a matrix that tell nearly all different ones apart, so that few are read as a whole."""


def merge_copies(graph: ir.Graph) -> int:
    """Merge equal matrices that projections alone read; returns how many went."""
    first: dict[object, list[ir.Value]] = {}
    merged = 0
    for name, value in list(graph.initializers.items()):
        if not _is_projection(graph, value):
            continue
        alike = first.setdefault(_sample(value), [])
        same = next((known for known in alike if np.array_equal(_bytes(known), _bytes(value))), None)
        if same is None:
            alike.append(value)
            continue
        value.replace_all_uses_with(same)
        del graph.initializers[name]
        merged += 1
    return merged


def _is_projection(graph: ir.Graph, value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.size < 2 or value.is_graph_output():
        return False
    readers = READERS if len(tensor.shape) > 1 else _FUSED
    number = tensor.dtype.is_floating_point() or tensor.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
    users = [use.node for use in value.uses()]
    return number and bool(users) and all(node.graph is graph and node.op_type in readers for node in users)


def _sample(value: ir.Value) -> object:
    tensor = value.const_value
    assert tensor is not None
    return tensor.dtype, tuple(tensor.numpy().shape), _bytes(value)[:_SAMPLE].tobytes()


def _bytes(value: ir.Value) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    assert value.const_value is not None
    array = np.ascontiguousarray(value.const_value.numpy())
    return array.reshape(-1).view(np.uint8)
