"""Graphs of a few nodes for tests of deployments: classifiers and embedders with the faces that old and new exporters write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tiny_folder
from onnx import TensorProto, helper, numpy_helper

CONFIG = {
    "architectures": ["BertForSequenceClassification"], "model_type": "bert", "hidden_size": 3, "num_hidden_layers": 1,
    "max_position_embeddings": 64, "vocab_size": 100, "pad_token_id": 0, "id2label": {"0": "no", "1": "maybe", "2": "yes"},
}  # fmt: skip


def classifier(
    *,
    inputs: Sequence[str] = ("input_ids", "attention_mask"),
    output: str = "logits",
    id_type: int = TensorProto.INT64,
    float_type: int = TensorProto.FLOAT,
    axes: Sequence[str | int] = ("batch",),
    opset: int = 17,
    ir: int = 8,
    tokens: bool = False,
    extra: Sequence[onnx.NodeProto] = (),
) -> onnx.ModelProto:
    """[batch, 3] = mean over real tokens of a table's rows; tokens: the rows themselves, [batch, sequence, 3].

    inputs   the ids, then the mask; extra ones are not read
    axes     names of the output's first axes
    extra    nodes in front of the last, which reads "mean"
    """
    ids, mask = inputs[:2]
    table = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", ids], ["rows"], name="embed"),
        helper.make_node("Cast", [mask], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["rows", "mask3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "first"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "first"], ["count"], keepdims=1),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        *extra,
    ]
    last = "masked" if tokens else extra[-1].output[0] if extra else "mean"
    nodes.append(helper.make_node("Cast", [last], [output], to=float_type, name="answer"))
    constants = {"table": table, "last": np.array([-1]), "first": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, id_type, ["batch", "sequence"]) for name in inputs],
        [helper.make_tensor_value_info(output, float_type, [*axes, 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    domains = {"": opset, **{node.domain: 1 for node in extra if node.domain}}
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*one) for one in domains.items()], ir_version=ir
    )
    onnx.checker.check_model(model)
    return model


def folder_of(path: Path, model: onnx.ModelProto, config: dict[str, Any] | None = None) -> Path:
    """A model folder with a tokenizer; returns it."""
    path.mkdir(parents=True)
    onnx.save(model, path / "model.onnx")
    tiny_folder._tokenizer().save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return path
