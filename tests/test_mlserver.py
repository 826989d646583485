"""Real servers and clients in an environment of their own (`make servers`): MLServer with our runtime, Triton's client with both.

What they answer is held against ONNX Runtime and the tokenizer, used here as their manuals do, one row at a time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from pruned_sst2 import CHECKPOINT, pruned, sentences
from tokenizers import Tokenizer

import axformer_onnx as ax
from axformer_passes.precision import Int8

if importlib.util.find_spec("mlserver") is None:
    pytest.skip("needs MLServer: make servers", allow_module_level=True)
import httpx

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "nli-mini"
CLIENTS, REQUESTS = 16, 1000
TOLERANCE = 1e-5
"""Of a logit: sums of float32 in another order, since a batch may be padded otherwise."""
Pair = tuple[str, str]


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Pairs of many lengths, the longest cut at the model's limit."""
    rows = [
        json.loads(line) for line in (MODEL / "data" / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:60]
    ]
    usual = [(row["premise"], row["hypothesis"]) for row in rows]
    return [*usual, *((" ".join([a] * 3), b) for a, b in usual[:10]), *((a.split()[0], "") for a, b in usual[:10])]


@pytest.fixture(scope="module")
def expected(pairs: list[Pair]) -> dict[Pair, np.ndarray]:
    """Logits of every pair."""
    return logits_of(MODEL, pairs, most=64)


def logits_of(model: Path, pairs: list[Pair], most: int) -> dict[Pair, np.ndarray]:
    """Of a model in this folder, of texts cut at `most` tokens."""
    session, tokenizer = (
        onnxruntime.InferenceSession(str(model / "model.onnx")),
        Tokenizer.from_file(str(model / "tokenizer.json")),
    )
    tokenizer.no_padding()
    tokenizer.enable_truncation(most)
    found = {}
    for pair in pairs:
        one = tokenizer.encode(*pair) if pair[1] else tokenizer.encode(pair[0])
        feeds = {"input_ids": one.ids, "attention_mask": one.attention_mask, "token_type_ids": one.type_ids}
        found[pair] = session.run(["logits"], {name: np.array([value]) for name, value in feeds.items()})[0][0]
    return found


