"""`serve`: answers over HTTP are those of ONNX Runtime in Python; every mistake in a request is a 400 that names the field."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

pytest.importorskip("starlette", reason="needs the [serve] extra")
pytest.importorskip("httpx2", reason="needs the [serve] extra")
from starlette.testclient import TestClient

from axformer_onnx.scoring import Machine
from axformer_onnx.serving.answering import Answerer
from axformer_onnx.serving.application import Server, application
from axformer_onnx.serving.batching import Policy
from axformer_onnx.serving.openapi import description
from axformer_onnx.serving.tensors import raw, read_tensor

MODEL = Path(__file__).parents[1] / "models" / "nli-mini"
INFER = "/v2/models/nli-mini/infer"
TOLERANCE = 1e-5
"""Of a logit: sums of float32 in another order, since a batch may be padded otherwise."""
MOST_BYTES = 20_000


@pytest.fixture(scope="module")
def answerer() -> Answerer:
    return Answerer.load(MODEL / "model.onnx", Machine(threads=1))


@pytest.fixture(scope="module")
def client(answerer: Answerer) -> Iterator[TestClient]:
    server = Server(answerer, Policy(rows=8, queue=64), MOST_BYTES, "0")
    with TestClient(application(server), raise_server_exceptions=False) as found:
        yield found


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    lines = (MODEL / "data" / "validation.jsonl").read_text(encoding="utf-8").splitlines()[:40]
    rows = [json.loads(line) for line in lines]
    return [(row["premise"], row["hypothesis"]) for row in rows]


class Plain:
    """ONNX Runtime and the tokenizer as their manuals use them, one row at a time and without padding."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(MODEL / "model.onnx"), options)
        self.tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))

    def feeds(self, *texts: str) -> dict[str, np.ndarray]:
        found = self.tokenizer.encode(*texts)
        named = {"input_ids": found.ids, "attention_mask": found.attention_mask, "token_type_ids": found.type_ids}
        return {name: np.array([values]) for name, values in named.items()}

    def logits(self, *texts: str) -> np.ndarray:
        return self.session.run(["logits"], self.feeds(*texts))[0][0]


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain()


