"""MLServer: a model repository for its Open Inference Protocol v2, with the runtime of this package."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from axformer_onnx.deploying.reads import onnx_runtime
from axformer_onnx.deploying.target import Job, Target
from axformer_onnx.deploying.transformers_folder import require_texts, write_config, write_tokenizer
from axformer_onnx.errors import UsageError
from axformer_onnx.options import TARGETS

if TYPE_CHECKING:
    import onnx_ir as ir

RUNTIME = "axformer_onnx.serving.mlserver_runtime.OnnxRuntime"
_TYPES = {
    "FLOAT": "FP32", "FLOAT16": "FP16", "DOUBLE": "FP64", "INT64": "INT64", "INT32": "INT32", "INT8": "INT8", "UINT8": "UINT8",
    "BOOL": "BOOL", "STRING": "BYTES",
}  # fmt: skip
"""Types in the protocol's names."""
_START = """    pip install 'axformer-onnx[serve]' mlserver 'uvloop<0.22'
    mlserver start .

    curl localhost:8080/v2/models/{name}/infer -H 'Content-Type: application/json' -d '{request}'"""


class MlServer(Target):
    """`model-settings.json` as MLServer's documentation of ModelSettings has it; the runtime asks ONNX Runtime."""

    name = "mlserver"
    title = "MLServer"
    graph_place = "NAME/model.onnx"
    help = "MLServer's model repository (Open Inference Protocol v2)"
    knows = ("name", "max_batch")
    reads = onnx_runtime("1.21", "this package's requirement: onnxruntime>=1.21, which its runtime for MLServer uses")
    hard = "yes: seen in the server"
    int8 = "yes: seen in the server"

    def place(self, job: Job) -> list[str]:
        """model-settings.json, config.json and the tokenizer in the model's folder. Raises: UsageError without a tokenizer."""
        require_texts(job.contents, self.name)
        place = f"{job.contents.name}/"
        write_config(job, place=place)
        write_tokenizer(job, place=place)
        graph = job.model.graph
        settings = {
            "name": job.contents.name,
            "implementation": RUNTIME,
            "platform": "onnx",
            "inputs": [tensor_of(value) for value in graph.inputs],
            "outputs": [tensor_of(value) for value in graph.outputs],
            "parameters": {"uri": "./model.onnx", "version": "1", "extra": {"max_batch": job.options.max_batch}},
        }
        job.write({f"{place}model-settings.json": json.dumps(settings, indent=2) + "\n"})
        return []

    def start(self, job: Job) -> str:
        """Server and a request."""
        text = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["what your users write"]}
        return _START.format(name=job.contents.name, request=json.dumps({"inputs": [text]}))


def tensor_of(value: ir.Value) -> dict[str, Any]:
    """Name, type and shape of an input or output in the protocol's terms; -1: any size. Raises: UsageError for other types."""
    kind = value.dtype.name if value.dtype is not None else "no type"
    if kind not in _TYPES:
        raise UsageError(f"{value.name!r} is of {kind}, which the Open Inference Protocol has no name for")
    shape = [axis if isinstance(axis, int) else -1 for axis in value.shape or ()]
    return {"name": value.name, "datatype": _TYPES[kind], "shape": shape}


MLSERVER = TARGETS.add(MlServer())
