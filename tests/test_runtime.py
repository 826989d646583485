"""Sessions: providers, errors in one line, and the runner that recognition is given."""

from __future__ import annotations

import logging
import platform
import re
import types
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_graphs as draw
from tiny_classifier import save_classifier, tiny_classifier

from axformer_onnx.errors import AxformerError, ModelError, RuntimeFailure, UsageError
from axformer_onnx.runtime.failures import reason_of
from axformer_onnx.runtime.hardware import cuda_device, describe_hardware, versions
from axformer_onnx.runtime.profiled import placement
from axformer_onnx.runtime.providers import PROVIDERS, provider_name, providers_of
from axformer_onnx.runtime.sessions import fallback_note, make_session, run_once, run_session
from axformer_onnx.scoring.stage_sessions import StageSessions
from axformer_passes.io.file_size import parameters_and_size
from axformer_passes.io.lean_model import detached

TABLE = np.arange(12, dtype=np.float32).reshape(4, 3)
FEEDS = {"input_ids": np.array([[1, 3]]), "attention_mask": np.array([[1, 1]])}


def absent_provider() -> str:
    import onnxruntime as ort

    return next(short for short, (full, _) in PROVIDERS.items() if full not in ort.get_available_providers())


def test_a_session_of_a_file_and_of_bytes_give_the_same(tmp_path: Path) -> None:
    path = save_classifier(tmp_path / "model.onnx", TABLE)
    for model in (path, str(path), path.read_bytes()):
        session = make_session(model, threads=1)
        np.testing.assert_allclose(run_session(session, FEEDS)["logits"], [[6, 7, 8]])


def test_run_once_gives_all_outputs_by_name_and_drops_surplus_feeds() -> None:
    outputs = run_once(tiny_classifier(TABLE), FEEDS | {"token_type_ids": np.zeros((1, 2))})
    assert list(outputs) == ["logits"]
    np.testing.assert_allclose(outputs["logits"], [[6, 7, 8]])


def test_feeds_are_cast_to_the_types_that_the_graph_declares() -> None:
    model = tiny_classifier(TABLE, id_type=onnx.TensorProto.INT32)
    np.testing.assert_allclose(run_once(model, FEEDS)["logits"], [[6, 7, 8]])


@pytest.mark.parametrize("content", [b"", b"not a model", tiny_classifier(TABLE)[:60]])
def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.onnx: ONNX Runtime does not load it") as caught:
        make_session(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        make_session(tmp_path / "absent.onnx")


def test_a_token_outside_the_table_is_one_line() -> None:
    feeds = {"input_ids": np.array([[99]]), "attention_mask": np.array([[1]])}
    with pytest.raises(RuntimeFailure, match="the model: ONNX Runtime could not run it") as caught:
        run_once(tiny_classifier(TABLE), feeds)
    assert "\n" not in str(caught.value)


def refused(model: bytes, feeds: Mapping[str, Any]) -> str:
    """What the user reads where a model does not load or run."""
    with pytest.raises(AxformerError) as caught:
        run_session(make_session(model, threads=1), feeds)
    return str(caught.value)


def broadcast_of(rows: int) -> bytes:
    """x[a] + y[b], which runs where they fit: ONNX Runtime's reason stands behind a place in its C++."""
    names = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in "xyz"]
    node = onnx.helper.make_node("Add", ["x", "y"], ["z"])
    graph = onnx.helper.make_graph([node] * bool(rows), "g", names[:2] * bool(rows), names[2:] * bool(rows))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


