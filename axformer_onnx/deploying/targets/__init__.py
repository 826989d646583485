"""The targets that `--for` names, a file each: who reads a deployment, what it understands, where its files go.

A target is one file that registers one object with `options.TARGETS`; it is listed here (docs/adding-a-deploy-target.md).
"""

from __future__ import annotations

from axformer_onnx.deploying.targets.triton import TRITON

from axformer_onnx.deploying.targets.tei import TEI  # isort: skip  the order of --help
from axformer_onnx.deploying.targets.mlserver import MLSERVER  # isort: skip
from axformer_onnx.deploying.targets.transformersjs import TRANSFORMERSJS  # isort: skip
from axformer_onnx.deploying.targets.sentence_transformers import SENTENCE_TRANSFORMERS  # isort: skip
from axformer_onnx.deploying.targets.optimum import OPTIMUM  # isort: skip
from axformer_onnx.deploying.targets.fastembed import FASTEMBED  # isort: skip
from axformer_onnx.deploying.targets.openvino import OPENVINO  # isort: skip
from axformer_onnx.deploying.targets.plain import PLAIN  # isort: skip

__all__ = [
    "FASTEMBED", "MLSERVER", "OPENVINO", "OPTIMUM", "PLAIN", "SENTENCE_TRANSFORMERS", "TEI", "TRANSFORMERSJS", "TRITON",
]  # fmt: skip
