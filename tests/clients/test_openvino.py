"""OpenVINO's runtime reads the portable graph as it is, and its own format that `deploy` writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from clients_fixtures import BATCHES, KINDS, batched, deployed, expected, pairs, same_answers, tokens

from axformer_onnx.deploying.targets.openvino import COMPILED_WITH

ov = pytest.importorskip("openvino", reason="a client: make clients")


def compiled(path: Path) -> object:
    return ov.Core().compile_model(str(path), "CPU", COMPILED_WITH | {"INFERENCE_NUM_THREADS": "1"})


@pytest.mark.parametrize("kind", [*KINDS, "run"])
def test_openvino_answers_what_onnx_runtime_answers(graphs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = deployed(graphs[kind], tmp_path / "out", "openvino")
    model = compiled(folder / "model.onnx")
    for size in BATCHES:
        for texts in batched(pairs(11), size):
            found = model(tokens(graphs[kind], texts))["logits"]  # type: ignore[operator]
            same_answers("float32" if kind == "run" else kind, found, expected(graphs[kind], texts))


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_format_holds_the_same_graph_in_the_same_types(
    graphs: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    folder = deployed(graphs[kind], tmp_path / "out", "openvino", openvino_ir=True)
    model, texts = compiled(folder / "model.xml"), pairs(16)
    same_answers(kind, model(tokens(graphs[kind], texts))["logits"], expected(graphs[kind], texts))  # type: ignore[operator]
