"""A transformer of any size whose weights take no room on disk: zeros, but for a number at the start of each matrix."""

from __future__ import annotations

import struct
from pathlib import Path

import onnx
from onnx import TensorProto, helper

info = helper.make_tensor_value_info


class _Data:
    """External tensors, one behind the other in one sparse file."""

    def __init__(self, name: str) -> None:
        self.name, self.end = name, 0
        self.starts: list[int] = []
        self.tensors: list[TensorProto] = []

    def weight(self, name: str, *dims: int) -> str:
        length = 4
        for n in dims:
            length *= n
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.name), ("offset", str(self.end)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        self.tensors.append(tensor)
        self.starts.append(self.end)
        self.end += length
        return name


def write_large(path: Path, layers: int, width: int, neurons: int) -> int:
    """A projection, then `layers` blocks x + Relu(norm(x) @ up) @ down; returns the bytes of its weights."""
    data = _Data(f"{path.name}.data")
    nodes, x = [helper.make_node("MatMul", ["x", data.weight("embed", width, width)], ["embedded"])], "embedded"
    for i in range(layers):
        names = {kind: f"layer{i}.{kind}" for kind in ("norm", "up", "active", "down", "sum")}
        scale = data.weight(f"layer{i}.scale", width)
        up, down = data.weight(f"layer{i}.w_up", width, neurons), data.weight(f"layer{i}.w_down", neurons, width)
        nodes += [
            helper.make_node("LayerNormalization", [x, scale], [names["norm"]], axis=-1),
            helper.make_node("MatMul", [names["norm"], up], [names["up"]]),
            helper.make_node("Relu", [names["up"]], [names["active"]]),
            helper.make_node("MatMul", [names["active"], down], [names["down"]]),
            helper.make_node("Add", [x, names["down"]], [names["sum"]]),
        ]
        x = names["sum"]
    nodes.append(helper.make_node("Identity", [x], ["y"]))
    shapes = [info(name, TensorProto.FLOAT, ["batch", "tokens", width]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "large", shapes[:1], shapes[1:], data.tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    with (path.parent / data.name).open("wb") as file:
        file.truncate(data.end)
        for number, start in enumerate(data.starts, 1):  # equal matrices would be taken for one
            file.seek(start)
            file.write(struct.pack("<f", number / 64))
    return data.end
