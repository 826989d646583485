"""What is deployed: a graph, what it takes and answers, and the files beside it that say how texts become its inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from axformer_onnx.data import read_json
from axformer_onnx.errors import DataError, ModelError
from axformer_onnx.tasks import pooling_of

if TYPE_CHECKING:
    import onnx_ir as ir

Role = Literal["classification", "token-classification", "question-answering", "embedding", "other"]
Precision = Literal["float32", "int8", "fp16", "bf16"]
SAME_INPUT: Mapping[str, str] = {"input_mask": "attention_mask", "segment_ids": "token_type_ids"}
"""Names of old exports -> transformers' names."""
TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")
_INTEGERS = frozenset(
    {"MatMulInteger", "ConvInteger", "DequantizeLinear", "QLinearMatMul", "QLinearConv", "DynamicQuantizeMatMul"}
)
_TASKS = {"ForTokenClassification": "token-classification", "ForQuestionAnswering": "question-answering"}


def names_of(values: Iterable[ir.Value]) -> tuple[str, ...]:
    """Of a graph's inputs or outputs, in their order."""
    return tuple(str(value.name) for value in values)


@dataclasses.dataclass(frozen=True)
class Contents:
    """A graph and its folder.

    path        of the graph
    name        what a server calls it where nothing else is asked for
    settings    folder of its tokenizer and configuration
    model       the graph, with what its inputs are made of
    config      content of config.json; empty where there is none
    role        what it answers, by its outputs
    precision   of its weights
    hard        it has hard attention (TopK in front of the products with the values)
    """

    path: Path
    name: str
    settings: Path
    model: ir.Model
    config: Mapping[str, Any]
    role: Role
    precision: Precision
    hard: bool

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs."""
        return names_of(self.model.graph.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs."""
        return names_of(self.model.graph.outputs)

    @property
    def takes_text(self) -> bool:
        """Are its inputs those that a tokenizer makes?"""
        return bool({"input_ids"} & {SAME_INPUT.get(name, name) for name in self.inputs})

    @property
    def tokenizer_settings(self) -> dict[str, Any]:
        """Content of tokenizer_config.json."""
        return read_json(self.settings / "tokenizer_config.json")

    @property
    def pooling(self) -> str:
        """Which tokens make an embedder's vector: row (the graph pools), first, last, mean, max. Raises: ModelError."""
        if "sentence_embedding" in self.outputs:
            return "row"
        try:
            return pooling_of(self.settings)[0]
        except DataError as error:
            raise ModelError(str(error)) from None

    @property
    def normalises(self) -> bool:
        """Is a normalisation asked for behind the pooling (modules.json of sentence-transformers)?"""
        import json

        try:
            modules = json.loads((self.settings / "modules.json").read_text(encoding="utf-8"))
            return any(str(one["type"]).endswith("Normalize") for one in modules)
        except (OSError, ValueError, TypeError, KeyError):
            return False

    @property
    def width(self) -> int | None:
        """Numbers of an answer: the last axis of the first output, where the graph fixes it."""
        shape = self.model.graph.outputs[0].shape
        last = shape[-1] if shape is not None and len(shape) else None
        return last if isinstance(last, int) else None


def read_contents(path: Path, name: str | None = None) -> Contents:
    """Look at the graph at `path` and what lies beside it. `name`: of the model; None: that of its folder.

    Raises: ModelError; DataError for a config.json that is not JSON.
    """
    from axformer_onnx.probing import open_model
    from axformer_passes.io import settings_folder

    settings = settings_folder(path)
    model = open_model(path)
    config = read_json(settings / "config.json")
    operators = {node.op_type for node in model.graph.all_nodes()}
    return Contents(
        path=path,
        name=name or _plain(settings.resolve().name),
        settings=settings,
        model=model,
        config=config,
        role=_role(model, config),
        precision=_precision(model, operators),
        hard={"TopK", "ScatterElements"} <= operators,
    )


def _plain(name: str) -> str:
    """A folder's name with the letters that servers allow."""
    found = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "-" for letter in name)
    return found.lstrip("._-") or "model"


def _role(model: ir.Model, config: Mapping[str, Any]) -> Role:
    ranks = {str(value.name): len(value.shape) if value.shape is not None else None for value in model.graph.outputs}
    stated = next(
        (role for name in config.get("architectures") or () for end, role in _TASKS.items() if str(name).endswith(end)),
        "",
    )
    if ranks.get("sentence_embedding") == 2 or any(ranks.get(name) == 3 for name in TOKEN_OUTPUTS):
        return "embedding"
    if {"start_logits", "end_logits"} <= ranks.keys():
        return "question-answering"
    flat = [name for name, rank in ranks.items() if rank == 2]
    if ranks.get("logits") == 3 and stated == "token-classification":
        return "token-classification"
    return "classification" if "logits" in flat or len(flat) == 1 == len(ranks) else "other"


def _precision(model: ir.Model, operators: set[str]) -> Precision:
    import onnx_ir as ir

    if operators & _INTEGERS:
        return "int8"
    types = {value.const_value.dtype for value in model.graph.initializers.values() if value.const_value is not None}
    return "fp16" if ir.DataType.FLOAT16 in types else "bf16" if ir.DataType.BFLOAT16 in types else "float32"
