"""What people do to an export before they bring it: a further "exporter" each, chained by "+" from left to right.

    build("bert", "torchscript-eager-17+ort+int8")      fused by ONNX Runtime's tool, then quantised

A variant is a function (Subject, target): it reads the file `subject.path` and writes `target`, and beside it what belongs
to it. `VARIANTS` names them all, those that no library writes are in zoo_rewrites. Files lie beside the zoo's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import zoo_rewrites
from filelock import FileLock
from zoo_export import quiet

# transformers' model type -> ONNX Runtime's; all others go as "bert", which is that tool's own default
_ORT_MODEL_TYPES = {
    "gpt2": "gpt2", "vit": "vit", "deit": "vit", "clip": "clip", "clip_text_model": "clip", "clip_vision_model": "clip",
    "t5": "t5", "bart": "bart", "whisper": "bart",
}  # fmt: skip
_QUANTISED = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # shape inference stops at com.microsoft operators
_VERSIONED = ("onnx", "onnx-ir", "onnxruntime", "onnxscript", "onnxslim", "onnxsim")


@dataclasses.dataclass(frozen=True)
class Subject:
    """The file that a variant starts from, its torch configuration, and inputs to calibrate with."""

    path: Path
    config: Any
    example: dict[str, Any]

    @property
    def model(self) -> onnx.ModelProto:
        """The file, read."""
        return onnx.load(self.path)

    @property
    def calibration(self) -> list[dict[str, Any]]:
        """Sixteen inputs of the example's shapes: it, then others with tokens and pixels at random."""
        rng = np.random.default_rng(0)
        rows = [self.example]
        for _ in range(15):
            row = dict(self.example)
            for name, value in row.items():
                if name.endswith("input_ids"):
                    row[name] = np.where(value > 4, rng.integers(5, value.max() + 1, value.shape), value)
                elif value.dtype == np.float32:
                    row[name] = rng.standard_normal(value.shape, np.float32)
            rows.append(row)
        return rows


Variant = Callable[[Subject, Path], None]


def varied(path: Path, variants: Sequence[str], fresh: Callable[[str], Any], example: dict[str, Any]) -> Path:
    """The file that `variants`, applied in order, make of the file `path`; each step is cached."""
    folder = path.parent / f"variants-{_digest()}"
    folder.mkdir(exist_ok=True)
    for name in variants:
        if name not in VARIANTS:
            raise ValueError(f"unknown variant {name!r}, known: {', '.join(VARIANTS)}")
        target = folder / f"{path.stem}+{name}.onnx"
        with FileLock(target.with_suffix(".lock")):
            if not target.exists():
                subject = Subject(path, fresh("eager").config, example)
                _write(VARIANTS[name], subject, target)
        path = target
    return path


def _write(variant: Variant, subject: Subject, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary, quiet():
        written = Path(temporary) / target.name
        variant(subject, written)
        for beside in sorted(Path(temporary).glob(f"{target.name}?*")):
            os.replace(beside, target.parent / beside.name)
        os.replace(written, target)


def _digest() -> str:
    digest = hashlib.sha256()
    for module in (__file__, zoo_rewrites.__file__):
        digest.update(Path(module).read_bytes())
    for package in _VERSIONED:
        digest.update(importlib.metadata.version(package).encode())
    return digest.hexdigest()[:12]


# -- simplifiers -----------------------------------------------------------------------------------------------------


def _onnxslim(subject: Subject, target: Path) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(subject.model), target)


def _onnxsim(subject: Subject, target: Path) -> None:
    import onnxsim

    simplified, valid = onnxsim.simplify(subject.model)
    assert valid
    onnx.save(simplified, target)


# -- fusions -----------------------------------------------------------------------------------------------------------


