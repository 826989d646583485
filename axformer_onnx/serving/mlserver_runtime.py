"""The same model as a runtime of MLServer, for model repositories whose model-settings.json says

    {"name": "sst2", "implementation": "axformer_onnx.serving.mlserver_runtime.OnnxRuntime",
     "parameters": {"uri": ".", "extra": {"provider": "cpu", "threads": 2, "max_length": 128, "task": "sst2"}}}

`uri` names the folder of model.onnx, tokenizer.json and config.json, or a graph in it; everything in `extra` may be left out.
Batches are MLServer's: `max_batch_size` and `max_batch_time`, which join requests of texts of any length, and of ids of one length.

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
from axformer_onnx.serving.tensors import BadRequest, Tensor, TensorSpec, elements, read_tensor
from axformer_passes.io import model_path

MOST_ROWS = 4096
"""Rows of one request, or of what MLServer made of several."""
_EXTRA = frozenset({"provider", "threads", "max_length", "task"})


class OnnxRuntime(MLModel):  # type: ignore[misc]
    """Texts or token ids in, logits and what the task reads off them out; see the module."""

    async def load(self) -> bool:
        """Load graph and tokenizer, run once. Raises: AxformerError, which MLServer logs before it gives up."""
        path = model_path(Path(await get_model_uri(self._settings, wellknown_filenames=["model.onnx"])))
        extra: dict[str, Any] = getattr(self._settings.parameters, "extra", None) or {}
        unknown = extra.keys() - _EXTRA
        if unknown:
            said = f"parameters.extra has {', '.join(sorted(unknown))}; known: {', '.join(sorted(_EXTRA))}"
            raise UsageError(f"{self.name}: {said}")
        options = make(ServeOptions, {"model": path, **extra})
        self._answerer = Answerer.load(
            path, options.machine, task=options.task, max_length=options.max_length, name=self.name
        )  # fmt: skip
        self.inputs = [_metadata(one) for one in self._answerer.inputs()]
        self.outputs = [_metadata(one) for one in self._answerer.outputs()]
        await asyncio.to_thread(lambda: self._answerer.run(self._answerer.encode([("a",)])))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer. Raises: InferenceError (400) that names the field; MLServerError (500) where ONNX Runtime refuses."""
        try:
            answers = await asyncio.to_thread(self._answers, payload)
        except BadRequest as error:
            raise InferenceError(str(error)) from None
        except AxformerError as error:
            raise MLServerError(str(error), 500) from None
        return InferenceResponse(
            id=payload.id,
            model_name=self.name,
            model_version=self.version,
            outputs=[
                ResponseOutput(name=one.name, shape=one.shape, datatype=one.datatype, data=elements(one))
                for one in answers
            ],
        )

    def _answers(self, payload: InferenceRequest) -> list[Tensor]:
        answerer = self._answerer
        tensors = [_tensor(one, f"inputs[{i}]") for i, one in enumerate(payload.inputs)]
        encoded = read_rows(answerer, tensors, MOST_ROWS)
        asked = [one.name for one in payload.outputs or ()]
        known = [one.name for one in answerer.outputs()]
        for i, name in enumerate(asked):
            if name not in known:
                raise BadRequest(f"outputs[{i}].name", f"is {name!r:.60}, expected {', '.join(known)}")
        found = answerer.answers(answerer.run(encoded), encoded)
        return [one for one in found if one.name in (asked or known)]


def _tensor(given: RequestInput, field: str) -> Tensor:
    return read_tensor(
        given.name, str(getattr(given.datatype, "value", given.datatype)), given.shape, given.data.root, field
    )


def _metadata(one: TensorSpec) -> MetadataTensor:
    return MetadataTensor(**one.to_json())
