"""One fused node alone: a model of it, its inputs, and what ONNX Runtime's own kernel answers.

Letters: B batch, S query tokens, T key tokens, D model width, H heads, G key/value heads, E head size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

Array = npt.NDArray[Any]
B, S, D, H, E = 2, 5, 12, 4, 3
WIDTH = H * E
MS = "com.microsoft"


@dataclasses.dataclass(frozen=True)
class Fused:
    """A fused node: operator, inputs in order (None: left out), which of them are constants, attributes, outputs.

    outputs   "" for one that is left out, "_..." one that nobody reads; "int..." are int32 vectors, the others floats
    rank      axes of the float outputs
    sized     the graph states the sizes of its inputs
    """

    op_type: str
    inputs: tuple[Array | None, ...]
    constants: tuple[int, ...] = ()
    attributes: dict[str, Any] = dataclasses.field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    domain: str = MS
    opset: int = 17
    rank: int = 3
    sized: bool = False

    @property
    def feeds(self) -> dict[str, Array]:
        """The graph's inputs."""
        return {f"i{n}": a for n, a in enumerate(self.inputs) if a is not None and n not in self.constants}

    def model(self) -> ir.Model:
        """The node alone in a graph, with everything about it that must survive: name, metadata, documentation."""
        names = [f"i{n}" if a is not None else "" for n, a in enumerate(self.inputs)]
        node = helper.make_node(
            self.op_type, names, self.outputs, name="the node", domain=self.domain, **self.attributes
        )
        node.doc_string = "said by the exporter"
        node.metadata_props.add(key="namespace", value="encoder.layer.0")
        ins = [
            helper.make_tensor_value_info(
                n,
                helper.np_dtype_to_tensor_dtype(a.dtype),
                list(a.shape) if self.sized else [f"{n}_{i}" for i in range(a.ndim)],
            )
            for n, a in self.feeds.items()
        ]
        kind = next(a.dtype for a in (self.feeds | self.weights).values() if a.dtype.kind == "f")
        out = helper.np_dtype_to_tensor_dtype(kind)
        outs = [
            helper.make_tensor_value_info(n, onnx.TensorProto.INT32, ["rows"])
            if n.startswith("int")
            else helper.make_tensor_value_info(n, out, [f"{n}_{i}" for i in range(self.rank)])
            for n in self.outputs
            if n and not n.startswith("_")
        ]
        weights = [numpy_helper.from_array(a, n) for n, a in self.weights.items()]
        graph = helper.make_graph([node], "one node", ins, outs, weights)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid(MS, 1)]
        return ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=10))

    @property
    def weights(self) -> dict[str, Array]:
        """The graph's initializers."""
        return {f"i{n}": a for n, a in enumerate(self.inputs) if a is not None and n in self.constants}


def operators(model: ir.Model) -> list[str]:
    """The operators of a graph in order."""
    return [node.op_type for node in model.graph]
