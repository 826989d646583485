"""OpenVINO: its runtime reads the portable graph as it is; its own format (IR) on request."""

from __future__ import annotations

import json

from axformer_onnx.deploying.reads import Reads
from axformer_onnx.deploying.target import Job, Target
from axformer_onnx.deploying.transformers_folder import write_config, write_tokenizer
from axformer_onnx.errors import RuntimeFailure
from axformer_onnx.options import TARGETS

COMPILED_WITH = {"EXECUTION_MODE_HINT": "ACCURACY"}
"""Keeps OpenVINO from computing in bfloat16, and from rounding activations beside weights stored in integers (with VNNI, AMX)."""
_START = """    pip install openvino

    import openvino as ov

    model = ov.Core().compile_model("{file}", "CPU", {hints})
    model({feeds})

Without the hint OpenVINO computes in bfloat16 where the CPU has it, and where it has VNNI or AMX it also rounds activations
beside weights stored in integers: faster, with other answers (bfloat16 moved the logits of a model by 0.07, both by 0.4)."""


class OpenVino(Target):
    """Its ONNX frontend looks at each operator, not at the number of the operator set."""

    name = "openvino"
    title = "OpenVINO"
    help = "OpenVINO's runtime"
    knows = ("openvino_ir",)
    reads = Reads(
        None,
        None,
        (),
        "OpenVINO 2026.4",
        "measured with openvino 2026.4.1: graphs that state operator sets 17 to 27 and IR versions 8 to 14",
    )
    hard = "yes: seen"
    int8 = "yes: seen; it rounds a sum now and then to the next integer"

    def place(self, job: Job) -> list[str]:
        """config.json, the tokenizer, and the IR where it is asked for."""
        write_config(job)
        write_tokenizer(job)
        if job.options.openvino_ir:
            _write_ir(job)
        return []

    def start(self, job: Job) -> str:
        """Compiling it."""
        feeds = "{" + ", ".join(f'"{name}": {name}' for name in job.inputs) + "}"
        file = "model.xml" if job.options.openvino_ir else "model.onnx"
        return _START.format(file=file, feeds=feeds, hints=json.dumps(COMPILED_WITH))


def _write_ir(job: Job) -> None:
    """model.xml and model.bin, weights in the types that the graph has. Raises: RuntimeFailure without openvino."""
    try:
        import openvino
    except ImportError as error:
        raise RuntimeFailure(f"--openvino-ir needs OpenVINO ({error}): pip install openvino") from None
    try:
        model = openvino.convert_model(str(job.folder / "model.onnx"))
        openvino.save_model(model, str(job.folder / "model.xml"), compress_to_fp16=False)
    except Exception as error:  # OpenVINO's own
        reason = " ".join(str(error).split())[:200]
        raise RuntimeFailure(f"model.onnx: OpenVINO does not convert it: {reason}. Leave --openvino-ir out") from None


OPENVINO = TARGETS.add(OpenVino())
