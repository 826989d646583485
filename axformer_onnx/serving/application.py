"""The HTTP side: one model behind the Open Inference Protocol v2, with limits, counters and a page for people."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from axformer_onnx.errors import AxformerError
from axformer_onnx.serving.answering import Answerer
from axformer_onnx.serving.asking import read_rows
from axformer_onnx.serving.batching import Batcher, Policy, QueueFull
from axformer_onnx.serving.metrics import Metrics
from axformer_onnx.serving.openapi import description
from axformer_onnx.serving.protocol import JSON_LENGTH, read_request, write_response
from axformer_onnx.serving.tensors import BadRequest

_PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {"page.css": "text/css", "page.js": "text/javascript"}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
RETRY_SECONDS = "1"
_SHORT_BYTES = 4096
"""Texts of a body up to this size are encoded at once: that takes less time than to hand them to a thread."""


@dataclasses.dataclass(frozen=True)
class Server:
    """What the routes work with: the model, how rows are batched, the largest body, and the version that is told."""

    answerer: Answerer
    policy: Policy
    most_bytes: int
    version: str
    metrics: Metrics = dataclasses.field(default_factory=Metrics)


def application(server: Server) -> Starlette:
    """The ASGI application. The queue lives as long as its lifespan; on the way out it is emptied."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.server = server
        app.state.batcher = batcher = Batcher(server.answerer.run, server.policy, server.metrics)
        batcher.start()
        yield
        await batcher.stop()

    routes = [Route("/", _page), *(Route(f"/{name}", _page_file) for name in _PAGE_FILES)]
    routes += [
        Route("/metrics", _metrics),
        Route("/openapi.json", _openapi),
        Route("/v2", _server_metadata),
        Route("/v2/health/live", _live),
        Route("/v2/health/ready", _ready),
    ]
    for at in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [Route(at, _model_metadata), Route(f"{at}/ready", _ready)]
        routes.append(Route(f"{at}/infer", _infer, methods=["POST"]))
    handlers = {HTTPException: _refused, Exception: _failed}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)  # type: ignore[arg-type]


# -- answers ---------------------------------------------------------------------------------------------------------------


async def _infer(request: Request) -> Response:
    """One answer, counted."""
    metrics, started = _server(request).metrics, time.monotonic()
    try:
        response = await _answered(request)
    except HTTPException as error:
        response = await _refused(request, error)
    except BadRequest as error:
        response = _error(400, str(error))
    except QueueFull as error:
        response = _error(503, str(error), {"Retry-After": RETRY_SECONDS})
    except AxformerError as error:
        response = _error(500, str(error))
    except Exception:
        metrics.requests.labels("500").inc()
        raise
    metrics.requests.labels(str(response.status_code)).inc()
    metrics.seconds.observe(time.monotonic() - started)
    return response


async def _answered(request: Request) -> Response:
    server, answerer = _server(request), _model(request)
    body = await _body(request, server.most_bytes)
    asked = read_request(body, request.headers.get(JSON_LENGTH))
    if len(body) > _SHORT_BYTES:
        encoded = await asyncio.to_thread(read_rows, answerer, asked.inputs, server.policy.queue)
    else:
        encoded = read_rows(answerer, asked.inputs, server.policy.queue)
    ran = await request.app.state.batcher.submit(encoded)
    server.metrics.truncated.inc(encoded.truncated)
    about = {
        "queue_ms": round(1e3 * ran.queue_s, 3), "run_ms": round(1e3 * ran.run_s, 3),
        "tokens": int(encoded.offsets[-1]), "truncated": encoded.truncated,
    }  # fmt: skip
    content, json_length = write_response(answerer.name, asked, answerer.answers(ran.outputs, encoded), about)
    if json_length is None:
        return Response(content, media_type="application/json")
    return Response(content, media_type="application/octet-stream", headers={JSON_LENGTH: str(json_length)})


async def _body(request: Request, most: int) -> bytes:
    """The whole body. Raises: HTTPException 413 as soon as it is known to be larger than `most` bytes."""
    too_large = HTTPException(413, f"body: is larger than {most} bytes (--max-body)")
    stated = request.headers.get("content-length", "")
    if stated.isascii() and stated.isdigit() and int(stated) > most:
        raise too_large
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > most:
            raise too_large
    return bytes(found)


async def _model_metadata(request: Request) -> Response:
    answerer = _model(request)
    task = answerer.reading.task
    kind = getattr(task.kind, "inner", task.kind)
    parameters = {
        "task": task.name, "kind": kind.name, "labels": list(answerer.labels), "texts": answerer.texts,
        "columns": list(task.columns), "max_length": answerer.reading.encoder.max_length,
        "max_batch": _server(request).policy.rows,
    }  # fmt: skip
    return JSONResponse(
        {
            "name": answerer.name,
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [one.to_json() for one in answerer.inputs()],
            "outputs": [one.to_json() for one in answerer.outputs()],
            "parameters": parameters,
        }
    )


async def _server_metadata(request: Request) -> Response:
    server = _server(request)
    return JSONResponse(
        {
            "name": "axformer-onnx",
            "version": server.version,
            "extensions": ["binary_tensor_data"],
            "parameters": {"model": server.answerer.name},
        }
    )


async def _live(request: Request) -> Response:
    return JSONResponse({"live": True})


async def _ready(request: Request) -> Response:
    """The model was loaded before the port was opened."""
    if "name" in request.path_params:
        return JSONResponse({"name": _model(request).name, "ready": True})
    return JSONResponse({"ready": True})


# -- for people and machines -----------------------------------------------------------------------------------------------


async def _metrics(request: Request) -> Response:
    content, kind = _server(request).metrics.text()
    return Response(content, media_type=kind)


async def _openapi(request: Request) -> Response:
    server = _server(request)
    return JSONResponse(description(server.answerer.name, server.version))


async def _page(request: Request) -> Response:
    return FileResponse(_PAGE / "page.html", headers=_PAGE_HEADERS)


async def _page_file(request: Request) -> Response:
    name = request.url.path.lstrip("/")
    return FileResponse(_PAGE / name, media_type=_PAGE_FILES[name], headers=_PAGE_HEADERS)


# -- refusals --------------------------------------------------------------------------------------------------------------


def _server(request: Request) -> Server:
    found = request.app.state.server
    assert isinstance(found, Server)
    return found


def _model(request: Request) -> Answerer:
    """The model that the path names. Raises: HTTPException 404."""
    answerer, asked = _server(request).answerer, request.path_params
    if asked["name"] != answerer.name or asked.get("version", "1") != "1":
        wanted = f"{asked['name']}, version {asked['version']}" if "version" in asked else asked["name"]
        raise HTTPException(404, f"there is no model {wanted:.100}; there is {answerer.name}, version 1")
    return answerer


async def _refused(request: Request, error: HTTPException) -> Response:
    return _error(error.status_code, f"{error.detail}", dict(error.headers or {}))


async def _failed(request: Request, error: Exception) -> Response:
    """A bug of ours: its traceback goes to the log."""
    return _error(500, f"{type(error).__name__} in the server; its log says more")


def _error(code: int, said: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": " ".join(said.split())}, code, headers)