def tensor(name: str, data: list[Any], datatype: str = "BYTES", shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def texts(rows: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [tensor("text", [a for a, _ in rows]), tensor("text_pair", [b for _, b in rows])]


def by_name(response: Any) -> dict[str, np.ndarray]:
    assert response.status_code == 200, response.text
    return {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in response.json()["outputs"]}


# -- answers ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_texts_get_the_answers_of_onnx_runtime_in_python(
    client: TestClient, plain: Plain, pairs: list[tuple[str, str]], rows: int
) -> None:
    found = by_name(client.post(INFER, json={"inputs": texts(pairs[:rows])}))
    expected = np.array([plain.logits(*pair) for pair in pairs[:rows]])
    assert np.abs(found["logits"] - expected).max() < TOLERANCE
    exponents = np.exp(expected.astype(np.float64))
    assert np.allclose(found["probabilities"], exponents / exponents.sum(axis=1, keepdims=True), atol=TOLERANCE)
    names = json.loads((MODEL / "config.json").read_text())["id2label"]
    assert found["label"].tolist() == [names[str(i)] for i in expected.argmax(axis=1)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_token_ids_with_padding_on_either_side_get_the_answers_of_rows_without_it(
    client: TestClient, plain: Plain, pairs: list[tuple[str, str]], side: str
) -> None:
    rows = [plain.feeds(*pair) for pair in pairs[:5]]
    width = max(row["input_ids"].shape[1] for row in rows) + 3
    inputs = []
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        values = np.zeros((5, width), dtype=int)
        for i, row in enumerate(rows):
            n = row[name].shape[1]
            values[i, slice(width - n, None) if side == "left" else slice(n)] = row[name][0]
        inputs.append(tensor(name, values.tolist(), "INT64", [5, width]))
    found = by_name(client.post(INFER, json={"inputs": inputs}))
    expected = np.array([plain.logits(*pair) for pair in pairs[:5]])
    assert np.abs(found["logits"] - expected).max() < TOLERANCE


def test_what_is_cut_at_the_limit_is_said(client: TestClient, plain: Plain) -> None:
    long = " ".join(["woman"] * 500)
    response = client.post(INFER, json={"inputs": [tensor("text", [long, "a woman"])]})
    assert response.json()["parameters"]["truncated"] == 1
    plain_ids = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    plain_ids.enable_truncation(64)
    ids = np.array([plain_ids.encode(long).ids])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    assert np.abs(by_name(response)["logits"][0] - plain.session.run(["logits"], feeds)[0][0]).max() < TOLERANCE


def test_outputs_come_by_name_and_in_the_order_in_which_they_were_asked_for(client: TestClient) -> None:
    asked = [{"name": "label"}, {"name": "logits"}]
    response = client.post(INFER, json={"id": "7", "inputs": [tensor("text", ["a"])], "outputs": asked})
    assert [one["name"] for one in response.json()["outputs"]] == ["label", "logits"]
    assert response.json()["id"] == "7"


def test_binary_tensors_in_and_out_hold_what_json_holds(client: TestClient, pairs: list[tuple[str, str]]) -> None:
    in_json = by_name(client.post(INFER, json={"inputs": texts(pairs[:3])}))
    columns = [read_tensor(one["name"], "BYTES", one["shape"], one["data"], "") for one in texts(pairs[:3])]
    described = [
        {"name": one.name, "datatype": "BYTES", "shape": [3], "parameters": {"binary_data_size": len(raw(one))}}
        for one in columns
    ]
    head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
    response = client.post(
        INFER, content=head + b"".join(map(raw, columns)), headers={"Inference-Header-Content-Length": str(len(head))}
    )
    assert response.status_code == 200, response.text
    length = int(response.headers["inference-header-content-length"])
    answer, tail = json.loads(response.content[:length]), response.content[length:]
    sizes = [one["parameters"]["binary_data_size"] for one in answer["outputs"]]
    assert sum(sizes) == len(tail)
    logits = np.frombuffer(tail[: sizes[0]], dtype="<f4").reshape(answer["outputs"][0]["shape"])
    assert np.array_equal(logits, in_json["logits"].astype(np.float32))
    label = read_tensor("label", "BYTES", [3], tail[-sizes[2] :], "")
    assert label.values.tolist() == in_json["label"].tolist()


# -- refusals --------------------------------------------------------------------------------------------------------------

IDS = tensor("input_ids", [2, 5, 3], "INT64", [1, 3])
REFUSED: list[tuple[Any, str]] = [
    (b"{", r"body: is no JSON: EOF"),
    (b"\xff\xfe", r"body: is no JSON"),
    (b"[" * 5000, r"body: is no JSON"),
    ([], r"body: is \[\]: input should be an object"),
    ({}, r"inputs: is missing"),
    ({"inputs": []}, r"inputs: is \[\]: list should have at least 1 item"),
    ({"inputs": [{"name": "text"}]}, r"inputs\[0\]\.shape: is missing"),
    ({"inputs": [tensor("txt", ["a"])]}, r"inputs\[0\]\.name: is 'txt', expected text or text_pair or input_ids"),
    ({"inputs": [tensor("text", ["a"], "FP64")]}, r"inputs\[0\]\.datatype: is 'FP64', expected BYTES"),
    ({"inputs": [tensor("text", ["a"], shape=[2])]}, r"inputs\[0\]\.data: has 1 elements, expected 2 \(shape \[2\]\)"),
    ({"inputs": [tensor("text", ["a"] * 9, shape=[2])]}, r"inputs\[0\]\.data: has 3 elements, expected 2"),
    ({"inputs": [tensor("text", ["a"], shape=[-1])]}, r"inputs\[0\]\.shape\[0\]: is -1: input should be greater"),
    ({"inputs": [tensor("text", [], shape=[0])]}, r"inputs\[0\]\.shape: is \[0\], expected one or two axes"),
    ({"inputs": [tensor("text", [3])]}, r"inputs\[0\]\.data\[0\]: is 3, expected a string \(BYTES\)"),
    ({"inputs": [tensor("text", ["a", None])]}, r"inputs\[0\]\.data\[1\]: is null, expected a string"),
    ({"inputs": [tensor("text", ["a"] * 4, shape=[2, 2])]}, r"inputs\[0\]\.shape: is \[2, 2\], expected \[rows\] or"),
    ({"inputs": [tensor("text", ["a"] * 65)]}, r"inputs\[0\]\.shape: is \[65\], expected at most 64 rows"),
    ({"inputs": [tensor("text", ["a"]), tensor("text", ["a"])]}, r"inputs\[1\]\.name: is 'text' again"),
    ({"inputs": [tensor("text_pair", ["a"])]}, r"inputs: holds text_pair without text"),
    ({"inputs": [tensor("text", ["a"]), tensor("text_pair", ["a", "b"])]}, r"inputs\[1\]\.shape: is \[2\], expected \[1\]"),
    ({"inputs": [tensor("text", ["a"]), IDS]}, r"inputs: holds texts and token ids; give one or the other"),
    ({"inputs": [{**IDS, "datatype": "BYTES", "data": ["a", "b", "c"]}]}, r"inputs\[0\]\.datatype: is 'BYTES', expected INT64"),
    ({"inputs": [{**IDS, "shape": [3]}]}, r"inputs\[0\]\.shape: is \[3\], expected \[rows, tokens\]"),
    ({"inputs": [{**IDS, "data": [2, 538, 3]}]}, r"inputs\[0\]\.data\[1\]: is 538, expected 0 to 537 \(input_ids\)"),
    ({"inputs": [{**IDS, "data": [2, 2**70, 3]}]}, r"inputs\[0\]\.data: holds 118\d+, which does not fit into INT64"),
    ({"inputs": [{**IDS, "data": [2, 1.5, 3]}]}, r"inputs\[0\]\.data\[1\]: is 1.5, expected an integer"),
    ({"inputs": [{**IDS, "data": [2, True, 3]}]}, r"inputs\[0\]\.data\[1\]: is True, expected an integer"),
    ({"inputs": [{**IDS, "shape": [1, 65], "data": [2] * 65}]}, r"row 0 has 65 tokens, expected at most 64"),
    ({"inputs": [IDS, {**IDS, "name": "attention_mask", "data": [1, 0, 1]}]}, r"inputs\[1\]\.data: row 0 has 2 ones"),
    ({"inputs": [IDS, {**IDS, "name": "attention_mask", "data": [0, 0, 0]}]}, r"inputs\[1\]\.data: row 0 has 0 ones"),
    ({"inputs": [IDS, {**IDS, "name": "token_type_ids", "data": [0, 2, 0]}]}, r"inputs\[1\]\.data\[1\]: is 2, expected 0 to 1"),
    ({"inputs": [tensor("text", ["a"])], "outputs": [{"name": "score"}]}, r"outputs\[0\]\.name: is 'score', expected logits"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_a_malformed_request_is_a_400_that_names_the_field(client: TestClient, body: Any, said: str) -> None:
    response = client.post(INFER, content=body if isinstance(body, bytes) else json.dumps(body))
    assert response.status_code == 400
    assert re.match(said, response.json()["error"]) or re.search(said, response.json()["error"]), response.text


@pytest.mark.parametrize(
    ("length", "tail", "size", "said"),
    [
        ("x", b"", 0, "Inference-Header-Content-Length: is 'x', expected 0 to"),
        ("99999", b"", 0, "Inference-Header-Content-Length: is '99999', expected 0 to"),
        (None, b"\x01\x00\x00\x00a", 6, "inputs[0].parameters.binary_data_size: is 6, expected 0 to 5"),
        (None, b"\x02\x00\x00\x00a", 5, "inputs[0].data: ends within element 0"),
        (None, b"\x01\x00\x00\x00\xff", 5, "inputs[0].data[0]: is not UTF-8: invalid start byte at byte 0"),
        (None, b"\x01\x00\x00\x00a", 0, "inputs[0].data: has 0 elements, expected 1"),
        (None, b"\x01\x00\x00\x00ab", 5, "body: has 1 bytes behind the JSON that belong to no tensor"),
    ],
)
def test_malformed_binary_tensors_are_a_400_that_names_the_field(
    client: TestClient, length: str | None, tail: bytes, size: int, said: str
) -> None:
    one = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [one]}).encode()
    headers = {"Inference-Header-Content-Length": length or str(len(head))}
    response = client.post(INFER, content=head + tail, headers=headers)
    assert response.status_code == 400 and said in response.json()["error"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**65)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["BYTES", "INT64"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["binary_data_size", "a"]), inner, max_size=2)
    ),
    max_leaves=8,
)
NAMES = st.sampled_from(["text", "text_pair", "input_ids", "attention_mask", "token_type_ids"])
SOUND = st.fixed_dictionaries(
    {"name": NAMES, "datatype": st.sampled_from(["BYTES", "INT64", "INT32"]),
     "shape": st.lists(st.integers(0, 4), min_size=1, max_size=3),
     "data": st.lists(st.text(max_size=9) | st.integers(-1, 600), max_size=9)}
)  # fmt: skip
ODD = st.dictionaries(st.sampled_from(["name", "datatype", "shape", "data", "parameters"]), VALUES, max_size=5)
BODIES = st.one_of(
    st.fixed_dictionaries({"inputs": st.lists(SOUND | ODD, max_size=4)}, optional={"outputs": VALUES, "id": VALUES}),
    VALUES,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES, bytes_too=st.booleans())
