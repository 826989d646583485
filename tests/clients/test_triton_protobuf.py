"""config.pbtxt as Triton's own protobuf reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients_fixtures import KINDS, deployed

pytest.importorskip("tritonclient.grpc", reason="a client: make clients")
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2


def config(path: Path) -> Any:
    """The message in a file; unknown fields and wrong types raise."""
    return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_states_the_graphs_inputs_and_outputs(
    graphs: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    folder = deployed(graphs[kind], tmp_path / "out", "triton", name="nli", max_batch=16)
    found = config(folder / "nli" / "config.pbtxt")
    assert (found.name, found.backend, found.max_batch_size) == ("nli", "onnxruntime", 16)
    assert [(one.name, one.data_type, list(one.dims)) for one in found.input] == [
        (name, model_config_pb2.TYPE_INT64, [-1]) for name in ("input_ids", "attention_mask", "token_type_ids")
    ]
    assert [(one.name, one.data_type, list(one.dims)) for one in found.output] == [
        ("logits", model_config_pb2.TYPE_FP32, [3])
    ]
    assert (
        found.HasField("dynamic_batching")
        and found.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_CPU
    )
    assert (folder / "nli" / "1" / "model.onnx").is_file()


def test_the_row_to_warm_up_with_lies_where_it_is_named(graphs: dict[str, Path], tmp_path: Path) -> None:
    folder = deployed(graphs["float32"], tmp_path / "out", "triton", name="nli")
    (warm_up,) = config(folder / "nli" / "config.pbtxt").model_warmup
    assert warm_up.batch_size == 1 and set(warm_up.inputs) == {"input_ids", "attention_mask", "token_type_ids"}
    for name, one in warm_up.inputs.items():
        row = np.frombuffer((folder / "nli" / "warmup" / one.input_data_file).read_bytes(), dtype=np.int64)
        assert row.shape == tuple(one.dims), name
    mask = (folder / "nli" / "warmup" / "attention_mask").read_bytes()
    assert np.frombuffer(mask, dtype=np.int64).all(), "a row of padding would warm up another path"


@pytest.mark.parametrize(("device", "accelerator"), [("cpu", "openvino"), ("gpu", "cuda"), ("gpu", "tensorrt")])
def test_instances_and_accelerators_are_where_triton_looks(
    graphs: dict[str, Path], tmp_path: Path, device: str, accelerator: str
) -> None:
    options = {"name": "nli", "device": device, "accelerator": accelerator, "instances": 3}
    found = config(deployed(graphs["float32"], tmp_path / "out", "triton", **options) / "nli" / "config.pbtxt")
    groups = {"cpu": model_config_pb2.ModelInstanceGroup.KIND_CPU, "gpu": model_config_pb2.ModelInstanceGroup.KIND_GPU}
    assert [(one.count, one.kind) for one in found.instance_group] == [(3, groups[device])]
    accelerators = getattr(found.optimization.execution_accelerators, f"{device}_execution_accelerator")
    assert [one.name for one in accelerators] == [accelerator]


def test_an_ensemble_hands_the_tokenizers_tensors_to_the_graph(graphs: dict[str, Path], tmp_path: Path) -> None:
    folder = deployed(graphs["float32"], tmp_path / "out", "triton", name="nli", tokenizer=True)
    tokenizer, ensemble = (config(folder / f"nli_{part}" / "config.pbtxt") for part in ("tokenizer", "text"))
    assert tokenizer.backend == "python" and tokenizer.parameters["max_length"].string_value == "64"
    assert ensemble.platform == "ensemble" and [one.name for one in ensemble.input] == ["TEXT"]
    first, second = ensemble.ensemble_scheduling.step
    assert (first.model_name, second.model_name) == ("nli_tokenizer", "nli")
    assert dict(first.input_map) == {"TEXT": "TEXT"}
    assert set(first.output_map.values()) == set(second.input_map.values()) == {one.name for one in tokenizer.output}
    assert dict(second.output_map) == {"logits": "logits"}
    assert ensemble.max_batch_size == tokenizer.max_batch_size == 32 and not ensemble.HasField("dynamic_batching")
