"""A classifier of a few nodes for tests of sessions and scores: the mean over real tokens of a table's rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Table = npt.NDArray[np.float32]


def tiny_classifier(table: Table, output: str = "logits", id_type: int = TensorProto.INT64) -> bytes:
    """Inputs input_ids, attention_mask [batch, sequence]; output [batch, classes] = mean of table[ids]."""
    shape = ["batch", "sequence"]
    inputs = [helper.make_tensor_value_info(name, id_type, shape) for name in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", table.shape[1]])]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["rows", "mask3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "first"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "first"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], [output]),
    ]
    constants = {"table": table, "last": np.array([-1]), "first": np.array([1])}
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def save_classifier(path: Path, table: Table) -> Path:
    """The same as a file."""
    path.write_bytes(tiny_classifier(table))
    return path
