"""The face of the package, for type checkers. Written by `make stub` from the options' models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from axformer_onnx.commands import CompareResult as CompareResult
from axformer_onnx.commands import Inspection as Inspection
from axformer_onnx.commands import OperatingPoint as OperatingPoint
from axformer_onnx.commands import OptimizeResult as OptimizeResult
from axformer_onnx.commands import Preview as Preview
from axformer_onnx.commands import ScorePair as ScorePair
from axformer_onnx.commands import ScoreResult as ScoreResult
from axformer_onnx.deploying import Deployment as Deployment
from axformer_onnx.errors import AxformerError as AxformerError
from axformer_onnx.errors import DataError as DataError
from axformer_onnx.errors import ModelError as ModelError
from axformer_onnx.errors import PlanError as PlanError
from axformer_onnx.errors import RecogniseError as RecogniseError
from axformer_onnx.errors import RuntimeFailure as RuntimeFailure
from axformer_onnx.errors import UsageError as UsageError
from axformer_onnx.errors import VerifyError as VerifyError
from axformer_onnx.exporting import ExportResult as ExportResult
from axformer_onnx.tasks import Task as Task
from axformer_passes.plan import Plan as Plan

__version__: str
__all__: list[str]

def apply(
    plan: str | Path | Plan,
    model: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    sample: str | Path | None = None,
) -> Path: ...
def compare(
    baseline: str | Path,
    candidate: str | Path,
    *,
    columns: Sequence[str] | str | None = None,
    label: str | None = None,
    metric: str | None = None,
    task: str | Task | None = None,
    data: str | Path | None = None,
    max_drop: float | None = None,
    max_divergence: float | None = None,
    min_speedup: float | None = None,
    max_size_ratio: float | None = None,
    strict: bool = False,
    error_rate: float = 0.05,
    repetitions: int = 8,
    clock: Literal["wall", "cpu"] = "wall",
    junit: str | Path | None = None,
    markdown: str | Path | None = None,
    benchmark: str | Path | None = None,
    bmf: str | Path | None = None,
    seed: int = 0,
    provider: str = "cpu",
    threads: int | None = None,
    batch: Sequence[int] | int = ...,
    length: Sequence[int] | int = ...,
    wait_for_quiet: float = 30.0,
    max_length: int | None = None,
    sample: str | Path | None = None,
) -> CompareResult: ...
def deploy(
    model: str | Path,
    output: str | Path,
    *,
    for_: str,
    form: Literal["portable", "runtime"] = "portable",
    target_opset: int | None = None,
    target_ir: int | None = None,
    name: str | None = None,
    max_batch: int = 32,
    instances: int = 1,
    device: Literal["cpu", "gpu"] = "cpu",
    accelerator: Literal["openvino", "cuda", "tensorrt"] | None = None,
    tokenizer: bool = False,
    openvino_ir: bool = False,
    also: Sequence[str | Path] | str | Path = ...,
    overwrite: bool = False,
) -> Deployment: ...
def environment() -> dict[str, Any]: ...
def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    task: str | None = None,
    exporter: Literal["auto", "optimum", "dynamo", "torchscript", "transformers"] = "auto",
    opset: int | None = None,
    attention: Literal["eager", "sdpa"] | None = None,
    check: bool = True,
) -> ExportResult: ...
def inspect(
    model: str | Path,
    length: int | None = None,
    *,
    sample: str | Path | None = None,
) -> Inspection: ...
def optimize(
    model: str | Path,
    *,
    columns: Sequence[str] | str | None = None,
    label: str | None = None,
    metric: str | None = None,
    task: str | Task | None = None,
    data: str | Path | None = None,
    search_data: str | Path | None = None,
    calibration: str | Path | None = None,
    output: str | Path | None = None,
    max_drop: float | None = None,
    speedup: float | None = None,
    size: float | None = None,
    effort: Literal["low", "medium", "high"] = "medium",
    search: str = "compensated",
    refit_classifier: bool = False,
    quantize: Literal["int8", "none"] | None = None,
    weight_bits: int = 7,
    activations: Literal["dynamic", "static", "static-uint8"] | None = None,
    embedding_bits: Literal[8, 4] = 8,
    half: Literal["fp16", "bf16"] | None = None,
    structure: Literal["pruned", "whole"] = "pruned",
    k: int = 30,
    readout: Literal["whole", "narrow"] = "narrow",
    constants: Literal["kept", "folded"] = "folded",
    keys_values: Literal["projected", "absorbed"] = "absorbed",
    padding: Literal["kept", "removed"] | Literal["measured"] = "kept",
    runtime_form: Literal["measured", "none"] = "none",
    jobs: int = 1,
    backend: Literal["local", "ray"] = "local",
    shared_weights: Literal["separate", "together"] | None = None,
    max_search_rows: int = 6000,
    overwrite: bool = False,
    seed: int = 0,
    provider: str = "cpu",
    threads: int | None = None,
    batch: Sequence[int] | int = ...,
    length: Sequence[int] | int = ...,
    wait_for_quiet: float = 30.0,
    max_length: int | None = None,
    sample: str | Path | None = None,
) -> OptimizeResult: ...
def preview(
    model: str | Path,
    *,
    columns: Sequence[str] | str | None = None,
    label: str | None = None,
    metric: str | None = None,
    task: str | Task | None = None,
    data: str | Path | None = None,
    search_data: str | Path | None = None,
    calibration: str | Path | None = None,
    output: str | Path | None = None,
    max_drop: float | None = None,
    speedup: float | None = None,
    size: float | None = None,
    effort: Literal["low", "medium", "high"] = "medium",
    search: str = "compensated",
    refit_classifier: bool = False,
    quantize: Literal["int8", "none"] | None = None,
    weight_bits: int = 7,
    activations: Literal["dynamic", "static", "static-uint8"] | None = None,
    embedding_bits: Literal[8, 4] = 8,
    half: Literal["fp16", "bf16"] | None = None,
    structure: Literal["pruned", "whole"] = "pruned",
    k: int = 30,
    readout: Literal["whole", "narrow"] = "narrow",
    constants: Literal["kept", "folded"] = "folded",
    keys_values: Literal["projected", "absorbed"] = "absorbed",
    padding: Literal["kept", "removed"] | Literal["measured"] = "kept",
    runtime_form: Literal["measured", "none"] = "none",
    jobs: int = 1,
    backend: Literal["local", "ray"] = "local",
    shared_weights: Literal["separate", "together"] | None = None,
    max_search_rows: int = 6000,
    overwrite: bool = False,
    seed: int = 0,
    provider: str = "cpu",
    threads: int | None = None,
    batch: Sequence[int] | int = ...,
    length: Sequence[int] | int = ...,
    wait_for_quiet: float = 30.0,
    max_length: int | None = None,
    sample: str | Path | None = None,
) -> Preview: ...
def report(
    run: str | Path,
    output: str | Path | None = None,
) -> Path: ...
def score(
    model: str | Path,
    other: str | Path | None = None,
    *,
    columns: Sequence[str] | str | None = None,
    label: str | None = None,
    metric: str | None = None,
    task: str | Task | None = None,
    data: str | Path | None = None,
    changed: int = 5,
    seed: int = 0,
    provider: str = "cpu",
    threads: int | None = None,
    batch: Sequence[int] | int = ...,
    length: Sequence[int] | int = ...,
    wait_for_quiet: float = 30.0,
    max_length: int | None = None,
    sample: str | Path | None = None,
) -> ScoreResult: ...
def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    task: str | None = None,
    max_batch: int = 32,
    max_delay: float = 0.0,
    max_queue: int = 1024,
    max_body: float = 4.0,
    provider: str = "cpu",
    threads: int | None = None,
    max_length: int | None = None,
) -> None: ...