class Served:
    """A server's process. url: of its HTTP port; model: of the one model."""

    def __init__(self, words: list[str], folder: Path, port: int) -> None:
        self.words, self.folder, self.url = words, folder, f"http://127.0.0.1:{port}"
        self.model = f"{self.url}/v2/models/nli"
        self.start()

    def start(self) -> None:
        """Start, and wait until the model answers."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.words, cwd=self.folder, stdout=log, stderr=log, start_new_session=True, env=environment
            )
        for _ in range(900):
            assert self.process.poll() is None, (self.folder / "log").read_text()
            try:
                if httpx.get(f"{self.model}/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        self.stop(signal.SIGKILL)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self, how: signal.Signals) -> int:
        """End it and everything that it started."""
        os.killpg(self.process.pid, how)
        return self.process.wait(60)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_mlserver(folder: Path, model: Path = MODEL, most: int = 16) -> Served:
    """MLServer on a repository as `deploy` writes it, with one thread."""
    repository = folder / "repository"
    ax.deploy(model, repository, for_="mlserver", name="nli", max_batch=most)
    settings = json.loads((repository / "nli" / "model-settings.json").read_text())
    settings["parameters"]["extra"]["threads"] = 1
    (repository / "nli" / "model-settings.json").write_text(json.dumps(settings))
    http, grpc, metrics = free_ports(3)
    server = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 1}
    (repository / "settings.json").write_text(json.dumps(server))
    return Served([str(Path(sys.executable).with_name("mlserver")), "start", "."], repository, http)


def start_ours(folder: Path, model: Path = MODEL, most: int = 16) -> Served:
    """`axformer-onnx serve`."""
    (port,) = free_ports(1)
    options = ["--name", "nli", "--port", str(port), "--threads", "1", "--max-batch", str(most)]
    return Served([sys.executable, "-m", "axformer_onnx", "serve", str(model), *options], folder, port)


STARTS = {"mlserver": start_mlserver, "serve": start_ours}


@pytest.fixture(scope="module", params=STARTS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = STARTS[request.param](tmp_path_factory.mktemp("server"))
    yield server
    assert server.process.poll() is None, "it died"
    server.stop(signal.SIGTERM)


def tensor(name: str, data: list[Any], datatype: str = "BYTES", shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def body_of(rows: list[Pair]) -> dict[str, Any]:
    inputs = [tensor("text", [a for a, _ in rows])]
    if all(b for _, b in rows):
        inputs.append(tensor("text_pair", [b for _, b in rows]))
    return {"inputs": inputs}


def by_name(response: httpx.Response) -> dict[str, np.ndarray]:
    assert response.status_code == 200, response.text
    return {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in response.json()["outputs"]}


def test_a_thousand_requests_of_sixteen_clients_are_answered_as_by_onnx_runtime(
    served: Served, pairs: list[Pair], expected: dict[Pair, np.ndarray]
) -> None:
    """1 to 8 rows a request, of every length."""
    found = asked(served, pairs, expected, ("entailment", "neutral", "contradiction"), REQUESTS)
    assert len(found) >= REQUESTS and max(found) < TOLERANCE


def asked(
    served: Served, rows: list[Pair], expected: dict[Pair, np.ndarray], labels: Sequence[str], requests: int
) -> list[float]:
    """What the worst logit of each request is off by; labels are compared here."""

    def client(seed: int) -> list[float]:
        draw, worst = random.Random(seed), []
        with httpx.Client(timeout=60) as http:
            for _ in range(requests // CLIENTS + 1):
                twos = draw.random() < 0.9
                some = [row for row in rows if bool(row[-1]) == twos] or rows
                drawn = draw.sample(some, draw.choice([1, 1, 2, 4, 8]))
                found = by_name(http.post(f"{served.model}/infer", json=body_of(drawn)))
                wanted = np.array([expected[row] for row in drawn])
                worst.append(float(np.abs(found["logits"] - wanted).max()))
                assert found["label"].tolist() == [labels[i] for i in wanted.argmax(axis=1)]
        return worst

    with ThreadPoolExecutor(CLIENTS) as clients:
        return [worst for one in clients.map(client, range(CLIENTS)) for worst in one]


MISTAKES = [
    ([tensor("txt", ["a"])], "inputs[0].name: is 'txt', expected text or text_pair or input_ids"),
    ([tensor("text", ["a"], shape=[2])], "inputs[0].data: has 1 elements, expected 2 (shape [2])"),
    ([tensor("text", [1.5], "FP32")], "inputs[0].datatype: is 'FP32', expected BYTES for texts"),
    ([tensor("input_ids", [2, 9999, 3], "INT64", [1, 3])], "inputs[0].data[1]: is 9999, expected 0 to 537 (input_ids)"),
]


@pytest.mark.parametrize(("inputs", "said"), MISTAKES, ids=[said.split(":")[0] for _, said in MISTAKES])
def test_a_malformed_request_is_a_400_that_names_the_field(served: Served, inputs: list[Any], said: str) -> None:
    response = httpx.post(f"{served.model}/infer", json={"inputs": inputs})
    assert response.status_code == 400 and said in response.json()["error"], response.text


def test_tritons_client_reads_the_metadata_and_gets_the_answers(
    served: Served, pairs: list[Pair], expected: dict[Pair, np.ndarray]
) -> None:
    import tritonclient.http as triton

    client = triton.InferenceServerClient(served.url.removeprefix("http://"))
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("nli")
    names = [one["name"] for one in client.get_model_metadata("nli")["inputs"]]
    assert names == ["text", "text_pair", "input_ids", "attention_mask", "token_type_ids"]
    in_bytes = "binary_tensor_data" in client.get_server_metadata()["extensions"]  # MLServer's HTTP takes JSON alone
    rows = [pair for pair in pairs if pair[1]][:5]
    inputs = [triton.InferInput(name, [5], "BYTES") for name in names[:2]]
    for i, one in enumerate(inputs):
        one.set_data_from_numpy(np.array([pair[i] for pair in rows], dtype=object), binary_data=in_bytes)
    result = client.infer("nli", inputs, outputs=[triton.InferRequestedOutput("logits", binary_data=in_bytes)])
    assert np.abs(result.as_numpy("logits") - np.array([expected[pair] for pair in rows])).max() < TOLERANCE
    client.close()


def test_a_server_that_was_killed_starts_again_and_answers_the_same(
    served: Served, pairs: list[Pair], expected: dict[Pair, np.ndarray]
) -> None:
    before = by_name(httpx.post(f"{served.model}/infer", json=body_of(pairs[:4])))
    assert served.stop(signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{served.url}/v2/health/live")
    served.start()
    after = by_name(httpx.post(f"{served.model}/infer", json=body_of(pairs[:4])))
    assert np.array_equal(before["logits"], after["logits"])


PLANS = {
    "hard": ax.Plan().without_heads(0, [1, 3]).with_hard_attention(3, 4),
    "int8": ax.Plan(int8=Int8(frozenset({0, 3}), frozenset({1, 4}), tables=8, stored=True)).without_attention(2),
}


@pytest.mark.parametrize("kind", PLANS)
def test_deployed_graphs_answer_the_request_of_their_readme(tmp_path: Path, kind: str) -> None:
    graph = ax.apply(PLANS[kind], MODEL, tmp_path / kind)
    server = start_mlserver(tmp_path, graph.parent)
    try:
        readme = (server.folder / "README.md").read_text()
        request = json.loads(re.findall(r"-d '(.*)'", readme)[0])
        found = by_name(httpx.post(f"{server.model}/infer", json=request))
    finally:
        server.stop(signal.SIGTERM)
    (text,) = (one["data"][0] for one in request["inputs"] if one["name"] == "text")
    wanted = logits_of(graph.parent, [(text, "")], most=128)[text, ""]
    np.testing.assert_allclose(found["logits"].reshape(wanted.shape), wanted, atol=TOLERANCE)


MOST = {"float32": 16, "int8": 1}
"""Rows of a batch. Integers are rounded by the range of a whole batch, so that answers are repeatable alone, as `serve` says."""


@pytest.fixture(scope="module")
def sst2(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the pruned SST-2 model by kind. EXPORTER: the command of an environment that can export."""
    exporter = os.environ.get("EXPORTER", "")
    if not (CHECKPOINT.is_dir() and Path(exporter).is_file()):
        pytest.skip("needs the shared checkpoints, and an environment with torch: make servers")
    folder = tmp_path_factory.mktemp("sst2")
    subprocess.run([exporter, "export", CHECKPOINT, folder / "source", "--task", "sst2"], check=True)
    return pruned(folder / "source", folder)


@pytest.mark.parametrize("kind", MOST)
@pytest.mark.parametrize("server", STARTS)
def test_sixteen_clients_of_a_real_model_are_answered_as_by_onnx_runtime(
    sst2: dict[str, Path], tmp_path: Path, server: str, kind: str
) -> None:
    rows = [(text, "") for (text,) in sentences(60)]
    served = STARTS[server](tmp_path, sst2[kind], MOST[kind])
    try:
        found = asked(served, rows, logits_of(sst2[kind], rows, most=128), ("negative", "positive"), REQUESTS // 4)
    finally:
        served.stop(signal.SIGTERM)
    assert len(found) >= REQUESTS // 4 and max(found) < TOLERANCE