def _ort(subject: Subject, target: Path, **choices: bool) -> None:
    """`Attention`, `SkipLayerNormalization`, `EmbedLayerNormalization`, `BiasGelu`. A level above 0 would import torch."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    kind = _ORT_MODEL_TYPES.get(subject.config.model_type, "bert")
    options = FusionOptions(kind)
    for name, value in choices.items():
        setattr(options, name, value)
    heads, width = subject.config.num_attention_heads, subject.config.hidden_size
    fused = optimize_model(str(subject.path), kind, heads, width, optimization_options=options, opt_level=0)
    fused.save_model_to_file(str(target))


def _ort_mha(subject: Subject, target: Path) -> None:
    _ort(subject, target, use_multi_head_attention=True, enable_gelu_approximation=True)


def _ort_fusions(subject: Subject, target: Path) -> None:
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    fused, _ = optimize_for_ort(ir.load(subject.path))
    ir.save(fused, target)


def _saved_by_onnxruntime(level: str) -> Variant:
    def save(subject: Subject, target: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        onnxruntime.InferenceSession(str(subject.path), options, providers=["CPUExecutionProvider"])

    return save


# -- precision ---------------------------------------------------------------------------------------------------------


def _dynamic_int8(per_channel: bool) -> Variant:
    """Weights of 7 bits, as ONNX Runtime advises for processors without VNNI: there its kernels add two products of an unsigned
    and a signed byte in 16 bits, which larger weights overflow, and what overflows hangs on the pairs, so on the cut."""

    def quantise(subject: Subject, target: Path) -> None:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(
            str(subject.path), str(target), per_channel=per_channel, reduce_range=True, extra_options=dict(_QUANTISED)
        )

    return quantise


def _static_int8(per_channel: bool, operators: list[str] | None = None) -> Variant:
    """QuantizeLinear and DequantizeLinear around `operators` (None: all); activations int8, one scale a tensor."""

    def quantise(subject: Subject, target: Path) -> None:
        from onnxruntime.quantization import CalibrationDataReader, quantize_static

        class Rows(CalibrationDataReader):  # type: ignore[misc]
            left = iter(subject.calibration)

            def get_next(self) -> Any:
                return next(self.left, None)

        quantize_static(
            str(subject.path), str(target), Rows(), per_channel=per_channel, op_types_to_quantize=operators,
            extra_options=dict(_QUANTISED),
        )  # fmt: skip

    return quantise


def _half(keep_io_types: bool) -> Variant:
    def convert(subject: Subject, target: Path) -> None:
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(subject.model, keep_io_types=keep_io_types), target)

    return convert


def _rewritten(rewrite: Callable[[onnx.ModelProto], onnx.ModelProto]) -> Variant:
    return lambda subject, target: onnx.save(rewrite(subject.model), target)


def _external(subject: Subject, target: Path) -> None:
    """Weights in a file beside the graph; the small tensors stay, as exporters keep them."""
    onnx.save(subject.model, target, save_as_external_data=True, location=f"{target.name}.data", size_threshold=128)


VARIANTS: dict[str, Variant] = {
    "onnxslim": _onnxslim,
    "onnxsim": _onnxsim,
    "ort": _ort,
    "ort-mha": _ort_mha,
    "ortfusions": _ort_fusions,
    "ortbasic": _saved_by_onnxruntime("BASIC"),
    "ortext": _saved_by_onnxruntime("EXTENDED"),
    "int8": _dynamic_int8(per_channel=False),
    "int8c": _dynamic_int8(per_channel=True),
    "qdq": _static_int8(per_channel=False),
    "qdqc": _static_int8(per_channel=True),
    "qdqm": _static_int8(per_channel=False, operators=["MatMul", "Gemm"]),
    "fp16": _half(keep_io_types=True),
    "fp16io": _half(keep_io_types=False),
    "bf16": _rewritten(zoo_rewrites.in_bfloat16),
    "wfp16": _rewritten(zoo_rewrites.weights_in_half),
    "external": _external,
    "constants": _rewritten(zoo_rewrites.constants),
    "transposed": _rewritten(zoo_rewrites.transposed),
    "functions": _rewritten(zoo_rewrites.functions),
    "metadata": _rewritten(zoo_rewrites.metadata),
}
