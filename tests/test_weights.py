"""Plans with a weights file: applied, verified and copied with the plan; files that are anything else are refused in one line."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from surgery import assert_close
from weights_oracle import drawn, weighted_outputs
from zoo import ZooModel, build, onnx_outputs

from axformer_onnx.commands.replay import apply
from axformer_onnx.compensate.weights import WEIGHTS, load_weights, save_weights
from axformer_onnx.errors import PlanError, VerifyError
from axformer_onnx.result.verification import verify
from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.io.files import load_model, save_model
from axformer_passes.plan import Plan

PLAN = Plan(weights=WEIGHTS).without_heads(0, [1]).without_neurons(1, range(0, 50, 2)).without_attention(2)
FEW = {"layers.0.attention.bias": (32,), "layers.1.feed_forward.weight": (31, 32)}


@pytest.fixture
def model() -> ZooModel:
    return build("bert", "torchscript-eager-17")


def written(folder: Path, model: ZooModel, seed: int = 0) -> Path:
    """The plan's path; its weights lie beside it."""
    save_weights(drawn(model, PLAN, seed), folder / WEIGHTS)
    (folder / "plan.json").write_text(PLAN.dumps(), encoding="utf-8")
    return folder / "plan.json"


def test_a_plan_is_applied_with_its_weights_and_both_travel_to_the_output(model: ZooModel, tmp_path: Path) -> None:
    plan = written(tmp_path, model)
    apply(plan, model.path, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.onnx", "plan.json", WEIGHTS]
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / WEIGHTS).read_bytes()
    feeds = model.feeds(2, 7)
    expected = weighted_outputs(model, feeds, PLAN, drawn(model, PLAN, 0))
    assert_close(onnx_outputs(tmp_path / "out" / "model.onnx", feeds)[0], expected)
    apply(tmp_path / "out" / "plan.json", model.path, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out" / "model.onnx").read_bytes()


@pytest.mark.parametrize(
    "exporter", ["torchscript-eager-17+fp16", "torchscript-eager-17+wfp16", "torchscript-eager-17+bf16"]
)
def test_half_precision_is_verified_with_the_weights_that_it_can_hold(exporter: str, tmp_path: Path) -> None:
    model = build("bert", exporter)
    apply(written(tmp_path, model), model.path, tmp_path / "out.onnx")


def test_weights_of_shared_layers_are_applied_together(tmp_path: Path) -> None:
    model = build("albert", "torchscript-eager-17")
    plan = Plan(weights=WEIGHTS, shared_weights="together").without_heads(1, [0])
    every = drawn(model, Plan().without_heads(0, [0]), 1)
    save_weights({k: v for k, v in every.items() if k.startswith("layers.0.")}, tmp_path / WEIGHTS)
    (tmp_path / "plan.json").write_text(plan.dumps(), encoding="utf-8")
    apply(tmp_path / "plan.json", model.path, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_size < model.path.stat().st_size


def test_the_result_of_other_weights_is_refused(model: ZooModel, tmp_path: Path) -> None:
    first, second = drawn(model, PLAN, 0), drawn(model, PLAN, 0)
    second["layers.1.feed_forward.weight"] = second["layers.1.feed_forward.weight"][::-1].copy()
    save_model(apply_plan(load_model(model.path), PLAN, run_once, weights=first), tmp_path / "out.onnx")
    assert verify(model.path, tmp_path / "out.onnx", PLAN, weights=first) < 1e-4
    for weights in (second, None):
        with pytest.raises(VerifyError, match="differs from the source under the plan"):
            verify(model.path, tmp_path / "out.onnx", PLAN, weights=weights)


def test_files_are_written_alike_and_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "layers.1.feed_forward.weight": rng.normal(size=(31, 32)).T.copy().T,
        "layers.0.attention.bias": np.ones(32),
    }
    save_weights(weights, tmp_path / "a")
    save_weights(dict(reversed(weights.items())), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = load_weights(tmp_path / "a", FEW)
    assert found.keys() == weights.keys()
    for key, array in weights.items():
        np.testing.assert_array_equal(found[key], array)


def missing(path: Path) -> None:
    path.unlink()


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def endless_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


def endless_tensor(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}
    header = json.dumps({"layers.0.attention.weight": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def another_name(path: Path) -> None:
    save_file({**load_file(path), "layers.0.attention.scale\x1b[31m\n": np.zeros(3, np.float32)}, path)


def removed_block(path: Path) -> None:
    save_file({**load_file(path), "layers.2.attention.bias": np.zeros(32, np.float32)}, path)


def integers(path: Path) -> None:
    save_file({**load_file(path), "layers.0.attention.bias": np.zeros(32, np.int32)}, path)


def another_shape(path: Path) -> None:
    save_file({**load_file(path), "layers.0.attention.weight": np.zeros((32, 24), np.float32)}, path)


def infinite(path: Path) -> None:
    save_file({**load_file(path), "layers.0.attention.bias": np.full(32, np.inf, np.float32)}, path)


MISTAKES: list[tuple[Callable[[Path], None], str]] = [
    (missing, "cannot be read: No such file"),
    (a_folder, "no regular file"),
    (a_pipe, "no regular file"),
    (empty, "not a safetensors file"),
    (truncated, "not a safetensors file"),
    (noise, "not a safetensors file"),
    (endless_header, "not a safetensors file"),
    (endless_tensor, "not a safetensors file"),
    (another_name, "is no such name; expected names such as 'layers.0.attention.weight'"),
    (removed_block, "'layers.2.attention.bias' is of a block that the plan removes or the model lacks"),
    (integers, "'layers.0.attention.bias' is I32, expected float32 or float64"),
    (another_shape, r"has the shape \(32, 24\), but under the plan it is \(24, 32\)"),
    (infinite, "numbers that are not finite"),
]


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=lambda x: getattr(x, "__name__", ""))
def test_a_file_that_is_not_the_plans_weights_is_refused_in_one_line(
    mistake: Callable[[Path], None], message: str, model: ZooModel, tmp_path: Path
) -> None:
    plan = written(tmp_path, model)
    mistake(tmp_path / WEIGHTS)
    with pytest.raises(PlanError, match=message) as caught:
        apply(plan, model.path, tmp_path / "out")
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert not (tmp_path / "out").exists()
