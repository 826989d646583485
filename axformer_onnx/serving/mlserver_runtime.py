"""The same model as a runtime of MLServer, for model repositories whose model-settings.json says

    {"name": "sst2", "implementation": "axformer_onnx.serving.mlserver_runtime.OnnxRuntime",
     "parameters": {"uri": ".", "extra": {"threads": 2, "max_batch": 32, "max_length": 128, "task": "sst2"}}}

`uri` names the folder of model.onnx, tokenizer.json and config.json, or a graph in it; `extra` takes options of `serve`, and may
be left out. Requests are batched here, as in `serve`: leave MLServer's own `max_batch_size` at 0. It joins whatever tensors come,
so that a request of pairs and one of single texts, or one malformed request, spoil the batch for all.

This is the one module that imports mlserver, which needs an environment of its own.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from mlserver import MLModel
from mlserver.errors import InferenceError, MLServerError
from mlserver.types import InferenceRequest, InferenceResponse, MetadataTensor, RequestInput, ResponseOutput
from mlserver.utils import get_model_uri

from axformer_onnx.errors import AxformerError, UsageError
from axformer_onnx.options import ServeOptions, make
from axformer_onnx.serving.answering import Answerer
from axformer_onnx.serving.asking import read_rows
from axformer_onnx.serving.batching import Batcher, QueueFull, policy_of
from axformer_onnx.serving.metrics import Metrics
from axformer_onnx.serving.tensors import BadRequest, Tensor, TensorSpec, elements, read_tensor
from axformer_passes.io import model_path

_EXTRA = ("provider", "threads", "max_length", "task", "max_batch", "max_delay", "max_queue")


class OnnxRuntime(MLModel):  # type: ignore[misc]
    """Texts or token ids in, logits and what the task reads off them out; see the module."""

    async def load(self) -> bool:
        """Load graph and tokenizer, run once. Raises: AxformerError, which MLServer logs before it gives up."""
        path = model_path(Path(await get_model_uri(self._settings, wellknown_filenames=["model.onnx"])))
        extra: dict[str, Any] = getattr(self._settings.parameters, "extra", None) or {}
        unknown = sorted(extra.keys() - set(_EXTRA))
        if unknown:
            raise UsageError(f"{self.name}: parameters.extra has {', '.join(unknown)}; known: {', '.join(_EXTRA)}")
        options = make(ServeOptions, {"model": path, "name": self.name, **extra})
        self._answerer = await asyncio.to_thread(Answerer.of, options, path)
        self._most_rows = options.max_queue
        self._batcher = Batcher(self._answerer.run, policy_of(options, self._answerer.reading.encoder), Metrics())
        self._batcher.start()
        self.inputs = [_metadata(one) for one in self._answerer.inputs()]
        self.outputs = [_metadata(one) for one in self._answerer.outputs()]
        return True

    async def unload(self) -> bool:
        """Answer what waits, then let go."""
        await self._batcher.stop()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer. Raises: InferenceError (400) that names the field; MLServerError: 503 for a full queue, 500 where ONNX Runtime
        refuses."""
        try:
            answers = await self._answers(payload)
        except BadRequest as error:
            raise InferenceError(str(error)) from None
        except AxformerError as error:
            raise MLServerError(str(error), 503 if isinstance(error, QueueFull) else 500) from None
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            model_version=self.version,
            outputs=[
                ResponseOutput(name=one.name, shape=one.shape, datatype=one.datatype, data=elements(one))
                for one in answers
            ],
        )

    async def _answers(self, payload: InferenceRequest) -> list[Tensor]:
        answerer = self._answerer
        known = [one.name for one in answerer.outputs()]
        asked = [one.name for one in payload.outputs or ()]
        for i, name in enumerate(asked):
            if name not in known:
                raise BadRequest(f"outputs[{i}].name", f"is {name!r:.60}, expected {', '.join(known)}")
        tensors = [_tensor(one, f"inputs[{i}]") for i, one in enumerate(payload.inputs)]
        encoded = await asyncio.to_thread(read_rows, answerer, tensors, self._most_rows)
        ran = await self._batcher.submit(encoded)
        return [one for one in answerer.answers(ran.outputs, encoded) if one.name in (asked or known)]


def _tensor(given: RequestInput, field: str) -> Tensor:
    datatype = str(getattr(given.datatype, "value", given.datatype))
    return read_tensor(given.name, datatype, given.shape, given.data.root, field)


def _metadata(one: TensorSpec) -> MetadataTensor:
    return MetadataTensor(**one.to_json())
