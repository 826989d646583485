"""Models with their weights in external data: mapped, never serialised into one protobuf, never held twice.

The paths are proved with a small model and lowered limits; a real file above 2 GiB, of zeros that take no room on disk, goes
through inspect and apply in a process whose memory is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
import small_graphs as draw
from large_models import write_large
from small_graphs import D
from zoo import onnx_outputs

from axformer_onnx.commands.replay import apply
from axformer_onnx.result.verification import verify
from axformer_onnx.runtime.sessions import make_session, run_once, run_session
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_passes.io import files
from axformer_passes.io import lean_model as detached_module
from axformer_passes.io.files import load_model, save_model
from axformer_passes.io.lean_model import Detached, detached
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import examine

Array = npt.NDArray[Any]
PLAN = Plan().without_heads(0, [1]).without_neurons(0, [0, 3, 4]).with_hard_attention(0, 2)
FEEDS = {"x": np.random.default_rng(0).normal(size=(2, 5, D)).astype(np.float32)}
GIB = 2**30


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A one-layer transformer, all of its weights beside it."""
    proto = draw.layer(lambda g, w, x: draw.attend(g, w, draw.separate(g, w, x)), draw.plain, draw.weights())
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return path


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights count as large, shapes do not: files have external data, graphs run without their weights."""
    monkeypatch.setattr(files, "SINGLE_FILE_LIMIT", 0)
    monkeypatch.setattr(files, "EXTERNAL_LIMIT", 0)
    monkeypatch.setattr(detached_module, "LARGE_BYTES", 40)


class Recorder:
    """The runner of recognition, which remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[Detached] = []

    def __call__(self, model: Detached, feeds: Mapping[str, Array]) -> dict[str, Array]:
        self.seen.append(model)
        return run_once(model, feeds)


def test_the_probe_runs_on_the_files_themselves(source: Path, everything_is_large: None) -> None:
    runner = Recorder()
    examined = examine(load_model(source), runner)
    assert len(examined.anatomy.layers) == 1
    for model in runner.seen:
        assert model.folder == str(source.parent)
        assert all(t.HasField("raw_data") is False for t in model.proto.graph.initializer if t.name in model.weights)
        assert set(model.in_memory) <= {t.name for t in model.proto.graph.initializer}


def test_weights_in_memory_are_given_and_not_serialised(source: Path, everything_is_large: None) -> None:
    single = source.parent.parent / "single.onnx"
    onnx.save(onnx.load(source), single)
    model = detached(load_model(single))
    assert set(model.in_memory) == set(model.weights) and model.folder is None
    weights = sum(tensor.nbytes for tensor in model.weights.values())
    assert len(model.content()) < single.stat().st_size - weights / 2
    np.testing.assert_array_equal(run_once(model, FEEDS)["y"], onnx_outputs(single, FEEDS)[0])
    np.testing.assert_array_equal(onnx_outputs(model.serialized(), FEEDS)[0], onnx_outputs(single, FEEDS)[0])


def test_detaching_leaves_the_model_as_it_was(source: Path, everything_is_large: None) -> None:
    model = load_model(source)
    before = {name: value.const_value for name, value in model.graph.initializers.items()}
    content = files.serialized(model)
    detached(model)
    assert all(model.graph.initializers[name].const_value is tensor for name, tensor in before.items())
    assert files.serialized(model) == content


@pytest.mark.parametrize(
    "kind", ["FLOAT", "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "INT8", "BOOL", "DOUBLE", "INT4", "INT64"]
)
def test_weights_of_every_type_reach_the_session(kind: str, everything_is_large: None) -> None:
    data = np.arange(-3, 3)
    array = onnx.helper.make_tensor("w", getattr(onnx.TensorProto, kind), [6], data % 2 if kind == "BOOL" else data)
    node = onnx.helper.make_node("Cast", ["w"], ["f"], to=onnx.TensorProto.FLOAT)
    add = onnx.helper.make_node("Add", ["x", "f"], ["y"])
    infos = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [6]) for n in ("x", "y")]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([node, add], "g", infos[:1], infos[1:], [array]),
        opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10,
    )  # fmt: skip
    import onnx_ir as ir

    found = run_once(detached(ir.from_proto(proto)), {"x": np.zeros(6, np.float32)})["y"]
    np.testing.assert_array_equal(found, data % 2 if kind == "BOOL" else data)


def test_a_weight_that_nothing_reads_is_not_handed_over(everything_is_large: None) -> None:
    """ONNX Runtime drops it and would not know the name that it is given."""
    g = draw.Sketch()
    g.weight(np.ones((20, 20), np.float32), "unread")
    y = g("MatMul", "x", g.weight(np.ones((D, D), np.float32), "read"))
    model = ir.from_proto(g.model({"x": ["b", "s", D]}, y, ["b", "s", D]))
    parts = detached(model)
    assert set(parts.in_memory) == {"read"} and [t.name for t in parts.proto.graph.initializer] == ["read"]
    np.testing.assert_allclose(run_once(parts, FEEDS)["y"][..., 0], FEEDS["x"].sum(-1), rtol=1e-4, atol=1e-5)