REFUSED = {
    "a token outside the table": (
        tiny_classifier(TABLE), {"input_ids": np.array([[99]]), "attention_mask": np.array([[1]])},
        r"the model: ONNX Runtime could not run it on input_ids int64\[1, 1\], .*out of data bounds.*Check that the inputs",
    ),
    "an input is missing": (tiny_classifier(TABLE), {}, r"could not run it on no inputs: .*input_ids"),
    "shapes that do not fit": (
        broadcast_of(1), {"x": np.ones(4, np.float32), "y": np.ones(5, np.float32)}, r"Attempting to broadcast.*4 by 5",
    ),
    "an empty graph": (broadcast_of(0), {}, r"the model: ONNX Runtime does not load it: .*export the model again"),
    "no model": (b"not a model", {}, r"the model: ONNX Runtime does not load it: .*onnx\.checker"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "feeds", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_onnx_runtime_says_reaches_the_user_in_our_words_alone(
    capfd: pytest.CaptureFixture[str], model: bytes, feeds: Mapping[str, Any], expected: str
) -> None:
    message = refused(model, feeds)
    assert re.search(expected, message), message
    assert not re.search(r"ONNXRuntimeError|onnxruntime_src|\.cc:|::|\n", message), message
    assert capfd.readouterr() == ("", ""), "ONNX Runtime's own log is silent"


def test_a_stage_that_does_not_run_says_which_and_in_which_form(capfd: pytest.CaptureFixture[str]) -> None:
    w, g = draw.weights(), draw.Sketch()
    total = g("Add", "x", draw.attend(g, w, draw.separate(g, w, "x")))
    proto = g.model({"x": ["b", "s", draw.D]}, draw.norm(g, total), ["b", "s", draw.D])
    sessions = StageSessions(ir.from_proto(proto), threads=1)
    stage = next(stage for stage in sessions.stages if stage.blocks)
    feeds = {name: np.ones((1, 2, 3), np.float32) for name in ("x", *stage.inputs)}
    with pytest.raises(
        RuntimeFailure, match=r"stage \d of the model \(attention of layer 0\), plain: ONNX Runtime could"
    ) as caught:
        sessions.run(stage, "plain", feeds)
    assert "ONNXRuntimeError" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_absent_provider_is_refused_with_the_available_ones_and_the_install_line() -> None:
    short = absent_provider()
    with pytest.raises(RuntimeFailure, match=r"available: .*CPUExecutionProvider.* Install: "):
        make_session(tiny_classifier(TABLE), provider=short)


def test_an_unknown_provider_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"unknown provider 'cdua'\. Did you mean cuda\?"):
        make_session(tiny_classifier(TABLE), provider="cdua")


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider", "cpuexecutionprovider"])
def test_short_and_full_provider_names_are_the_same(name: str) -> None:
    assert provider_name(name) == "CPUExecutionProvider"


def test_a_fall_back_to_the_cpu_is_said_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import onnxruntime as ort

    class Fallen:
        def __init__(self, model: bytes, options: object, providers: list[str], **rest: object) -> None:
            assert providers == ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", Fallen)
    with caplog.at_level(logging.WARNING):
        session = make_session(b"", provider="cuda")
    note = fallback_note(session, "cuda")
    assert note is not None
    assert "could not start CUDAExecutionProvider and runs on CPUExecutionProvider" in note
    assert note in caplog.messages
    assert fallback_note(types.SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider"]), "cuda") is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "/src/cuda_call.cc:154 onnxruntime::CudaCall(ERRTYPE, const char*)\n"
            "CUDA failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=there ; expr=cudaSetDevice(0);",
            "CUDA failure 100: no CUDA-capable device is detected",
        ),
        (
            "/src/state.cc:729 void Register(Options&, const Other&) Please install the libraries.",
            "Please install the libraries",
        ),
        ("no such thing", "no such thing"),
    ],
)
def test_a_provider_that_does_not_start_is_replaced_by_the_cpu_and_its_reason_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], message: str, reason: str
) -> None:
    import onnxruntime as ort

    real = ort.InferenceSession

    def start(model: bytes, options: object, providers: list[str], **rest: object) -> object:
        assert rest == {"enable_fallback": 0}, "ONNX Runtime's own fallback prints to standard output"
        if providers[0] == "CUDAExecutionProvider":
            raise RuntimeError(message)
        return real(model, options, providers=providers, **rest)

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", start)
    session = make_session(tiny_classifier(TABLE), provider="cuda")
    np.testing.assert_allclose(run_session(session, FEEDS)["logits"], [[6, 7, 8]])
    note = fallback_note(session, "cuda")
    assert note is not None and f"instead ({reason}); figures" in note
    assert capsys.readouterr().out == ""


def test_weights_in_memory_are_shared_with_sessions_on_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx_ir as ir
    import onnxruntime as ort

    model = detached(ir.from_proto(onnx.load_from_string(tiny_classifier(np.ones((9000, 3), dtype=np.float32)))))
    assert model.in_memory
    shared: list[str] = []
    real = ort.InferenceSession

    class Options(ort.SessionOptions):  # type: ignore[misc]
        def add_initializer(self, name: str, value: object) -> None:
            shared.append(name)
            super().add_initializer(name, value)

    monkeypatch.setattr(ort, "SessionOptions", Options)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(
        ort, "InferenceSession", lambda m, o, providers, **rest: real(m, o, providers=["CPUExecutionProvider"], **rest)
    )
    for provider, names in (("cuda", []), ("cpu", list(model.in_memory))):
        shared.clear()
        assert run_session(make_session(model, provider=provider), FEEDS)["logits"].tolist() == [[1, 1, 1]]
        assert shared == names


def test_no_gpu_is_asked_for_where_onnx_runtime_has_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail(f"{name} was loaded"))
    assert cuda_device() is None
    assert "gpu" not in describe_hardware()


