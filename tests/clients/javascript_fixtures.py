"""Node and its packages for the tests of clients in JavaScript: `make javascript` installs them, without them the tests skip."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from clients_fixtures import EXAMPLE, KINDS, ROOT, deployed, plans

import axformer_onnx as ax
from axformer_onnx.runtime import run_once
from axformer_passes.io import load_model
from axformer_passes.precision import Half
from axformer_passes.runtime_forms import RUNTIME_FORMS

EXAMPLE_PAGE = ROOT / "examples" / "javascript"
PACKAGES = EXAMPLE_PAGE / "node_modules"
CASES = (*KINDS, "run", "fused", "half")
Made = tuple[Path, Path, Path]
"""The folder that was deployed, the folder that was written, the graph in it."""


@pytest.fixture(scope="session")
def made(graphs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """What `deploy --for transformersjs` writes for the graphs, for one with fused attention and for one in halves."""
    folder, given = tmp_path_factory.mktemp("javascript"), dict(graphs)
    given["fused"] = shutil.copytree(graphs["float32"], folder / "fused")
    fused = RUNTIME_FORMS["fused"].of(load_model(graphs["float32"] / "model.onnx"), run_once)
    assert fused.changed
    ir.save(fused.model, given["fused"] / "model.runtime.onnx")
    half = dataclasses.replace(plans()["float32"], half=Half("fp16"))
    given["half"] = ax.apply(half, EXAMPLE, folder / "half").parent
    return {kind: _deployed(graph, folder / f"{kind}-written", kind) for kind, graph in given.items()}


def _deployed(graph: Path, folder: Path, kind: str) -> Made:
    written = deployed(graph, folder, "transformersjs", form="runtime" if kind == "fused" else "portable")
    (file,) = (written / "onnx").iterdir()
    return graph, written, file


def require_node() -> str:
    """Node's path; skips the test module where it or the packages are not installed."""
    node = shutil.which("node")
    if node is None or not (PACKAGES / "@huggingface" / "transformers").is_dir():
        pytest.skip("Node and its packages: make javascript", allow_module_level=True)
    return node


def ran(*arguments: str | Path, given: str = "", folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A script and its arguments in Node, with `given` on stdin, in `folder`."""
    environment = {**os.environ, "NODE_PATH": str(PACKAGES)}
    return subprocess.run(
        [require_node(), *map(str, arguments)], input=given, capture_output=True, text=True, env=environment, cwd=folder
    )


def node(*arguments: str | Path, given: str = "", folder: Path | None = None) -> str:
    """What it prints; it must print nothing on stderr and exit with 0."""
    done = ran(*arguments, given=given, folder=folder)
    assert [done.returncode, done.stderr] == [0, ""], done.stderr
    return done.stdout


def answers(question: dict[str, Any]) -> list[dict[str, np.ndarray]]:
    """Of answers.cjs: by batch, the output as `found`, and `ids`."""
    script = Path(__file__).with_name("javascript") / "answers.cjs"
    return [
        {"found": tensor(one), **({"ids": tensor(one["ids"])} if "ids" in one else {})}
        for one in json.loads(node(script, given=json.dumps(question)))
    ]


def tensor(one: dict[str, Any]) -> np.ndarray:
    """From its dims and data."""
    return np.array(one["data"]).reshape(one["dims"])


def as_lists(fed: dict[str, np.ndarray]) -> dict[str, Any]:
    """A batch as answers.cjs takes it."""
    return {name: {"dims": array.shape, "data": array.ravel().tolist()} for name, array in fed.items()}


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(-1, keepdims=True)
    return shares
