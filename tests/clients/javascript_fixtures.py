"""Node and its packages for the tests of clients in JavaScript: `make javascript` installs them, without them the tests skip."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clients_fixtures import ROOT

EXAMPLE_PAGE = ROOT / "examples" / "javascript"
PACKAGES = EXAMPLE_PAGE / "node_modules"
GRAPH = {"float32": "model.onnx", "hard": "model.onnx", "int8": "model_quantized.onnx", "run": "model.onnx"}


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
