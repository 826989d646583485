"""Files: what is no complete model is one clear error, what is written appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as draw
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from small_graphs import D
from zoo import build, onnx_outputs

from axformer_onnx.result import verify
from axformer_onnx.runtime.sessions import run_once
from axformer_passes.apply import apply_plan
from axformer_passes.errors import AxformerError, ModelError, RuntimeFailure
from axformer_passes.io.files import external_files, load_model, save_model, serialized, sha256_of
from axformer_passes.io.layout import model_path
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small whole model on disk."""
    path = tmp_path / "small.onnx"
    proto = draw.layer(lambda g, w, x: draw.attend(g, w, draw.separate(g, w, x)), draw.plain, draw.weights())
    path.write_bytes(proto.SerializeToString())
    return path


def with_external_data(path: Path, location: str = "small.data", **extra: Any) -> onnx.ModelProto:
    """Rewrite the model at `path`: weights beside it, in `location`."""
    proto = onnx.load(path)
    onnx.save(proto, path, save_as_external_data=True, location="small.data", size_threshold=0)
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else extra.get(entry.key, entry.value)
    path.write_bytes(proto.SerializeToString())
    return proto


# -- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes is too short"),
        (b"short", "5 bytes is too short"),
        (b"<!DOCTYPE html><html>not found</html>", "not an ONNX model"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "not an ONNX model"),
        (b"\x00" * 4096, "not an ONNX model"),
        (os.urandom(0) + bytes(range(256)) * 8, "not an ONNX model"),
        (b"PK\x03\x04" + b"\x01" * 200, "not an ONNX model"),
    ],
)
def test_what_is_not_a_model_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=reason) as caught:
        load_model(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_and_folders_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such file; give an \.onnx file or a folder that holds model\.onnx"):
        load_model(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match=r"a folder without model\.onnx"):
        load_model(tmp_path)
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(ModelError):
        load_model(tmp_path)


def test_a_folder_means_its_model(model: Path) -> None:
    model.rename(model.parent / "model.onnx")
    assert model_path(model.parent) == model.parent / "model.onnx"
    assert len(load_model(model.parent).graph) > 0


@pytest.mark.parametrize("part", range(0, 100, 3))
def test_truncated_model_is_one_clear_error(part: int, tmp_path: Path) -> None:
    """Cut anywhere, a real file is refused on reading or found not to run; nothing else is raised."""
    content = build("bert", "dynamo-23").path.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: len(content) * part // 100])
    with pytest.raises(AxformerError) as caught:
        recognise(load_model(path), run_once)
    assert "\n" not in str(caught.value)


@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(data=st.data())
def test_flipped_bytes_never_raise_anything_but_the_projects_errors(data: st.DataObject) -> None:
    proto = draw.layer(lambda g, w, x: draw.attend(g, w, draw.separate(g, w, x)), draw.plain, draw.weights())
    content = bytearray(proto.SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flipped.onnx"
        path.write_bytes(content)
        try:
            recognise(load_model(path), run_once)
        except AxformerError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("opset", [1, 6])
def test_old_operator_sets_say_how_to_convert(opset: int, tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("x", "y")]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3)
    (tmp_path / "old.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=f"operator set {opset}, expected 7 or later; convert it with"):
        load_model(tmp_path / "old.onnx")


@pytest.mark.parametrize("unknown", [-1, -2])
def test_an_axis_of_negative_size_is_one_of_unknown_size(unknown: int, model: Path, tmp_path: Path) -> None:
    """As paddle2onnx writes it."""
    proto = onnx.load(model)
    for value in (*proto.graph.input, *proto.graph.output):
        for axis in (0, 1):
            value.type.tensor_type.shape.dim[axis].dim_value = unknown
    model.write_bytes(proto.SerializeToString())
    source = load_model(model)
    (layer,) = recognise(source, run_once).layers
    assert layer.attention is not None and layer.attention.heads == draw.H
    plan = Plan().without_heads(0, [1])
    save_model(apply_plan(source, plan, run_once), tmp_path / "cut.onnx")
    assert verify(model, tmp_path / "cut.onnx", plan) < 1e-5
    written = onnx.load(tmp_path / "cut.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [d.WhichOneof("value") for d in written] == [None, None, "dim_value"]


def test_external_data_is_mapped_and_the_model_runs(model: Path) -> None:
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 5, D)).astype(np.float32)}
    expected = onnx_outputs(model, feeds)[0]
    with_external_data(model)
    assert any(isinstance(v.const_value, ir.ExternalTensor) for v in load_model(model).graph.initializers.values())
    np.testing.assert_array_equal(onnx_outputs(serialized(load_model(model)), feeds)[0], expected)


def test_missing_external_data_is_named(model: Path) -> None:
    with_external_data(model)
    (model.parent / "small.data").unlink()
    with pytest.raises(ModelError, match=r"external data 'small\.data' is missing; it must lie beside the model"):
        load_model(model)


def test_short_external_data_is_called_truncated(model: Path) -> None:
    with_external_data(model)
    data = model.parent / "small.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"has \d+ bytes, expected \d+: truncated"):
        load_model(model)