def test_no_request_whatever_is_an_error_of_the_server(client: TestClient, body: Any, bytes_too: bool) -> None:
    content = json.dumps(body).encode()
    headers = {"Inference-Header-Content-Length": str(max(len(content) - 3, 0))} if bytes_too else {}
    response = client.post(INFER, content=content, headers=headers)
    assert response.status_code in (200, 400), (response.text, body)
    assert response.status_code == 200 or response.json()["error"]


def test_a_body_over_the_limit_is_a_413_whether_or_not_it_says_its_size(client: TestClient) -> None:
    large = json.dumps({"inputs": [tensor("text", ["a" * MOST_BYTES])]}).encode()
    stated = client.post(INFER, content=large)
    in_parts = client.post(INFER, content=(large[i : i + 999] for i in range(0, len(large), 999)))
    for response in (stated, in_parts):
        assert response.status_code == 413 and "larger than 20000 bytes" in response.json()["error"]


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/other/infer", "/v2/models/nli-mini/versions/2/ready"])
def test_another_model_or_version_is_a_404_that_names_ours(client: TestClient, path: str) -> None:
    response = client.post(path, json={}) if path.endswith("infer") else client.get(path)
    assert response.status_code == 404 and "there is nli-mini, version 1" in response.json()["error"]
    assert client.get(INFER).status_code == 405


