"""Every ONNX Runtime that a target names loads its graphs and answers as the one that is installed here.

Each version is installed into a folder of its own, without its dependencies, and runs in a process of its own. ONNX_RUNTIMES=all
takes every version that `deploying.reads` has a line for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from clients_fixtures import KINDS, TOLERANCE, batched, deployed, expected, pairs, tokens
from onnx import TensorProto, helper

from axformer_onnx.deploying import ONNX_RUNTIME
from axformer_onnx.options import TARGETS

pytest.importorskip("openvino", reason="of the clients' environment: make clients")
PINNED = sorted(
    {target.reads.runtime for target in TARGETS if target.reads.runtime}, key=lambda name: int(name.split(".")[1])
)
VERSIONS = list(ONNX_RUNTIME) if os.environ.get("ONNX_RUNTIMES") == "all" else PINNED
KEPT = Path(sys.prefix) / "older-onnxruntimes"
"""They stay in the environment that asks for them."""


@pytest.fixture(scope="module", params=VERSIONS)
def runtime(request: pytest.FixtureRequest) -> Path:
    """A folder with the last patch of this version."""
    version = request.param
    folder = KEPT / version
    if not (folder / "onnxruntime").is_dir():
        numpy = ["numpy<2"] if version == "1.18" else []  # the last that was built for NumPy 1
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        done = subprocess.run([*pip, f"onnxruntime=={version}.*", *numpy], capture_output=True, text=True)
        if done.returncode and "No matching distribution" in done.stderr:
            pytest.skip(f"no package of onnxruntime {version} for this Python")
        assert done.returncode == 0, done.stderr[-500:]
    return folder


def run(
    runtime: Path, feeds: dict[str, np.ndarray], graphs: list[Path], folder: Path
) -> tuple[list[str], dict[str, np.ndarray]]:
    """(what it printed, its answers)."""
    np.savez(folder / "feeds.npz", **feeds)  # type: ignore[arg-type]
    script = Path(__file__).with_name("older_session.py")
    answers = folder / "answers.npz"
    command = [sys.executable, str(script), str(runtime), str(folder / "feeds.npz"), str(answers), *map(str, graphs)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines(), dict(np.load(answers))


def test_it_loads_what_is_deployed_for_it_and_answers_alike(
    runtime: Path, graphs: dict[str, Path], tmp_path: Path
) -> None:
    opset, ir = ONNX_RUNTIME[runtime.name]
    trials = [texts for size in (1, 7) for texts in batched(pairs(14), size)]
    fed = [tokens(graphs["float32"], texts) for texts in trials]
    files = []
    for kind in KINDS:
        newest = deployed(graphs[kind], tmp_path / f"new-{kind}", "plain", target_opset=opset, target_ir=ir)
        files += [graphs[kind] / "model.onnx", newest / "model.onnx"]
    feeds = {f"{i}:{name}": array for i, one in enumerate(fed) for name, array in one.items()}
    said, found = run(runtime, feeds, files, tmp_path)
    assert said[0].startswith(f"{runtime.name}.") and said[1:] == []
    for i, kind in enumerate(kind for kind in KINDS for _ in range(2)):
        for j, texts in enumerate(trials):
            np.testing.assert_allclose(
                found[f"{i}:{j}:logits"], expected(graphs[kind], texts), atol=TOLERANCE[kind], rtol=0
            )


def test_it_reads_the_operator_set_and_format_that_are_stated_and_no_later_ones(runtime: Path, tmp_path: Path) -> None:
    opset, ir = ONNX_RUNTIME[runtime.name]
    files = [relu(tmp_path, *pair) for pair in ((opset, ir), (opset + 1, 8), (17, ir + 1))]
    said, found = run(runtime, {"0:x": np.array([-1, 2], dtype=np.float32)}, files, tmp_path)
    assert found["0:0:y"].tolist() == [0, 2]
    assert [line.split(":")[1].strip() for line in said[1:]] == ["1", "2"], said


def relu(folder: Path, opset: int, ir: int) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    path = folder / f"{opset}-{ir}.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
    path.write_bytes(model.SerializeToString())
    assert onnx.load(path).ir_version == ir
    return path