def test_a_session_keeps_the_weights_that_it_shares(source: Path, everything_is_large: None) -> None:
    single = source.parent.parent / "single.onnx"
    onnx.save(onnx.load(source), single)
    expected = onnx_outputs(single, FEEDS)[0]
    session = make_session(detached(load_model(single)), threads=1)
    single.unlink()
    rubbish = [np.full((D, D), np.nan, np.float32) for _ in range(100)]
    np.testing.assert_allclose(run_session(session, FEEDS)["y"], expected, rtol=1e-5, atol=1e-6)
    assert len(rubbish) == 100


def test_a_plan_is_applied_verified_and_the_same_as_from_one_file(
    source: Path, tmp_path: Path, everything_is_large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(PLAN.dumps())
    monkeypatch.setattr(files, "serialized", _never)
    path = apply(plan, source, tmp_path / "out")
    assert (path.parent / "model.onnx.data").stat().st_size < (source.parent / "model.onnx.data").stat().st_size
    monkeypatch.undo()
    assert verify(source, path, PLAN) < 1e-5
    single = tmp_path / "single.onnx"
    onnx.save(onnx.load(source), single)
    expected = apply(plan, single, tmp_path / "expected")
    assert (
        os.listdir(expected.parent) == ["model.onnx", "plan.json"] or not (expected.parent / "model.onnx.data").exists()
    )
    np.testing.assert_array_equal(onnx_outputs(path, FEEDS)[0], onnx_outputs(expected, FEEDS)[0])


def _never(*_: object) -> bytes:
    raise AssertionError("the whole model was serialised")


def test_stages_refer_to_the_files_of_the_source(source: Path, everything_is_large: None) -> None:
    sessions = StageSessions(load_model(source), threads=1)
    for stage in sessions.stages:
        for form in ("plain", "gated", "bypass"):
            model = sessions.staged.detached(stage, form)  # type: ignore[arg-type]
            assert model.folder == str(source.parent)
            assert not any(t.raw_data for t in model.proto.graph.initializer if t.name in model.weights)


def test_weights_that_lay_beside_the_model_stay_beside_it(source: Path, tmp_path: Path) -> None:
    """Above a smaller limit than others: one file costs a multiple of its size in memory."""
    model = load_model(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "EXTERNAL_LIMIT", 100)
        save_model(model, tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx.data").is_file()
    save_model(model, tmp_path / "b.onnx")
    assert not (tmp_path / "b.onnx.data").exists()


def test_shapes_of_weights_are_stated_once(source: Path, tmp_path: Path) -> None:
    save_model(load_model(source), tmp_path / "large.onnx", single_file_limit=0)
    proto = onnx.load(tmp_path / "large.onnx", load_external_data=False)
    assert not {t.name for t in proto.graph.initializer} & {v.name for v in proto.graph.value_info}


# -- above 2 GiB ----------------------------------------------------------------------------------------------------

MEASURE = """
import json, resource, sys
from pathlib import Path
from axformer_onnx import cli
sys.argv = ["axformer-onnx", *sys.argv[1:]]
try:
    cli.main()
except SystemExit as end:
    status = Path("/proc/self/status").read_text()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"code": end.code or 0, "peak": peak}), file=sys.stderr)
"""


def measured(*arguments: str) -> int:
    """Peak resident memory in bytes of a process that runs these arguments; mapped pages of files count."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, timeout=1200, check=True
    )
    found = json.loads(done.stderr.splitlines()[-1])
    assert found["code"] == 0, done.stderr
    return int(found["peak"])


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_model_above_two_gibibytes_is_inspected_and_cut(tmp_path: Path) -> None:
    """One layer of three is cut by nearly half; the peak counts what is mapped of source and result."""
    source = tmp_path / "source" / "model.onnx"
    source.parent.mkdir()
    size = write_large(source, layers=3, width=4096, neurons=24 * 1024)
    assert size > 2.2 * GIB
    plan = tmp_path / "plan.json"
    plan.write_text(Plan().without_neurons(1, range(10_000)).dumps())
    assert measured("inspect", str(source)) < 1.5 * size
    assert measured("apply", str(plan), str(source), "-o", str(tmp_path / "out")) < 1.6 * size
    result = load_model(tmp_path / "out")
    widths = [int(result.graph.initializers[f"layer{i}.w_up"].const_value.shape[1]) for i in range(3)]  # type: ignore[union-attr]
    assert widths == [24 * 1024, 24 * 1024 - 10_000, 24 * 1024]
    for path in (source.parent / "model.onnx.data", tmp_path / "out" / "model.onnx.data"):
        path.unlink(missing_ok=True)
