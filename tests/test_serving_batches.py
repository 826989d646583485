"""The queue of `serve`: which rows share a batch, what a row that fails costs the others, when it is full, how it ends."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="needs the [serve] extra")
pytest.importorskip("httpx2", reason="needs the [serve] extra")
from starlette.testclient import TestClient
from test_text import save_tokenizer
from tiny_classifier import tiny_classifier

from axformer_onnx.data import Encoded
from axformer_onnx.data.tokenizer_files import Padding
from axformer_onnx.errors import DataError, RuntimeFailure
from axformer_onnx.records import FloatArray
from axformer_onnx.scoring import Machine
from axformer_onnx.serving.answering import Answerer
from axformer_onnx.serving.application import Server, application
from axformer_onnx.serving.batching import MOST_PADDING, Batcher, Policy, QueueFull, chosen
from axformer_onnx.serving.metrics import Metrics

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=40)


def rows(*lengths: int) -> Encoded:
    """Rows of so many tokens; a row's ids are its length."""
    ids = np.concatenate([np.full(n, n) for n in lengths])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Encoded(ids, np.zeros_like(ids), offsets, 0, 512, Padding())


class Runs:
    """Stands for ONNX Runtime: answers each row with its first id, writes down the batches, refuses rows of 13 tokens."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, encoded: Encoded) -> FloatArray:
        self.go.wait(60)
        self.batches.append(encoded.lengths.tolist())
        if 13 in self.batches[-1]:
            raise RuntimeFailure("thirteen")
        return np.array([[encoded.ids[start]] for start in encoded.offsets[:-1]], dtype=np.float32)


def served(policy: Policy, use: Callable[[Batcher, Runs], Awaitable[None]]) -> Runs:
    """What ran while `use` had a queue that is emptied."""
    runs = Runs()

    async def whole() -> None:
        batcher = Batcher(runs, policy, Metrics())
        batcher.start()
        try:
            await use(batcher, runs)
        finally:
            runs.go.set()
            await batcher.stop()

    asyncio.run(whole())
    return runs


@given(lengths=LENGTHS, most=st.integers(1, 16))
def test_a_batch_holds_the_oldest_row_and_little_padding(lengths: list[int], most: int) -> None:
    batch = chosen(lengths, Policy(rows=most))
    real = [lengths[i] for i in batch]
    assert batch[0] == 0 and batch == sorted(set(batch)) and len(batch) <= most
    assert len(batch) * max(real) <= (1 + MOST_PADDING) * sum(real) + 1e-9


@given(lengths=LENGTHS)
def test_a_model_without_padding_gets_rows_of_one_length_and_a_filled_one_whatever_waits(lengths: list[int]) -> None:
    assert chosen(lengths, Policy(rows=99, padded=False)) == [i for i, n in enumerate(lengths) if n == lengths[0]]
    assert chosen(lengths, Policy(rows=99, filled=True)) == list(range(len(lengths)))


def test_rows_that_arrive_during_a_run_form_the_next_batch_by_length() -> None:
    async def use(batcher: Batcher, runs: Runs) -> None:
        runs.go.clear()
        waiting = [asyncio.create_task(batcher.submit(rows(n))) for n in (5, 40, 41, 6, 42)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        runs.go.set()
        found = [await one for one in waiting]
        assert [one.outputs.tolist() for one in found] == [[[5.0]], [[40.0]], [[41.0]], [[6.0]], [[42.0]]]

    batches = served(Policy(), use).batches
    assert sorted(map(sorted, batches)) in ([[5], [6], [40, 41, 42]], [[5, 6], [40, 41, 42]])


def test_a_request_of_many_rows_is_answered_in_its_order_over_several_batches() -> None:
    lengths = [3, 50, 4, 60, 5, 9, 8]

    async def use(batcher: Batcher, runs: Runs) -> None:
        assert (await batcher.submit(rows(*lengths))).outputs[:, 0].tolist() == lengths

    batches = served(Policy(rows=2), use).batches
    assert sorted(n for batch in batches for n in batch) == sorted(lengths) and max(map(len, batches)) == 2


def test_a_row_that_is_refused_costs_no_other_its_answer() -> None:
    async def use(batcher: Batcher, runs: Runs) -> None:
        runs.go.clear()
        first = asyncio.create_task(batcher.submit(rows(2)))
        await asyncio.sleep(0.01)
        sent = [asyncio.create_task(batcher.submit(rows(n))) for n in (12, 13, 14)]
        await asyncio.sleep(0.01)
        runs.go.set()
        found = await asyncio.gather(first, *sent, return_exceptions=True)
        assert isinstance(found[2], RuntimeFailure) and str(found[2]) == "thirteen"
        assert [one.outputs[0, 0] for i, one in enumerate(found) if i != 2] == [2, 12, 14]  # type: ignore[union-attr]

    assert [12, 13, 14] in served(Policy(), use).batches


def test_a_bug_in_a_run_reaches_the_caller_and_the_queue_goes_on() -> None:
    async def use(batcher: Batcher, runs: Runs) -> None:
        batcher._run = None  # type: ignore[assignment]
        with pytest.raises(TypeError):
            await batcher.submit(rows(3))
        batcher._run = runs
        assert (await batcher.submit(rows(3))).outputs.tolist() == [[3.0]]

    served(Policy(), use)


def test_a_delay_waits_for_company_until_a_batch_is_full() -> None:
    async def use(batcher: Batcher, runs: Runs) -> None:
        await asyncio.gather(*(batcher.submit(rows(7)) for _ in range(4)))

    assert served(Policy(rows=4, delay_s=600), use).batches == [[7, 7, 7, 7]]


def test_what_waits_is_answered_when_the_queue_is_stopped() -> None:
    answered = []

    async def use(batcher: Batcher, runs: Runs) -> None:
        async def ask() -> None:
            answered.append((await batcher.submit(rows(7))).outputs)

        waiting.append(asyncio.create_task(ask()))
        await asyncio.sleep(0)

    waiting: list[Any] = []
    served(Policy(delay_s=600), use)
    assert len(answered) == 1


def test_a_full_queue_refuses_and_takes_rows_again_when_there_is_room() -> None:
    async def use(batcher: Batcher, runs: Runs) -> None:
        runs.go.clear()
        first = asyncio.create_task(batcher.submit(rows(1)))
        await asyncio.sleep(0.01)  # it runs, and waits no more
        second = asyncio.create_task(batcher.submit(rows(1, 2)))
        await asyncio.sleep(0.01)
        with pytest.raises(QueueFull, match="2 rows wait, of 2 that may"):
            await batcher.submit(rows(3))
        runs.go.set()
        await asyncio.gather(first, second)
        assert (await batcher.submit(rows(4, 5))).outputs.shape == (2, 1)

    served(Policy(queue=2), use)


# -- kinds of task ---------------------------------------------------------------------------------------------------------

DRAW = np.random.default_rng(3)


def folder(path: Path, columns: int, config: dict[str, Any], output: str = "logits") -> tuple[Path, np.ndarray]:
    """A model folder whose answers are means of rows of the table that is returned."""
    path.mkdir()
    table = DRAW.standard_normal((50, columns)).astype(np.float32)
    (path / "model.onnx").write_bytes(tiny_classifier(table, output))
    save_tokenizer(path)
    (path / "config.json").write_text(json.dumps({"pad_token_id": 0, **config}))
    return path, table


def asked(path: Path, *texts: str, **options: Any) -> tuple[dict[str, np.ndarray], Encoded, dict[str, Any]]:
    """({output: values}, the tokens, the metadata) of a server on this folder."""
    answerer = Answerer.load(path / "model.onnx", Machine(threads=1), name="tiny", **options)
    with TestClient(application(Server(answerer, Policy(), 10**6, "0"))) as client:
        body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}]}
        response = client.post("/v2/models/tiny/infer", json=body)
        about = client.get("/v2/models/tiny").json()
    assert response.status_code == 200, response.text
    found = {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in response.json()["outputs"]}
    return found, answerer.encode([(text,) for text in texts]), about["parameters"]


def means(table: np.ndarray, encoded: Encoded) -> np.ndarray:
    """What the graph computes, by NumPy."""
    return np.array(
        [table[encoded.ids[a:b]].mean(axis=0) for a, b in zip(encoded.offsets, encoded.offsets[1:], strict=False)]
    )


def test_several_labels_get_a_sigmoid_each(tmp_path: Path) -> None:
    names = {"0": "joy", "1": "anger", "2": "fear"}
    config = {"id2label": names, "problem_type": "multi_label_classification"}
    path, table = folder(tmp_path / "model", 3, config)
    found, encoded, about = asked(path, "a b", "b c c")
    expected = 1 / (1 + np.exp(-means(table, encoded).astype(np.float64)))
    assert about["kind"] == "multilabel" and np.allclose(found["probabilities"], expected, atol=1e-6)
    words = [", ".join(names[str(i)] for i in np.flatnonzero(row > 0.5)) or "no label" for row in expected]
    assert found["label"].tolist() == words


def test_one_number_is_a_regression_without_labels(tmp_path: Path) -> None:
    path, table = folder(tmp_path / "model", 1, {})
    found, encoded, about = asked(path, "a b", "c")
    assert about["kind"] == "regression" and found.keys() == {"logits"}
    assert np.allclose(found["logits"], means(table, encoded), atol=1e-6)


def test_a_sentence_model_gives_its_embeddings_and_takes_single_texts(tmp_path: Path) -> None:
    path, table = folder(tmp_path / "model", 8, {}, "sentence_embedding")
    (path / "modules.json").write_text("[]")
    found, encoded, about = asked(path, "a b", "c", "b c a")
    assert about["kind"] == "embedding" and about["texts"] == 1 and found.keys() == {"sentence_embedding"}
    assert np.allclose(found["sentence_embedding"], means(table, encoded), atol=1e-6)


def test_the_kind_that_is_asked_for_wins(tmp_path: Path) -> None:
    path, _ = folder(tmp_path / "model", 3, {})
    assert asked(path, "a", task="multilabel")[2]["kind"] == "multilabel"
    assert asked(path, "a")[2]["kind"] == "classification"


@pytest.mark.parametrize(
    ("report", "task", "columns"),
    [
        ({"task": "sst2", "options": {}}, "sst2", ["sentence"]),
        ({"task": "custom", "options": {"columns": ["a", "b"], "metric": "f1"}}, "custom", ["a", "b"]),
        ({"task": "nothing we know", "options": {}}, "custom", ["text"]),
        ({}, "custom", ["text"]),
    ],
)
def test_the_task_is_that_of_the_run(tmp_path: Path, report: dict[str, Any], task: str, columns: list[str]) -> None:
    path, _ = folder(tmp_path / "model", 2, {})
    (path / "report.json").write_text(json.dumps(report))
    about = asked(path, "a")[2]
    assert (about["task"], about["columns"]) == (task, columns)


def test_a_model_that_no_task_reads_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    path, _ = folder(tmp_path / "model", 3, {"id2label": {"0": "a", "1": "b"}})
    with pytest.raises(DataError, match="id2label has 2 names"):
        Answerer.load(path / "model.onnx", Machine(threads=1))


def test_a_graph_that_rounds_by_the_range_of_a_batch_says_so(tmp_path: Path) -> None:
    path, table = folder(tmp_path / "model", 2, {})
    assert Answerer.load(path / "model.onnx", Machine(threads=1)).warnings == ()
    model = onnx.ModelProto.FromString(tiny_classifier(table, "exact"))
    rounded = ["rounded", "scale", "zero"]
    model.graph.node.extend(
        [
            onnx.helper.make_node("DynamicQuantizeLinear", ["exact"], rounded),
            onnx.helper.make_node("DequantizeLinear", rounded, ["logits"]),
        ]
    )
    model.graph.output[0].name = "logits"
    onnx.save(model, path / "model.onnx")
    answerer = Answerer.load(path / "model.onnx", Machine(threads=1))
    assert "--max-batch 1" in answerer.warnings[0]
    both = answerer.encode([("a b",), ("c",)])
    assert not np.array_equal(answerer.run(both)[:1], answerer.run(both.take([0])))


def test_a_full_queue_is_a_503_that_says_when_to_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = folder(tmp_path / "model", 2, {})
    answerer, runs, go, original = (
        Answerer.load(path / "model.onnx", Machine(threads=1)),
        0,
        threading.Event(),
        Answerer.run,
    )

    def slow(self: Answerer, encoded: Encoded) -> FloatArray:
        nonlocal runs
        runs += 1
        go.wait(60)
        return original(self, encoded)

    monkeypatch.setattr(Answerer, "run", slow)
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}]}
    with (
        TestClient(application(Server(answerer, Policy(queue=2), 10**6, "0"))) as client,
        ThreadPoolExecutor(2) as others,
    ):
        first = others.submit(client.post, "/v2/models/model/infer", json=body)
        until(lambda: runs == 1)
        second = others.submit(client.post, "/v2/models/model/infer", json=body)
        until(lambda: "axformer_queue_rows 2.0" in client.get("/metrics").text)
        refused = client.post("/v2/models/model/infer", json=body)
        go.set()
        assert [first.result().status_code, second.result().status_code] == [200, 200]
    assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
    assert "2 rows wait" in refused.json()["error"]


def until(what: Callable[[], bool]) -> None:
    """Wait for it, a minute at most."""
    for _ in range(6000):
        if what():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come to pass within a minute")
