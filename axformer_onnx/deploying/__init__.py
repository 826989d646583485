"""Deployments: a graph as a server or a client library reads it, with the files beside it and the lines that start it.

Takes a run's folder or any graph with its tokenizer, and a target of `targets`; gives a folder that needs no editing.
"""

from __future__ import annotations

from axformer_onnx.deploying.config_file import config_of, dumped
from axformer_onnx.deploying.contents import Contents
from axformer_onnx.deploying.deployment import Deployment, deploy
from axformer_onnx.deploying.interface import Interface
from axformer_onnx.deploying.reads import ONNX_RUNTIME, Reads, onnx_runtime
from axformer_onnx.deploying.target import Job, Target, target_named

__all__ = [
    "ONNX_RUNTIME", "Contents", "Deployment", "Interface", "Job", "Reads", "Target", "config_of", "deploy", "dumped",
    "onnx_runtime", "target_named",
]  # fmt: skip
