"""The graph with its tokenizer and configuration, for any program of one's own."""

from __future__ import annotations

from axformer_onnx.deploying.reads import Reads
from axformer_onnx.deploying.target import Job, Target
from axformer_onnx.deploying.transformers_folder import write_config, write_tokenizer
from axformer_onnx.options import TARGETS

_START = """    import onnxruntime as ort

    session = ort.InferenceSession("model.onnx")
    session.run(None, {feeds})

`config.json` has the labels in the order of the outputs, and under `axformer_layers` what is left in each layer; `tokenizer.json`
is read by the package tokenizers."""


class Plain(Target):
    """As it is, or in the operator set and format that are asked for."""

    name = "plain"
    title = "any program"
    help = "the graph as it is with tokenizer and config.json"
    reads = Reads(
        None, None, ("ai.onnx.ml", "com.microsoft"), "any reader", "what --target-opset and --target-ir ask for"
    )
    hard = "as the reader has TopK and ScatterElements"
    int8 = "as the reader has MatMulInteger and DynamicQuantizeLinear"

    def place(self, job: Job) -> list[str]:
        """Configuration and tokenizer."""
        write_config(job)
        write_tokenizer(job)
        return []

    def start(self, job: Job) -> str:
        """A session."""
        return _START.format(feeds="{" + ", ".join(f'"{name}": {name}' for name in job.inputs) + "}")


PLAIN = TARGETS.add(Plain())
