"""What only a GPU can show: the products on CUDA. Skipped where ONNX Runtime has no CUDA device that works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from axformer_onnx.errors import AxformerError
from axformer_onnx.runtime.hardware import cuda_device
from axformer_onnx.runtime.latency import Bound, compare_latency, make_feeds
from axformer_onnx.runtime.sessions import make_session, run_once, run_session
from axformer_passes.apply import apply_plan
from axformer_passes.io.files import load_model, serialized
from axformer_passes.io.lean_model import detached
from axformer_passes.plan import Plan
from axformer_passes.recognise.examination import recognise

MODEL = Path(__file__).parents[1] / "models" / "nli-mini" / "model.onnx"
CUDA = "CUDAExecutionProvider"
TF32 = 2e-2
"""Largest difference of logits, relative to the largest: TF32 keeps ten bits of every factor of a product."""


def works() -> bool:
    try:
        return cuda_device() is not None and make_session(MODEL, provider="cuda").get_providers()[0] == CUDA
    except AxformerError:
        return False


pytestmark = pytest.mark.skipif(not works(), reason="ONNX Runtime has no CUDA device that works here")


def thinned(plan: Plan) -> Plan:
    """Half the heads and two thirds of the neurons of every layer."""
    for layer in recognise(load_model(MODEL), run_once).layers:
        assert layer.attention is not None and layer.feed_forward is not None
        plan = plan.without_heads(layer.index, range(1, layer.attention.heads, 2))
        plan = plan.without_neurons(layer.index, [i for i in range(layer.feed_forward.neurons) if i % 3])
    return plan


def hardened(k: int, mode: Any) -> Plan:
    plan = Plan()
    for layer in recognise(load_model(MODEL), run_once).layers:
        plan = plan.with_hard_attention(layer.index, k, mode)
    return plan


def feeds(batch: int, length: int) -> dict[str, Any]:
    """Random tokens, all rows but the first padded."""
    names = [one.name for one in make_session(MODEL).get_inputs()]
    found: dict[str, Any] = make_feeds(names, batch, length, vocab_size=100)
    for row in range(1, batch):
        found["attention_mask"][row, length - row :] = 0
    return found


@pytest.mark.parametrize("name", ["source", "exact", "thinned", "hard 2", "hard 8 renormalised", "hard 30"])
def test_graphs_give_on_cuda_what_they_give_on_the_cpu(name: str) -> None:
    exact = Plan(readout="narrow", constants="folded")
    plans = {
        "source": Plan(), "exact": exact, "thinned": thinned(exact), "hard 2": hardened(2, "truncated"),
        "hard 8 renormalised": hardened(8, "renormalised"), "hard 30": hardened(30, "truncated"),
    }  # fmt: skip
    graph = serialized(apply_plan(load_model(MODEL), plans[name], run_once))
    session = make_session(graph, provider="cuda")
    assert session.get_providers()[0] == CUDA
    for shape in ((1, 7), (4, 33)):
        expected = run_session(make_session(graph), feeds(*shape))["logits"]
        found = run_session(session, feeds(*shape))["logits"]
        assert np.abs(found - expected).max() <= TF32 * np.abs(expected).max()


def test_weights_that_are_in_memory_reach_the_device() -> None:
    model = detached(load_model(MODEL))
    assert model.weights
    given = feeds(2, 9)
    expected = run_session(make_session(MODEL, provider="cuda"), given)["logits"]
    np.testing.assert_allclose(run_session(make_session(model, provider="cuda"), given)["logits"], expected, rtol=1e-5)


def test_timed_runs_leave_their_outputs_on_the_device_and_give_the_same() -> None:
    session, given = make_session(MODEL, provider="cuda"), feeds(3, 17)
    run = Bound(session, given, ["logits"], "cuda")
    run()
    (value,) = run.binding.get_outputs()
    assert value.device_name() == "cuda"
    np.testing.assert_allclose(value.numpy(), run_session(session, given)["logits"], rtol=1e-5)


def test_latencies_are_compared_on_cuda() -> None:
    product = serialized(apply_plan(load_model(MODEL), thinned(Plan()), run_once))
    sessions = {"source": make_session(MODEL, provider="cuda"), "product": make_session(product, provider="cuda")}
    source, result = compare_latency(sessions, [(2, 16, feeds(2, 16))], rounds=10, min_seconds=0)
    assert source.ratio is None and result.ratio is not None
    assert result.ratio.value == pytest.approx(source.p50_ms / result.p50_ms)


@pytest.mark.slow
def test_optimize_runs_on_cuda_from_the_table_to_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from axformer_onnx.commands.optimization import OptimizeOptions, optimize
    from axformer_onnx.search.compensated import latency_table
    from axformer_onnx.tasks.definitions import get_task

    monkeypatch.setattr(latency_table, "_cache_folder", lambda: tmp_path / "cache")
    options = OptimizeOptions(
        model=MODEL, task=get_task("mnli"), output=tmp_path / "out", max_drop=2.0, effort="low", provider="cuda",
        batch=16, length=(64,), max_search_rows=300,
    )  # fmt: skip
    report = optimize(options).report
    assert not [text for text in report.warnings if "could not start" in text]
    assert report.hardware["gpu"] == cuda_device()
    assert report.candidate.score > report.source.score - 10
    (key,) = [json.loads(path.read_text())["key"] for path in (tmp_path / "cache").iterdir()]
    assert (key["provider"], key["gpu"]) == (CUDA, cuda_device())


def test_a_hidden_gpu_is_told_and_the_json_stays_json() -> None:
    command = [
        sys.executable,
        "-m",
        "axformer_onnx",
        "score",
        str(MODEL),
        "--task",
        "mnli",
        "--provider",
        "cuda",
        "--json",
    ]
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=hidden, capture_output=True, text=True, check=True)
    told = [text for text in json.loads(done.stdout)["warnings"] if "could not start CUDAExecutionProvider" in text]
    assert len(told) == 1 and "runs on CPUExecutionProvider instead" in told[0]
