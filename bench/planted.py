"""Copies of a model with a planted fault, or with none: what gates are tried on.

Run alone it says how much slower the planted graph is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from axformer_onnx.scoring import Machine, latency_of
from axformer_passes.probe import TokenSequence

EXAMPLE = Path(__file__).resolve().parents[1] / "models" / "nli-mini" / "model.onnx"


def stored_anew(model: Path, path: Path) -> Path:
    """The same graph in other bytes."""
    graph = onnx.load(model)
    graph.doc_string = "stored anew"
    onnx.save(graph, path)
    return path


def slower(model: Path, path: Path, times: float) -> tuple[Path, float]:
    """The same answers, about `times` times as slow; and how many times as slow it was measured."""
    columns, found = 400, 1.0
    for _ in range(5):
        found = _slowness(model, _with_more_to_do(model, path, columns))
        if abs(found - times) < 0.01:
            break
        columns = round(columns * min(2.0, max(0.5, (times - 1) / max(found - 1, 0.01))))
    return path, found


def _with_more_to_do(model: Path, path: Path, columns: int) -> Path:
    """before  norm -> x[B,S,D]     after  norm -> x + 0 (x W[D,columns] V[columns,D])"""
    graph = onnx.load(model)
    nodes = graph.graph.node
    place = next(i for i, node in enumerate(nodes) if node.op_type == "LayerNormalization")
    name = nodes[place].output[0]
    scale = next(tensor for tensor in graph.graph.initializer if tensor.name == nodes[place].input[1])
    width = scale.dims[0]
    draw = np.random.default_rng(0)
    weights = {
        "more_up": draw.normal(size=(width, columns)).astype(np.float32),
        "more_down": draw.normal(size=(columns, width)).astype(np.float32),
        "nothing": np.zeros(1, dtype=np.float32),
    }
    graph.graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in weights.items())
    nodes[place].output[0] = "before_more"
    more = [
        helper.make_node("MatMul", ["before_more", "more_up"], ["more_wide"]),
        helper.make_node("MatMul", ["more_wide", "more_down"], ["more_narrow"]),
        helper.make_node("Mul", ["more_narrow", "nothing"], ["more_nothing"]),
        helper.make_node("Add", ["before_more", "more_nothing"], [name]),
    ]
    for offset, node in enumerate(more):
        nodes.insert(place + 1 + offset, node)
    onnx.save(graph, path)
    return path


def _slowness(model: Path, path: Path) -> float:
    """The median of three comparisons, at 1 x 32 on one thread."""
    tokens, found = TokenSequence(words=range(5, 400)), []
    for seed in range(3):
        rows = latency_of({"a": model, "b": path}, [(1, 32)], tokens, Machine(threads=1), seed)
        assert rows[1].ratio is not None
        found.append(1 / rows[1].ratio.value)
    return float(np.median(found))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(f"{slower(EXAMPLE, Path(folder) / 'slow.onnx', 1.1)[1]:.3f} times as slow")
