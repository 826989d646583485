"""The tokenizer that a Triton deployment holds, run as the server runs it: the same tokens as this tool's own."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import axformer_onnx as ax
from axformer_onnx.data import Encoder, Rows
from axformer_onnx.data.encoding import feeds

EXAMPLE = Path(__file__).parents[1] / "models" / "nli-mini"
PAIRS = [
    ("the cat sleeps", "an animal sleeps"),
    ("No dog runs fast today.", "a dog"),
    ("a " * 90, "some child sees a house"),
]


class Tensor:
    """The part of the server's Tensor that is used."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        return self.array


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`model.py` of a deployment, initialised as Triton does: with its configuration as JSON, from its own folder."""
    server = types.ModuleType("triton_python_backend_utils")
    server.get_input_tensor_by_name = lambda request, name: request[name]  # type: ignore[attr-defined]
    server.Tensor = Tensor  # type: ignore[attr-defined]
    server.TritonError = str  # type: ignore[attr-defined]
    server.InferenceResponse = lambda output_tensors, error=None: (output_tensors, error)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", server)
    folder = ax.deploy(EXAMPLE, tmp_path / "out", for_="triton", name="nli", tokenizer=True).path / "nli_tokenizer"
    spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (folder / "config.pbtxt").read_text()
    found = re.findall(r'key: "(\w+)" value: { string_value: "(\w+)" }', text)
    outputs = re.findall(r'name: "(\w+)"', text.partition("output [")[2])
    config = {
        "parameters": {key: {"string_value": value} for key, value in found},
        "output": [{"name": name} for name in outputs],
    }
    one = module.TritonPythonModel()
    one.initialize({"model_config": json.dumps(config), "model_repository": str(folder), "model_version": "1"})
    return one


def asked(model: Any, *rows: Any) -> tuple[dict[str, np.ndarray], Any]:
    texts = np.array([[text.encode() for text in row] for row in rows], dtype=object)
    ((tensors, error),) = model.execute([{"TEXT": Tensor("TEXT", texts)}])
    return {one.name: one.array for one in tensors}, error


@pytest.mark.parametrize("rows", [PAIRS, [(text,) for text, _ in PAIRS], PAIRS[:1]], ids=["pairs", "texts", "one"])
def test_the_server_makes_the_tokens_that_this_tool_makes(model: Any, rows: list[tuple[str, ...]]) -> None:
    encoded = Encoder.from_folder(EXAMPLE).encode(Rows(tuple(rows), np.zeros(len(rows)), "", ""))
    wanted = feeds(encoded, range(len(rows)), ["input_ids", "attention_mask", "token_type_ids"])
    found, error = asked(model, *rows)
    assert error is None and set(found) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].dtype == np.int64


def test_each_request_gets_its_own_answer(model: Any) -> None:
    requests = [
        {"TEXT": Tensor("TEXT", np.array([[text.encode()]], dtype=object))} for text in ("a cat", "the dog sleeps now")
    ]
    first, second = ({one.name: one.array for one in tensors} for tensors, _ in model.execute(requests))
    alone = [asked(model, (text,))[0]["input_ids"] for text in ("a cat", "the dog sleeps now")]
    assert first["input_ids"].shape[1] < second["input_ids"].shape[1], "padded to the longest of its own rows alone"
    np.testing.assert_array_equal(first["input_ids"], alone[0])
    np.testing.assert_array_equal(second["input_ids"], alone[1])


def test_a_row_of_three_strings_is_an_error_of_that_request(model: Any) -> None:
    tensors, error = asked(model, ("a", "b", "c"))
    assert tensors == {} and "3 strings a row, expected a text or a pair" in error
