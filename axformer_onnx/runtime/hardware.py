"""What a figure was measured on: processor and its instruction sets, memory, GPU, versions."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Any

from axformer_onnx.runtime.providers import CUDA

_INSTRUCTIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
"""Those that products of integers and of float32 are fast by, as Linux calls them."""
_INTEGER_PRODUCTS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})


def describe_hardware() -> dict[str, Any]:
    """What a figure was measured on: the machine, ONNX Runtime, its providers, and the GPU of CUDA."""
    import onnxruntime as ort

    gpu = cuda_device()
    return {
        **describe_machine(),
        "onnxruntime": ort.__version__,
        "providers": ort.get_available_providers(),
        **({"gpu": gpu} if gpu else {}),
    }


def describe_machine() -> dict[str, Any]:
    """Processor, instruction sets, cores, memory, system, Python; told even where ONNX Runtime does not start."""
    return {
        "cpu": _cpu_model(),
        "instructions": instruction_sets(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }


def cuda_device() -> str | None:
    """Name of the first GPU that CUDA sees; None where there is none, or this ONNX Runtime has no CUDA."""
    import onnxruntime as ort

    if not CUDA.intersection(ort.get_available_providers()):
        return None
    name, device = ctypes.create_string_buffer(256), ctypes.c_int()
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
        failed = failed or driver.cuDeviceGetName(name, len(name), device)
    except (OSError, AttributeError):
        return None
    return None if failed else name.value.decode(errors="replace")


def versions() -> dict[str, str]:
    """Versions of this project and of what its results depend on, ONNX Runtime by the names that its builds have."""
    from importlib import metadata

    named = (one for one in metadata.distributions() if one.name)  # a broken installation leaves some without a name
    installed = {one.name: one.version for one in named}
    runtimes = sorted(name for name in installed if name.startswith(RUNTIME))
    names = ("axformer-onnx", "onnx", "onnx-ir", *runtimes, "numpy", "scipy", "tokenizers")
    return {"python": platform.python_version(), **{name: installed[name] for name in names if name in installed}}


RUNTIME = "onnxruntime"
"""What the names of its builds begin with: onnxruntime, onnxruntime-gpu, onnxruntime-openvino, ..."""


def instruction_sets() -> list[str]:
    """Those of this CPU that its speed depends on; empty where the system does not say."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return []
    return [name for name in _INSTRUCTIONS if name in words]


def has_integer_products() -> bool | None:
    """Does this CPU have instructions for products of 8-bit integers? None where the system does not say."""
    found = instruction_sets()
    return bool(_INTEGER_PRODUCTS.intersection(found)) if found else None


def is_x86() -> bool:
    """Is this a CPU of Intel's or AMD's instruction set?"""
    return platform.machine().lower() in ("x86_64", "amd64")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


__all__ = [
    "cuda_device",
    "describe_hardware",
    "describe_machine",
    "has_integer_products",
    "instruction_sets",
    "is_x86",
    "versions",
]