@pytest.mark.parametrize("location", ["../outside.data", "/etc/hostname", "a/../../outside.data"])
def test_external_data_outside_the_folder_is_refused(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "outside.data").write_bytes(b"\0" * 10**5)
    path = folder / "small.onnx"
    proto = draw.layer(lambda g, w, x: draw.attend(g, w, draw.separate(g, w, x)), draw.plain, draw.weights())
    path.write_bytes(proto.SerializeToString())
    with_external_data(path, location)
    with pytest.raises(ModelError):
        load_model(path)


def test_link_that_leads_outside_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = folder / "small.onnx"
    proto = draw.layer(lambda g, w, x: draw.attend(g, w, draw.separate(g, w, x)), draw.plain, draw.weights())
    path.write_bytes(proto.SerializeToString())
    with_external_data(path)
    (folder / "small.data").rename(tmp_path / "outside.data")
    (folder / "small.data").symlink_to(tmp_path / "outside.data")
    with pytest.raises(ModelError, match="points outside the model's folder"):
        load_model(path)


@pytest.mark.parametrize("extra", [{"offset": "-8"}, {"offset": str(10**15)}, {"length": str(10**15)}, {"offset": "x"}])
def test_hostile_offsets_are_refused(extra: dict[str, str], model: Path) -> None:
    with_external_data(model, **extra)
    with pytest.raises(ModelError):
        load_model(model)


# -- writing --------------------------------------------------------------------------------------------------------


def test_what_was_saved_loads_as_the_same_model(model: Path, tmp_path: Path) -> None:
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 5, D)).astype(np.float32)}
    save_model(load_model(model), tmp_path / "new" / "copy.onnx")
    np.testing.assert_array_equal(onnx_outputs(tmp_path / "new" / "copy.onnx", feeds)[0], onnx_outputs(model, feeds)[0])
    assert os.listdir(tmp_path / "new") == ["copy.onnx"]


def test_large_models_write_their_weights_beside(model: Path, tmp_path: Path) -> None:
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 5, D)).astype(np.float32)}
    path = tmp_path / "new" / "large.onnx"
    save_model(load_model(model), path, single_file_limit=100)
    assert sorted(os.listdir(path.parent)) == ["large.onnx", "large.onnx.data"]
    onnx.checker.check_model(str(path), full_check=True)
    np.testing.assert_array_equal(onnx_outputs(path, feeds)[0], onnx_outputs(model, feeds)[0])
    assert external_files(path) == [path.parent / "large.onnx.data"]
    save_model(load_model(path), path)  # small again: no stale data file
    assert os.listdir(path.parent) == ["large.onnx"]
    np.testing.assert_array_equal(onnx_outputs(path, feeds)[0], onnx_outputs(model, feeds)[0])


@pytest.mark.parametrize("limit", [100, 2**31])
def test_same_model_gives_the_same_files(limit: int, model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(load_model(model), tmp_path / name / "m.onnx", single_file_limit=limit)
    for file in os.listdir(tmp_path / "a"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    ("broken", "limit"),
    [
        ("os.replace", 100),
        ("os.replace", 2**31),
        ("axformer_passes.io.files.ir.to_proto", 2**31),
        ("axformer_passes.io.files.ir.save", 100),
    ],
)
def test_failed_write_leaves_the_old_file_and_nothing_else(
    broken: str, limit: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out" / "m.onnx"
    target.parent.mkdir()
    target.write_bytes(b"the old one")
    loaded = load_model(model)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, full)
    with pytest.raises(RuntimeFailure, match="cannot be written: No space left on device"):
        save_model(loaded, target, single_file_limit=limit)
    assert os.listdir(target.parent) == ["m.onnx"]
    assert target.read_bytes() == b"the old one"


def test_a_file_where_a_folder_is_needed_is_an_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(RuntimeFailure, match="cannot be written"):
        save_model(load_model(model), tmp_path / "taken" / "m.onnx")


def test_hash_is_the_files_own_and_covers_external_data(model: Path) -> None:
    assert sha256_of(model) == hashlib.sha256(model.read_bytes()).hexdigest()
    with_external_data(model)
    data = model.parent / "small.data"
    both = hashlib.sha256(model.read_bytes() + data.read_bytes()).hexdigest()
    assert sha256_of(model) == both
    content = bytearray(data.read_bytes())
    content[7] ^= 1
    data.write_bytes(content)
    assert sha256_of(model) != both


def test_external_data_may_lie_in_attributes_of_nodes(model: Path) -> None:
    """A Constant node's tensor can point at a file too."""
    tensor = numpy_helper.from_array(np.ones(D, np.float32), "c")
    onnx.external_data_helper.set_external_data(tensor, "../outside.data")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    proto = onnx.load(model)
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor))
    model.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError):
        load_model(model)


def test_a_weight_has_its_tensors_shape_whatever_the_file_states(model: Path) -> None:
    proto = onnx.load(model)
    stated = {t.name: list(t.dims) for t in proto.graph.initializer}
    name, dims = next((name, dims) for name, dims in stated.items() if len(dims) == 1)
    kept = [info for info in proto.graph.value_info if info.name != name]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend([*kept, helper.make_tensor_value_info(name, TensorProto.FLOAT, [])])
    model.write_bytes(proto.SerializeToString())
    with pytest.raises(onnx.shape_inference.InferenceError, match="differ in rank"):
        onnx.checker.check_model(proto, full_check=True)
    onnx.checker.check_model(onnx.load_from_string(serialized(load_model(model))), full_check=True)
    assert tuple(load_model(model).graph.initializers[name].shape or ()) == tuple(dims)
