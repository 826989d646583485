"""The options of a run of optimize."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationInfo, field_validator, model_validator

from axformer_onnx.errors import AxformerError, UsageError
from axformer_onnx.options.base import Location, fields_of, flag, mark, option
from axformer_onnx.options.goal import Goal
from axformer_onnx.options.search_kinds import SEARCHES
from axformer_onnx.options.shared import ANY_MODEL, RunOptions, SampleOptions, TaskOptions
from axformer_passes.plan import Constants, KeysValues, Padding, Readout, SharedWeights
from axformer_passes.precision import DEFAULT_BITS, FEWEST_BITS, MOST_BITS, Activations, HalfType, Int8
from axformer_passes.rewrites import REWRITES

MAX_SEARCH_ROWS = 6000
"""Rows for search and select together, unless asked otherwise. 4,000 select rows give a paired difference in accuracy a
standard error of about a third of a point."""

EffortLevel = Literal["low", "medium", "high"]
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
Backend = Literal["local", "ray"]
_STATIC_PROVIDERS = frozenset({"TensorrtExecutionProvider", "OpenVINOExecutionProvider", "QNNExecutionProvider"})
"""Those that make integers of QuantizeLinear and DequantizeLinear, and know no products by dynamic ranges."""


def _rewrite(name: str) -> Any:
    rewrite = REWRITES[name]
    return option(rewrite.on if rewrite.usual else rewrite.off, rewrite.help, decisive=True)


class OptimizeOptions(TaskOptions, RunOptions, SampleOptions):
    """What to optimize, with which rows, how, and where to.

    goal      what the compensated search is asked for: max_drop, speedup or size, whichever was given
    machine   provider and threads; `shapes`: (batch, length) of the latency table, None: from the data
    """

    model: Path = option(help=ANY_MODEL, positional=True)
    search_data: Location | None = option(
        None, "File with rows for the search; default: a search file, else a part of train."
    )
    calibration: Location | None = option(
        None, "File with unlabelled rows for compensation; default: the search rows."
    )  # fmt: skip
    output: Path = option(
        None, "Folder; default: <folder of the model>-optimized here.", short="-o", validate_default=True
    )
    max_drop: float | None = option(
        None, "The fastest graph that scores within this many points of MODEL on the select rows; default: 0.", ge=0
    )
    speedup: float | None = option(
        None, "The most accurate graph that is measured at least this many times as fast.", gt=1
    )
    size: float | None = option(
        None, "The most accurate graph whose file is at most this fraction of MODEL's.", gt=0, lt=1
    )  # fmt: skip
    effort: EffortLevel = option("medium", "How many candidates are evaluated, and on how many rows.")
    search: str = option(
        "compensated", "How to find what can go.", choices=SEARCHES, decisive=True, validate_default=True
    )
    refit_classifier: bool = option(
        False, "Also refit the last linear layer, with the labels of the search rows.", decisive="if set"
    )
    quantize: Literal["int8", "none"] | None = option(
        None,
        "int8: products of 8-bit integers where they cost least, chosen together with what is removed; all other weights are "
        "stored in 8 bits; none: float32. Default: int8 for a MODEL that comes quantised.",
        decisive="if set",
    )
    weight_bits: int = option(
        DEFAULT_BITS,
        "Of quantised products: 7 give the same answers on every CPU, 8 need VNNI, AMX or ARM.",
        ge=FEWEST_BITS,
        le=MOST_BITS,
        decisive="if set",
    )
    activations: Activations | None = option(
        None,
        "dynamic: the range of an activation is that of its tensor as it comes; static: found on search rows, written as "
        "QuantizeLinear and DequantizeLinear, for TensorRT, OpenVINO and NPUs; static-uint8: the same for ONNX Runtime on x86 "
        "CPUs, which take unsigned integers alone. Default: static for tensorrt, openvino and qnn, else dynamic.",
        decisive="if set",
    )
    embedding_bits: Literal[8, 4] = option(
        8, "Of embeddings: 8, a scale a row; 4 on request, a scale a block of columns.", decisive="if set"
    )
    half: HalfType | None = option(
        None,
        "fp16, bf16: the graph in half precision, for CUDA; nodes whose numbers would not fit stay float32.",
        decisive="if set",
    )
    structure: Literal["pruned", "whole"] = option("pruned", "whole: remove nothing, only quantize.", decisive="if set")
    k: int = option(30, "K of hard attention (robust, axformer).", ge=1)
    readout: Readout = _rewrite("readout")
    constants: Constants = _rewrite("constants")
    keys_values: KeysValues = _rewrite("keys_values")
    padding: Padding | Literal["measured"] = option(
        "kept",
        f"{REWRITES['padding'].help.rstrip('.')}; measured: where batches of the task's rows (8 and 32, or --batch) are faster so.",
        decisive=True,
    )
    runtime_form: Literal["measured", "none"] = option(
        "none",
        "measured: fused attention and packed products are measured on this machine; where one is faster, model.runtime.onnx lies "
        "beside the portable model.onnx, for servers that run ONNX Runtime.",
    )
    jobs: int = option(1, "Processes that score candidates (compensated).", ge=1)
    backend: Backend = option(
        "local",
        "Where those processes run; ray: the cluster that RAY_ADDRESS names, else a local one. Needs the extra [ray].",
    )
    shared_weights: SharedWeights | None = option(
        None,
        "Heads and neurons of layers that share weights: cut in all of them at once, or in each with a copy; default: together.",
    )
    max_search_rows: int = option(MAX_SEARCH_ROWS, "Rows for the search, select rows included.", ge=3)
    overwrite: bool = option(False, "Replace what an earlier run left in the output.")

    @field_validator("output", mode="before")
    @classmethod
    def _beside(cls, value: Any, info: ValidationInfo) -> Any:
        return default_output(info.data["model"]) if value is None and "model" in info.data else value

    @field_validator("search")
    @classmethod
    def _known(cls, value: str) -> str:
        return SEARCHES[value].name

    @model_validator(mode="after")
    def _consistent(self) -> OptimizeOptions:
        goals = self._goals()
        if len(goals) > 1:
            raise UsageError(f"{goals[0].words} and {goals[1].words} were given; name one goal")
        for name in ("structure", "weight_bits", "activations", "embedding_bits") if self.quantize != "int8" else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise UsageError(f"{self._said(name)} goes with --quantize int8")
        if self.quantize == "int8" and self.half:
            raise UsageError(f"--quantize {self.quantize} and --half {self.half} were given; name one")
        for name, reason in SEARCHES[self.search].refuses.items():
            if getattr(self, name) != type(self).model_fields[name].default:
                others = " or ".join(search.name for search in SEARCHES if name not in search.refuses)
                raise UsageError(f"{self._said(name)} is for --search {others}; --search {self.search} {reason}")
        return self

    @property
    def is_whole(self) -> bool:
        """Is nothing to be removed? Then nothing has to be made up for, either."""
        return self.structure == "whole"

    def _goals(self) -> list[Goal]:
        asked = (("drop", self.max_drop), ("speedup", self.speedup), ("size", self.size))
        return [Goal(kind, value) for kind, value in asked if value is not None]  # type: ignore[arg-type]

    def _said(self, name: str) -> str:
        value = getattr(self, name)
        return (
            flag(name)
            if value is True
            else f"{flag(name)} {value:g}"
            if isinstance(value, float)
            else f"{flag(name)} {value}"
        )

    @property
    def int8(self) -> Int8 | None:
        """What plans say about integers, the blocks left open."""
        if self.quantize != "int8":
            return None
        activations = self.activations or _usual_activations(self.provider)
        return Int8(tables=self.embedding_bits, bits=self.weight_bits, stored=True, activations=activations)

    @property
    def goal(self) -> Goal:
        """What the compensated search is asked for; by default no drop at all."""
        return next(iter(self._goals()), Goal())

    def decisive(self) -> dict[str, Any]:
        """What must be equal for a journal to be continued, by name: the fields marked so, and what the search adds to them."""
        fields, header = fields_of(type(self)), dict[str, Any]()
        for name, field in fields.items():
            if mark(field, "decisive") is True:
                header[name] = getattr(self, name)
            if name == "search":
                header |= {key: self._decided(key) for key in SEARCHES[self.search].decisive if self._counts(key)}
        return header

    def _decided(self, key: str) -> Any:
        value = getattr(self, key)
        return value.words if isinstance(value, Goal) else value

    def _counts(self, key: str) -> bool:
        field = type(self).model_fields.get(key)
        return field is None or mark(field, "decisive") != "if set" or getattr(self, key) != field.default

    def stated(self) -> dict[str, Any]:
        """The task, and every option that is not its default, by name: for the report."""
        stated = dict[str, Any]()
        for name, field in fields_of(type(self)).items():
            value = getattr(self, name)
            if value != field.default and name not in ("model", "output", "overwrite"):
                stated[name] = list(value) if isinstance(value, tuple) else getattr(value, "name", value)
        return stated


def _usual_activations(provider: str) -> Activations:
    """What a provider executes as integers. Raises: UsageError, RuntimeFailure as `providers_of`."""
    from axformer_onnx.runtime import provider_name

    return "static" if provider_name(provider) in _STATIC_PROVIDERS else "dynamic"


def default_output(model: Path) -> Path:
    """`<name of the model's folder>-optimized` in the working directory. Raises: ModelError where there is no model."""
    return Path(f"{_name_of(model)}-optimized")


def names_the_hub(model: Path) -> bool:
    """Is it a name as the hub has them, "owner/name" or one without an owner, and nothing that is here?"""
    return bool(_HUB_NAME.fullmatch(model.as_posix())) and model.suffix != ".onnx" and not model.exists()


def _name_of(model: Path) -> str:
    from axformer_passes.io import is_checkpoint, model_path, settings_folder

    if names_the_hub(model):
        return model.name
    try:
        return settings_folder(model_path(model)).resolve().name or "model"
    except AxformerError:
        if not is_checkpoint(model):
            raise
        return model.resolve().name
