"""Execution providers by the names that people use: one, or several in the order in which they are asked, with their options.

cuda                                        a name of ours, or ONNX Runtime's
tensorrt:trt_fp16_enable=1,cuda             what TensorRT does not take goes to CUDA; what CUDA does not, to the CPU
openvino:device_type=GPU:precision=FP16     options, after colons
"""

from __future__ import annotations

import difflib

from axformer_onnx.errors import RuntimeFailure, UsageError

PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "pip install onnxruntime"),
    "cuda": (
        "CUDAExecutionProvider",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'",
    ),
    "tensorrt": (
        "TensorrtExecutionProvider",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]' tensorrt",
    ),
    "openvino": (
        "OpenVINOExecutionProvider",
        "pip uninstall -y onnxruntime && pip install onnxruntime-openvino",
    ),
    "dml": ("DmlExecutionProvider", "pip uninstall -y onnxruntime && pip install onnxruntime-directml"),
    "coreml": ("CoreMLExecutionProvider", "pip install onnxruntime, on macOS"),
    "rocm": ("ROCMExecutionProvider", "pip uninstall -y onnxruntime && pip install onnxruntime-rocm"),
    "migraphx": ("MIGraphXExecutionProvider", "pip uninstall -y onnxruntime && pip install onnxruntime-rocm"),
    "qnn": ("QNNExecutionProvider", "pip uninstall -y onnxruntime && pip install onnxruntime-qnn"),
    "webgpu": ("WebGpuExecutionProvider", "an ONNX Runtime built with WebGPU"),
    "xnnpack": ("XnnpackExecutionProvider", "an ONNX Runtime built with XNNPACK"),
}
"""Short name: ONNX Runtime's name, and what to install for it."""
CPU = "CPUExecutionProvider"
CUDA = frozenset({"CUDAExecutionProvider", "TensorrtExecutionProvider"})


def provider_name(provider: str) -> str:
    """ONNX Runtime's name of the first of these providers: 'cuda' and 'CUDAExecutionProvider' are CUDAExecutionProvider.

    Raises: as `providers_of`.
    """
    return providers_of(provider)[0][0]


def providers_of(provider: str) -> list[tuple[str, dict[str, str]]]:
    """(ONNX Runtime's name, options) of each, in order; the CPU is the last resort, named or not.

    Raises: UsageError for an unknown name, or an option that is not KEY=VALUE; RuntimeFailure for a provider that this ONNX
    Runtime lacks, with what is available and what to install.
    """
    found = dict[str, dict[str, str]]()
    for one in provider.split(","):
        name, *given = one.split(":")
        options = dict[str, str]()
        for option in _whole(given):
            key, equals, value = option.partition("=")
            if not equals or not key.strip():
                raise UsageError(
                    f"--provider: {option!r} after {name!r} is no option: KEY=VALUE, as in cuda:use_tf32=0"
                )
            options[key.strip()] = value.strip()
        found.setdefault(_full_name(name), options)
    found.setdefault(CPU, {})
    return list(found.items())


def is_cpu_alone(provider: str) -> bool:
    """Is the CPU the only provider asked for? Raises: as `providers_of`."""
    return [name for name, _ in providers_of(provider)] == [CPU]


def _whole(parts: list[str]) -> list[str]:
    """A value may hold a colon (a path on Windows): what has no "=" belongs to the option before."""
    whole = list[str]()
    for part in parts:
        if "=" in part or not whole:
            whole.append(part)
        else:
            whole[-1] += f":{part}"
    return whole


def _full_name(provider: str) -> str:
    import onnxruntime as ort

    available = ort.get_available_providers()
    full_names = {full.lower(): short for short, (full, _) in PROVIDERS.items()}
    key = provider.strip().lower()
    short = full_names.get(key, key)
    if short in PROVIDERS:
        full, install = PROVIDERS[short]
        if full in available:
            return full
        raise RuntimeFailure(
            f"provider {provider!r} ({full}) is not in this ONNX Runtime; available: {', '.join(available)}. "
            f"Install: {install}"
        )
    for name in available:
        if name.lower() == key:
            return str(name)
    near = difflib.get_close_matches(key, PROVIDERS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(f"unknown provider {provider!r}.{hint} Providers: {', '.join(PROVIDERS)}")


__all__ = ["CPU", "CUDA", "PROVIDERS", "is_cpu_alone", "provider_name", "providers_of"]