def test_hardware_and_versions_say_what_figures_were_measured_on() -> None:
    hardware = describe_hardware()
    assert {"cpu", "cores", "memory_bytes", "system", "python", "onnxruntime", "providers"} <= set(hardware)
    assert hardware["cores"] >= 1
    found = set(versions())
    assert {"python", "onnx", "numpy"} <= found and found & {"onnxruntime", "onnxruntime-gpu"}


def test_builds_of_the_runtime_are_known_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("onnxruntime-openvino", "1.24.1"), ("onnxruntime-gpu", "1.31.1"), ("requests", "2.0")
    builds = [types.SimpleNamespace(name=name, version=version) for name, version in names]
    monkeypatch.setattr(
        "importlib.metadata.distributions", lambda: [*builds, types.SimpleNamespace(name=None, version=None)]
    )
    expected = {"onnxruntime-gpu": "1.31.1", "onnxruntime-openvino": "1.24.1"}
    assert versions() == {"python": platform.python_version(), **expected}


def test_parameters_are_the_learned_numbers_and_size_is_the_file(tmp_path: Path) -> None:
    path = save_classifier(tmp_path / "model.onnx", TABLE)
    assert parameters_and_size(path) == (12, path.stat().st_size)


def test_size_includes_external_data_and_constants_count(tmp_path: Path) -> None:
    model = onnx.load_from_string(tiny_classifier(np.ones((500, 3), dtype=np.float32)))
    half = onnx.numpy_helper.from_array(np.full((7,), 0.5, dtype=np.float32))
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["half"], value=half))
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    found = parameters_and_size(path)
    assert found == (1507, path.stat().st_size + (tmp_path / "weights.bin").stat().st_size)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelError, match=r"external data 'weights\.bin' is missing; it must lie beside"):
        parameters_and_size(path)


def test_size_of_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no")
    with pytest.raises(ModelError, match="too short for an ONNX model"):
        parameters_and_size(tmp_path / "model.onnx")


def test_providers_are_a_list_with_options_and_the_cpu_is_the_last() -> None:
    assert providers_of("cpu") == [("CPUExecutionProvider", {})]
    several = (
        providers_of("AzureExecutionProvider:a=1:folder=one:two,cpu:b=2")
        if "AzureExecutionProvider" in available()
        else None
    )
    assert several in (
        None,
        [("AzureExecutionProvider", {"a": "1", "folder": "one:two"}), ("CPUExecutionProvider", {"b": "2"})],
    )


def available() -> list[str]:
    import onnxruntime as ort

    return list(ort.get_available_providers())


@pytest.mark.parametrize("given", ["cpu:fast", "cpu:=1", "cpu: "])
def test_an_option_of_a_provider_is_key_and_value(given: str) -> None:
    with pytest.raises(UsageError, match=r"is no option: KEY=VALUE, as in cuda:use_tf32=0"):
        providers_of(given)


def test_an_unknown_provider_in_a_list_is_named() -> None:
    with pytest.raises(UsageError, match=r"unknown provider 'cuba'\. Did you mean cuda\?"):
        providers_of("cpu,cuba")


def test_the_operators_of_a_run_are_counted_by_the_provider_that_ran_them(tmp_path: Path) -> None:
    """A provider without kernels for any of them: all are left to the CPU."""
    if "AzureExecutionProvider" not in available():
        pytest.skip("this ONNX Runtime has no provider but the CPU's")
    path = save_classifier(tmp_path / "model.onnx", TABLE)
    ran = placement(path, FEEDS, provider="AzureExecutionProvider,cpu", threads=1)
    nodes = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert set(ran) == {"CPUExecutionProvider"}
    assert 0 < sum(ran["CPUExecutionProvider"].values()) <= sum(nodes.values())
    assert ran["CPUExecutionProvider"]["Gather"] == nodes["Gather"]


def test_of_what_openvino_says_its_own_sentence_is_left() -> None:
    words = (
        "Unexpected: CPU plug-in doesn't support Reshape operation with dynamic rank. Operation name: layer.5/Reshape"
    )
    said = (
        "[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: /onnxruntime/onnxruntime/core/providers/openvino/"
        "backends/basic_backend.cc:136 onnxruntime::openvino_ep::BasicBackend::BasicBackend(SessionContext&) [with bool typed = "
        "false; Args = {const std::string&}] [OpenVINO-EP] Exception while Loading Network for graph subgraph_13_0: Exception "
        "from src/inference/src/cpp/core.cpp:114:\nException from src/inference/src/dev/plugin.cpp:53:\n"
        f"Check '!shape.rank().is_dynamic()' failed at src/plugins/intel_cpu/src/node.cpp:106:\n{words}\n\n\n"
    )
    assert reason_of(RuntimeError(said)) == words
