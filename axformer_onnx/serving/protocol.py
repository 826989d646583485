"""The messages of the Open Inference Protocol v2 over HTTP: a request's body to tensors, an answer's tensors to a body.

Bodies are JSON. With the header Inference-Header-Content-Length the JSON is so many bytes long, and the bytes of tensors follow
it, in their order: those whose parameters have `binary_data_size`; in an answer, those that were asked for with `binary_data`.
Source: the protocol's "Predict protocol, version 2" and its extension "Binary tensor data".
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from axformer_onnx.serving.tensors import BadRequest, Tensor, elements, raw, read_tensor

JSON_LENGTH = "inference-header-content-length"
"""The header that says where the bytes of tensors begin."""
_SIZE = Annotated[int, Field(ge=0, le=2**40)]


class _Message(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), strict=True)


class InputTensor(_Message):
    """A tensor of a request: text or text_pair as BYTES, input_ids and the like as INT64."""

    name: str
    shape: Annotated[list[_SIZE], Field(min_length=1)]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class RequestedOutput(_Message):
    """An output that is asked for by name."""

    name: str
    parameters: dict[str, Any] = {}


class InferenceRequest(_Message):
    """What is asked. Without `outputs` all of them are given."""

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: Annotated[list[InputTensor], Field(min_length=1)]
    outputs: list[RequestedOutput] | None = None


class OutputTensor(_Message):
    """A tensor of an answer."""

    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferenceResponse(_Message):
    """What is answered. parameters: queue_ms and run_ms of the slowest row, tokens, truncated rows."""

    model_name: str
    model_version: str
    id: str
    parameters: dict[str, Any] = {}
    outputs: list[OutputTensor]


class ErrorResponse(_Message):
    """Why there is no answer: one line."""

    error: str


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request as it was understood. outputs: names and whether as bytes; None: all, as `binary` says."""

    id: str
    inputs: tuple[Tensor, ...]
    outputs: dict[str, bool] | None
    binary: bool


def read_request(body: bytes, json_length: str | None = None) -> Asked:
    """A request's body; `json_length`: what the header JSON_LENGTH says.

    Raises: BadRequest naming the field.
    """
    end = len(body)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdigit() and int(json_length) <= len(body)):
            raise BadRequest("Inference-Header-Content-Length", f"is {json_length!r:.40}, expected 0 to {len(body)}")
        end = int(json_length)
    try:
        request = InferenceRequest.model_validate_json(body[:end])
    except ValidationError as error:
        raise _refusal(error) from None
    binary = request.parameters.get("binary_data_output") is True
    outputs = None
    if request.outputs:
        outputs = {one.name: one.parameters.get("binary_data", binary) is True for one in request.outputs}
    return Asked(request.id or str(uuid.uuid4()), _tensors(request, body[end:]), outputs, binary)


def write_response(
    name: str, asked: Asked, outputs: Sequence[Tensor], parameters: dict[str, Any]
) -> tuple[bytes, int | None]:
    """(an answer's body, the length of its JSON where bytes follow it) with the outputs that were asked for.

    Raises: BadRequest for an output that there is not.
    """
    by_name = {one.name: one for one in outputs}
    chosen = asked.outputs if asked.outputs is not None else dict.fromkeys(by_name, asked.binary)
    described, tail = list[dict[str, Any]](), list[bytes]()
    for i, (output, as_bytes) in enumerate(chosen.items()):
        if output not in by_name:
            raise BadRequest(f"outputs[{i}].name", f"is {output!r:.60}, expected {', '.join(by_name)}")
        tensor = by_name[output]
        one: dict[str, Any] = {"name": output, "shape": tensor.shape, "datatype": tensor.datatype}
        if as_bytes:
            tail.append(raw(tensor))
            one["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            one["data"] = elements(tensor)
        described.append(one)
    answer = {"model_name": name, "model_version": "1", "id": asked.id, "parameters": parameters, "outputs": described}
    head = json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()
    return head + b"".join(tail), len(head) if tail else None


def _tensors(request: InferenceRequest, tail: bytes) -> tuple[Tensor, ...]:
    found, at = list[Tensor](), 0
    for i, one in enumerate(request.inputs):
        field, data = f"inputs[{i}]", one.data if one.data is not None else []
        size = one.parameters.get("binary_data_size")
        if size is not None:
            if type(size) is not int or not 0 <= size <= len(tail) - at:
                where = f"{field}.parameters.binary_data_size"
                raise BadRequest(where, f"is {size!r:.40}, expected 0 to {len(tail) - at}, the bytes behind the JSON")
            found.append(read_tensor(one.name, one.datatype, one.shape, tail[at : at + size], field))
            at += size
        else:
            found.append(read_tensor(one.name, one.datatype, one.shape, data, field))
    if at != len(tail):
        raise BadRequest("body", f"has {len(tail) - at} bytes behind the JSON that belong to no tensor")
    return tuple(found)


def _refusal(error: ValidationError) -> BadRequest:
    first = error.errors(include_url=False)[0]
    where = ""
    for part in first["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    if first["type"] == "json_invalid":
        return BadRequest("body", f"is no JSON: {first['ctx']['error']}")
    if first["type"] == "missing":
        return BadRequest(where, "is missing")
    return BadRequest(where or "body", f"is {first['input']!r:.40}: {first['msg'][0].lower()}{first['msg'][1:]}")
