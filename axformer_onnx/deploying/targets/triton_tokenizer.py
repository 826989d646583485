"""The tokenizer as a model of Triton's Python backend; a deployment holds a copy of this file as `1/model.py`.

TEXT [rows, 1 or 2] of strings, a text or a pair a row -> the graph's inputs int64[rows, tokens], padded to the longest row.
It imports nothing of axformer-onnx: the server needs the packages tokenizers and numpy.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # of the server
from tokenizers import Tokenizer


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the tokenizer beside this file; its settings are `parameters` of config.pbtxt."""
        config = json.loads(args["model_config"])
        settings = {name: one["string_value"] for name, one in config["parameters"].items()}
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.names = [one["name"] for one in config["output"]]
        self.tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        self.tokenizer.enable_truncation(
            max_length=int(settings["max_length"]), strategy="longest_first", direction=settings["truncation_side"]
        )
        self.tokenizer.enable_padding(
            pad_id=int(settings["pad_id"]), pad_type_id=int(settings["pad_type_id"]), direction=settings["padding_side"]
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
        rows = [[_decoded(text) for text in row] for row in texts]
        if any(len(row) not in (1, 2) for row in rows):
            error = pb_utils.TritonError(f"TEXT has {len(rows[0])} strings a row, expected a text or a pair")
            return pb_utils.InferenceResponse(output_tensors=[], error=error)
        encodings = self.tokenizer.encode_batch([row[0] if len(row) == 1 else tuple(row) for row in rows])
        known = {
            "input_ids": np.array([one.ids for one in encodings], dtype=np.int64),
            "attention_mask": np.array([one.attention_mask for one in encodings], dtype=np.int64),
            "token_type_ids": np.array([one.type_ids for one in encodings], dtype=np.int64),
        }
        mask = known["attention_mask"]
        known["position_ids"] = (
            np.maximum(np.cumsum(mask, axis=1) - 1, 0) if mask.size and not mask[:, 0].all() else _counted(mask)
        )
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, known[name]) for name in self.names])


def _decoded(text: Any) -> str:
    return text.decode("utf-8") if isinstance(text, bytes) else str(text)


def _counted(mask: Any) -> Any:
    return np.tile(np.arange(mask.shape[1], dtype=np.int64), (len(mask), 1))
