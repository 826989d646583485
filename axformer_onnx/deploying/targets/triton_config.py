"""config.pbtxt of Triton's model configuration (`model_config.proto`), as text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from axformer_onnx.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_onnx.options import DeployOptions

_TYPES = {
    "FLOAT": "TYPE_FP32", "FLOAT16": "TYPE_FP16", "BFLOAT16": "TYPE_BF16", "DOUBLE": "TYPE_FP64", "INT64": "TYPE_INT64",
    "INT32": "TYPE_INT32", "INT16": "TYPE_INT16", "INT8": "TYPE_INT8", "UINT8": "TYPE_UINT8", "BOOL": "TYPE_BOOL",
    "STRING": "TYPE_STRING",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a model on the server.

    dims   sizes without the batch's axis where the server batches; -1: any
    """

    name: str
    type: str
    dims: tuple[int, ...]

    @property
    def text(self) -> str:
        """As an entry of `input` or `output`."""
        return f"{{ name: {json.dumps(self.name)} data_type: {self.type} dims: [ {', '.join(map(str, self.dims))} ] }}"


@dataclasses.dataclass(frozen=True)
class Faces:
    """Inputs and outputs of a model, and whether the server may put rows of several requests into one batch."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batched: bool


def faces_of(model: ir.Model) -> Faces:
    """Raises: UsageError for a type that the server has not."""
    values = (*model.graph.inputs, *model.graph.outputs)
    batched = all(
        value.shape is not None and len(value.shape) > 1 and not isinstance(value.shape[0], int) for value in values
    )
    return Faces(
        tuple(_tensor(value, batched) for value in model.graph.inputs),
        tuple(_tensor(value, batched) for value in model.graph.outputs),
        batched,
    )


def _tensor(value: ir.Value, batched: bool) -> Tensor:
    kind = value.dtype.name if value.dtype is not None else "no type"
    if kind not in _TYPES:
        raise UsageError(f"{value.name!r} is of {kind}, which Triton has no name for")
    if value.shape is None:
        raise UsageError(
            f"{value.name!r} states no shape, which Triton's configuration needs; infer shapes with onnx.shape_inference first"
        )
    dims = tuple(axis if isinstance(axis, int) else -1 for axis in value.shape)
    return Tensor(str(value.name), _TYPES[kind], dims[1:] if batched else dims)


def model_config(
    name: str,
    faces: Faces,
    options: DeployOptions,
    *,
    backend: str = "onnxruntime",
    warm_up: Mapping[str, Sequence[int]] | None = None,
    parameters: Mapping[str, str] | None = None,
) -> str:
    """A model of one backend. `warm_up`: dims of each input whose values lie in the file warmup/NAME."""
    lines = [f"name: {json.dumps(name)}", f'backend: "{backend}"', *_batching(faces, options), *_tensors(faces)]
    kind = "KIND_GPU" if options.device == "gpu" and backend == "onnxruntime" else "KIND_CPU"
    lines.append(f"instance_group [ {{ count: {options.instances} kind: {kind} }} ]")
    if options.accelerator and backend == "onnxruntime":
        side = "cpu" if options.device == "cpu" else "gpu"
        lines.append(
            f"optimization {{ execution_accelerators {{ {side}_execution_accelerator : "
            f'[ {{ name : "{options.accelerator}" }} ] }} }}'
        )
    for key, value in (parameters or {}).items():
        lines.append(f"parameters {{ key: {json.dumps(key)} value: {{ string_value: {json.dumps(value)} }} }}")
    if warm_up:
        lines += _warm_up(faces, warm_up)
    return "\n".join(lines) + "\n"


def ensemble_config(
    name: str, texts: Tensor, faces: Faces, options: DeployOptions, steps: Sequence[tuple[str, Faces]]
) -> str:
    """Steps one after the other, tensors going by their own names; the first takes `texts`, the last answers what `faces` has."""
    outer = Faces((texts,), faces.outputs, faces.batched)
    lines = [
        f"name: {json.dumps(name)}",
        'platform: "ensemble"',
        *_batching(outer, options, dynamic=False),
        *_tensors(outer),
    ]
    lines.append("ensemble_scheduling { step [")
    for i, (model, step) in enumerate(steps):
        maps = [f"    input_map {{ key: {json.dumps(one.name)} value: {json.dumps(one.name)} }}" for one in step.inputs]
        maps += [
            f"    output_map {{ key: {json.dumps(one.name)} value: {json.dumps(one.name)} }}" for one in step.outputs
        ]
        lines += [
            f"  {{ model_name: {json.dumps(model)} model_version: -1",
            *maps,
            "  }," if i + 1 < len(steps) else "  }",
        ]
    return "\n".join([*lines, "] }"]) + "\n"


def _batching(faces: Faces, options: DeployOptions, dynamic: bool = True) -> list[str]:
    if not faces.batched:
        return ["max_batch_size: 0"]
    return [f"max_batch_size: {options.max_batch}", *(["dynamic_batching { }"] if dynamic else [])]


def _tensors(faces: Faces) -> list[str]:
    found = []
    for what, tensors in (("input", faces.inputs), ("output", faces.outputs)):
        found.append(f"{what} [\n  " + ",\n  ".join(one.text for one in tensors) + "\n]")
    return found


def _warm_up(faces: Faces, dims: Mapping[str, Sequence[int]]) -> list[str]:
    lines = ["model_warmup [ {", '  name: "a row"', f"  batch_size: {1 if faces.batched else 0}"]
    for one in faces.inputs:
        name, sizes = json.dumps(one.name), ", ".join(map(str, dims[one.name]))
        value = f"data_type: {one.type} dims: [ {sizes} ] input_data_file: {name}"
        lines.append(f"  inputs {{ key: {name} value: {{ {value} }} }}")
    return [*lines, "} ]"]
