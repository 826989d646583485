"""The OpenAPI description of the endpoint, `GET /openapi.json`, made of the messages' own models."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from axformer_onnx.serving.protocol import ErrorResponse, InferenceRequest, InferenceResponse

_SCHEMAS = "#/components/schemas/"
_REFUSALS = {
    "400": "The request is malformed; the line names the field.",
    "404": "There is no such model.",
    "413": "The body is too large.",
    "500": "ONNX Runtime refuses.",
    "503": "The queue is full; Retry-After says when to come again.",
}


def description(model: str, version: str) -> dict[str, Any]:
    """Of a server whose model is called `model`."""
    _, found = models_json_schema(
        [(InferenceRequest, "validation"), (InferenceResponse, "validation"), (ErrorResponse, "validation")],
        ref_template=_SCHEMAS + "{model}",
    )
    at = f"/v2/models/{model}"
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{model}, by axformer-onnx", "version": version},
        "paths": {
            "/v2": _read("Metadata of the server."),
            "/v2/health/live": _read("The server runs."),
            "/v2/health/ready": _read("The server answers."),
            at: _read("Inputs, outputs and labels of the model."),
            f"{at}/ready": _read("The model answers."),
            f"{at}/infer": _infer(),
            "/metrics": _read("Counters for Prometheus.", "text/plain"),
        },
        "components": {"schemas": found["$defs"]},
    }


def _read(what: str, kind: str = "application/json") -> dict[str, Any]:
    return {"get": {"summary": what, "responses": {"200": {"description": what, "content": {kind: {}}}}}}


def _infer() -> dict[str, Any]:
    answers = {"200": _content("The answer.", "InferenceResponse")}
    answers |= {code: _content(what, "ErrorResponse") for code, what in _REFUSALS.items()}
    body = {"required": True, **_content("", "InferenceRequest")}
    return {"post": {"summary": "Answer rows of texts or of token ids.", "requestBody": body, "responses": answers}}


def _content(what: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _SCHEMAS + schema}}}
    return {"description": what, "content": content} if what else {"content": content}
