"""One model behind the Open Inference Protocol v2: texts or token ids in, answers of its task out, over HTTP.

`serve` is a server of our own for trying out and for load tests; `mlserver_runtime` is the same model as a runtime of MLServer.
"""

from __future__ import annotations

from axformer_onnx.serving.running import Started, serve

__all__ = ["Started", "serve"]
