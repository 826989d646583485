"""The options of a deployment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator, model_validator

from axformer_onnx.errors import UsageError
from axformer_onnx.options.base import Options, flag, option
from axformer_onnx.options.shared import ANY_MODEL
from axformer_onnx.options.target_kinds import TARGETS

Accelerator = Literal["openvino", "cuda", "tensorrt"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EVERYWHERE = ("model", "output", "for_", "form", "target_opset", "target_ir", "overwrite")
"""Options that mean something to every target."""


class DeployOptions(Options):
    """A graph, the target that it goes to, and the folder that the target reads."""

    model: Path = option(help=f"A finished run's folder. {ANY_MODEL}", positional=True)
    output: Path = option(help="The folder to write.", positional=True, metavar="OUT")
    for_: str = option(help="Who reads the folder.", choices=TARGETS)
    form: Literal["portable", "runtime"] = option(
        "portable", "runtime: model.runtime.onnx of the run, whose operators ONNX Runtime alone knows."
    )
    target_opset: int | None = option(
        None, "Operator set that the reader has: the graph is converted, or refused. Default: by --for.", ge=7
    )
    target_ir: int | None = option(None, "The same for the version of the file format (IR).", ge=4)
    name: str | None = option(None, "Of the model on the server (triton, mlserver); default: that of its folder.")
    max_batch: int = option(32, "Rows that the server may put into one batch (triton, mlserver).", ge=1)
    instances: int = option(1, "Copies of the model that run beside each other (triton).", ge=1)
    device: Literal["cpu", "gpu"] = option("cpu", "Where they run (triton).")
    accelerator: Accelerator | None = option(
        None, "What they run with (triton): openvino on a CPU, cuda or tensorrt on a GPU; default: ONNX Runtime alone."
    )
    tokenizer: bool = option(False, "Also an ensemble that takes texts (triton).")
    openvino_ir: bool = option(False, "Also OpenVINO's own format, model.xml; needs pip install openvino (openvino).")
    also: tuple[Path, ...] = option(
        (), "Another graph of the same model, in integers or half precision, repeatable (transformersjs)."
    )
    overwrite: bool = option(False, "Replace what an earlier deployment left in OUT.")

    @field_validator("for_")
    @classmethod
    def _known(cls, value: str) -> str:
        return TARGETS[value].name

    @field_validator("also", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _consistent(self) -> DeployOptions:
        knows = (*_EVERYWHERE, *TARGETS[self.for_].knows)
        for name, field in type(self).model_fields.items():
            if name not in knows and getattr(self, name) != field.default:
                others = ", ".join(target.name for target in TARGETS if name in target.knows)
                raise UsageError(f"{flag(name)} is for --for {others}; --for {self.for_} has no such setting")
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise UsageError(
                f"--name is {self.name!r:.80}: expected letters, digits, '.', '_' and '-', the first a letter or digit"
            )
        if self.accelerator and (self.accelerator == "openvino") == (self.device == "gpu"):
            wanted = "cpu" if self.accelerator == "openvino" else "gpu"
            raise UsageError(f"--accelerator {self.accelerator} goes with --device {wanted}")
        return self
