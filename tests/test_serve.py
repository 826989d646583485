"""`axformer-onnx serve` as a process: it says where it is, ends well on SIGTERM, and refuses in one line."""

from __future__ import annotations

import _thread
import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the [serve] extra")

import axformer_onnx as ax
from axformer_onnx.options import ServeOptions, make
from axformer_onnx.serving import Started, serve

MODEL = Path(__file__).parents[1] / "models" / "nli-mini"
BODY = json.dumps(
    {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a woman sleeps"]}]}
).encode()


@contextmanager
def process(*options: object) -> Iterator[subprocess.Popen[str]]:
    """The command, killed in the end if it still runs."""
    words = [sys.executable, "-m", "axformer_onnx", "serve", str(MODEL), "--threads", "1", *map(str, options)]
    started = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


def asked(url: str, body: bytes | None = None) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as response:
        text = response.read().decode()
    return json.loads(text) if text.startswith("{") else text


def test_it_says_where_it_is_and_finishes_what_it_was_asked_when_it_is_told_to_stop() -> None:
    answers: list[Any] = []
    with process("--port", 0, "--json", "--name", "nli", "--max-delay", 1500) as server:
        assert server.stdout is not None
        said = json.loads(server.stdout.readline())
        assert said["infer"] == f"{said['url']}/v2/models/nli/infer" and said["url"].startswith("http://127.0.0.1:")
        asking = threading.Thread(target=lambda: answers.append(asked(said["infer"], BODY)))
        asking.start()
        while not answers and "axformer_queue_rows 1.0" not in asked(f"{said['url']}/metrics"):
            time.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        asking.join(60)
        assert server.wait(60) == 0
        rest = server.communicate()
    assert answers[0]["outputs"][-1]["data"][0] in ("entailment", "neutral", "contradiction")
    assert rest == ("", "")


def test_where_an_event_loop_runs_already_it_serves_until_it_is_interrupted() -> None:
    answers: list[Any] = []

    def started(one: Started) -> None:
        def ask() -> None:
            answers.append(asked(f"{one.url}/v2/models/{one.name}/infer", BODY))
            _thread.interrupt_main()

        threading.Thread(target=ask).start()

    async def notebook() -> None:
        serve(make(ServeOptions, {"model": MODEL, "port": 0, "threads": 1}), started)

    loop, before = asyncio.new_event_loop(), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        # as in a notebook, whose loop leaves Ctrl-C to what it runs; asyncio.run would take it for itself
        loop.run_until_complete(notebook())
    finally:
        loop.close()
        signal.signal(signal.SIGINT, before)
    assert answers[0]["model_name"] == "nli-mini"


def test_a_port_in_use_is_one_line(call: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = call("serve", MODEL, "--port", port)
        assert (code, out) == (
            3,
            "",
        ) and f"error: 127.0.0.1:{port}: the port is in use; give another with --port" in err
        with pytest.raises(ax.RuntimeFailure, match="give another with port"):
            ax.serve(MODEL, port=port)


@pytest.mark.parametrize("module", ["uvicorn", "starlette", "prometheus_client"])
def test_a_missing_extra_is_one_line(call: Any, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    code, out, err = call("serve", MODEL)
    assert (code, out) == (3, "") and "serve needs an extra: pip install 'axformer-onnx[serve]'" in err
    assert module in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--host", "no such host"], 3, "--host no such host: "),
        (["--host", "203.0.113.7"], 3, "203.0.113.7:8000: cannot be opened"),
        (["--port", "70000"], 2, "70000 is not in the range"),
        (["--max-batch", "0"], 2, "0 is not in the range"),
        (["--name", "a/b"], 2, "--name is 'a/b'"),
        (["--task", "sst3"], 2, "Did you mean sst2?"),
        (["--port", "0", "--max-length", "65"], 2, "--max-length is 65"),
    ],
)
def test_mistakes_in_options_are_told(call: Any, options: list[str], code: int, said: str) -> None:
    found, out, err = call("serve", MODEL, *options)
    assert (found, out) == (code, "") and said in err, err


def test_a_server_that_others_reach_says_so() -> None:
    from axformer_onnx.serving import running

    assert running._exposed("127.0.0.1") == () == running._exposed("::1")
    assert "no authentication" in running._exposed("0.0.0.0")[0]