# -- what it says of itself ------------------------------------------------------------------------------------------------


def test_health_and_metadata_are_those_of_the_protocol(client: TestClient) -> None:
    for path in (
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/nli-mini/ready",
        "/v2/models/nli-mini/versions/1/ready",
    ):
        assert client.get(path).status_code == 200
    server = client.get("/v2").json()
    assert {"name", "version", "extensions"} <= server.keys()
    model = client.get("/v2/models/nli-mini").json()
    assert model["versions"] == ["1"] and model["parameters"]["labels"] == ["entailment", "neutral", "contradiction"]
    assert {one["name"]: one["datatype"] for one in model["inputs"]}["text"] == "BYTES"
    answered = by_name(client.post(INFER, json={"inputs": [tensor("text", ["a"])]}))
    assert [one["name"] for one in model["outputs"]] == list(answered)
    assert [len(one["shape"]) for one in model["outputs"]] == [value.ndim for value in answered.values()]


def test_metrics_count_requests_batches_and_tokens(answerer: Answerer) -> None:
    with TestClient(application(Server(answerer, Policy(rows=4), MOST_BYTES, "0"))) as client:
        client.post(INFER, json={"inputs": [tensor("text", ["a woman"] * 10)]})
        client.post(INFER, json={})
        response = client.get("/metrics")
    values = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    assert response.headers["content-type"].startswith("text/plain")
    assert (
        float(values['axformer_requests_total{code="200"}'])
        == float(values['axformer_requests_total{code="400"}'])
        == 1
    )
    assert float(values["axformer_batch_rows_sum"]) == 10 and float(values["axformer_batch_rows_count"]) == 3
    assert float(values["axformer_tokens_total"]) == 10 * len(answerer.encode([("a woman",)]).ids)
    assert float(values["axformer_queue_rows"]) == 0 and float(values["axformer_padding_tokens_total"]) == 0


def test_the_description_names_every_route_and_its_messages(client: TestClient) -> None:
    said = client.get("/openapi.json").json()
    assert said == description("nli-mini", "0")
    for path, methods in said["paths"].items():
        response = client.post(path, json={}) if "post" in methods else client.get(path)
        assert str(response.status_code) in next(iter(methods.values()))["responses"]
    named = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(said))
    assert set(named) <= said["components"]["schemas"].keys() and {"InferenceRequest", "ErrorResponse"} <= set(named)


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    parts = {name: client.get(f"/{name}") for name in re.findall(r'(?:href|src)="(page\.\w+)"', page.text)}
    assert parts.keys() == {"page.css", "page.js"} and all(part.status_code == 200 for part in parts.values())
    assert not re.search(
        r"https?:|//\w|@import|url\(|innerHTML|eval",
        page.text + "".join(p.text for p in parts.values() if p).replace("// Asks", ""),
    )
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "prefers-color-scheme: dark" in parts["page.css"].text
