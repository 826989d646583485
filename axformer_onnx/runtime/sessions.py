"""The one place that makes ONNX Runtime sessions: providers, threads, and errors in one line."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from axformer_onnx.errors import ModelError
from axformer_onnx.runtime.failures import reason_of, told
from axformer_onnx.runtime.providers import CPU, CUDA, provider_name, providers_of
from axformer_passes.io import Detached

logger = logging.getLogger(__name__)

_DTYPES = {
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(float)": np.float32,
    "tensor(bool)": np.bool_,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
}
_SILENT = 4
"""ONNX Runtime's log level "fatal". Its errors reach us as exceptions; its log would print them once more, beside ours."""
_WHAT = "axformer_what"
"""Attribute of a session: what it runs, in words."""
_NOTE = "axformer_note"
"""Attribute of a session that is not of the model as it is written: the sentence that says so."""
_REASON = "axformer_reason"
"""Attribute of a session whose provider did not start: what it said."""


def make_session(
    model: str | Path | bytes | Detached,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    optimize: bool = True,
    what: str | None = None,
    widen: bool = True,
    prepack: bool = True,
    one_arena: bool = False,
    profile: Path | None = None,
) -> Any:
    """An onnxruntime.InferenceSession.

    model     a path (external data is found beside it), the bytes of a model, or a model without its large weights
    threads   threads inside one operator; None: ONNX Runtime's choice (the physical cores)
    optimize  False switches off all of ONNX Runtime's graph rewrites
    what      what it is in messages; None: the path, or "the model"
    widen     a bfloat16 model that the provider has no kernels for runs as its float32 twin, which `fallback_note` says
    prepack   False: weights stay as they are (mapped, where they lie in files); slower to run, for sessions that run once
    one_arena take the memory of activations on the CPU from the one arena that all such sessions share: for many sessions of
              which few run at a time; each else keeps what its largest run took
    profile   what ran where is written to a file that begins so, when its profiling ends

    A provider that leaves the session to the CPU is logged as a warning; `fallback_note` gives the sentence. A provider's own
    options are ONNX Runtime's defaults, with which models are served: on CUDA, products of float32 are taken in TF32.

    Raises: ModelError for what ONNX Runtime does not load; UsageError, RuntimeFailure for the provider.
    """
    import onnxruntime as ort

    providers = providers_of(provider)
    name = providers[0][0]
    if isinstance(model, str | Path) and not Path(model).is_file():
        raise ModelError(f"{model}: no such file")
    what = what or (str(model) if isinstance(model, str | Path) else "the model")
    _silence()
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    # Threads that go on spinning after a run take the cores from the session that runs next: of graphs timed in turns on two
    # cores each took twice its time, more or less at random (measured: 1.32).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if one_arena and _has_shared_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        shared = _attach(options, model, in_place=name == CPU) if isinstance(model, Detached) else []
        content = model.content() if isinstance(model, Detached) else model if isinstance(model, bytes) else str(model)
        session = _started(content, options, providers)
        session.axformer_weights = shared  # they must live as long as the session
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        twin = _float32_twin(model) if widen and _lacks_kernel(error) else None
        if twin is None:
            raise _not_loaded(what, error) from None
        try:
            session = _started(twin, options, providers)
        except Exception as further:
            raise _not_loaded(what, further) from None
        setattr(session, _NOTE, f"{name} lacks bfloat16 kernels: figures are of the same weights in float32 arithmetic")
    setattr(session, _WHAT, what)
    note = fallback_note(session, provider)
    if note:
        logger.warning(note)
    return session


def _not_loaded(what: str, error: Exception) -> ModelError:
    return ModelError(
        f"{what}: ONNX Runtime does not load it: {reason_of(error)}. Check the file with onnx.checker, update ONNX Runtime, or "
        "export the model again"
    )


@functools.cache
def _silence() -> None:
    """The log that belongs to no session, of providers that look for their libraries, for example."""
    import onnxruntime as ort

    ort.set_default_logger_severity(_SILENT)


def _started(content: str | bytes, options: Any, providers: Sequence[tuple[str, Mapping[str, str]]]) -> Any:
    """A session on these providers; on the CPU where the first cannot start."""
    import onnxruntime as ort

    if any(name in CUDA for name, _ in providers):
        _load_cuda()
    # ONNX Runtime's own fallback prints to standard output, where our JSON goes, and can set in at any run
    only = {"enable_fallback": 0}
    asked = [(name, dict(own)) if own else name for name, own in providers]
    try:
        return ort.InferenceSession(content, options, providers=asked, **only)
    except RuntimeError as error:  # what a provider raises; what is wrong with the model is of other types
        if providers[0][0] == CPU:
            raise
        session = ort.InferenceSession(content, options, providers=[CPU], **only)
        setattr(session, _REASON, _reason(error))
        return session


@functools.cache
def _load_cuda() -> None:
    """Load CUDA and cuDNN from the packages that pip installs, where ONNX Runtime does not look by itself."""
    import onnxruntime as ort

    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            ort.preload_dlls()
    except Exception as error:  # an ONNX Runtime before 1.21; one that finds nothing says so when the session starts
        said.write(str(error))
    if said.getvalue():
        logger.info("CUDA's libraries: %s", " ".join(said.getvalue().split())[:400])


@functools.cache
def _has_shared_arena() -> bool:
    """Register the arena of this process; False where this ONNX Runtime cannot."""
    import onnxruntime as ort

    try:
        memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        ort.create_and_register_allocator(memory, None)
    except Exception as error:  # an ONNX Runtime without it, or one that has it registered already
        logger.info("each session has an arena of its own: %s", reason_of(error))
        return False
    return True


def _attach(options: Any, model: Detached, *, in_place: bool) -> list[Any]:
    """Tell a session to be made where the weights of `model` are; returns those that it shares with us.

    in_place   it reads them where they are; other providers than the CPU's would take their addresses for the device's
    """
    import onnxruntime as ort

    if model.folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", model.folder)
    shared: dict[str, Any] = {}
    for name, tensor in model.in_memory.items():
        array = np.ascontiguousarray(tensor.numpy())
        if array.dtype.isbuiltin != 1:  # bfloat16, float8: types of ml_dtypes, which ONNX Runtime takes as bits
            bits = array.view(f"uint{8 * array.itemsize}")
            shared[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(tensor.dtype))
        else:
            shared[name] = ort.OrtValue.ortvalue_from_numpy(array)
    if shared:
        options.add_external_initializers(list(shared), list(shared.values()))
    for name, value in shared.items() if in_place else ():
        options.add_initializer(name, value)  # without it ONNX Runtime copies what the line before gave it
    return list(shared.values())


def fallback_note(session: Any, provider: str) -> str | None:
    """A sentence where ONNX Runtime did not use the provider that was asked for, or not the model's own arithmetic, else None.

    Single operators that a provider leaves to others are not seen here: `placement` tells them.
    """
    wanted, used = provider_name(provider), session.get_providers()
    if used and used[0] == wanted:
        return getattr(session, _NOTE, None)
    reason = getattr(session, _REASON, None)
    return (
        f"ONNX Runtime could not start {wanted} and runs on {', '.join(used)} instead{f' ({reason})' if reason else ''}; "
        "figures are those of that provider. Check its driver and libraries"
    )


def run_session(
    session: Any, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Outputs by name (all, or those named). Feeds are cast to the input types; surplus ones are dropped.

    Raises: RuntimeFailure with what ran, on which inputs and ONNX Runtime's reason, in one line.
    """
    names = list(outputs) if outputs is not None else [output.name for output in session.get_outputs()]
    fitted = fit_feeds(session, feeds)
    with told(getattr(session, _WHAT, "the model"), fitted):
        values = session.run(names, fitted)
    return dict(zip(names, values, strict=True))


def fit_feeds(session: Any, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Only the feeds that the session takes, in the types it declares (some graphs ask for int32 ids)."""
    fitted = {}
    for one in session.get_inputs():
        if one.name in feeds:
            fitted[one.name] = np.asarray(feeds[one.name]).astype(
                _DTYPES.get(one.type, feeds[one.name].dtype), copy=False
            )
    return fitted


def run_once(model: bytes | Detached, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """All outputs of a model on one input, ONNX Runtime's own optimisations off and its log silent.

    The runner that recognition is given. Raises: ModelError, RuntimeFailure.
    """
    small = isinstance(model, bytes) or not model.weights
    # what is not prepacked costs ONNX Runtime (measured: 1.32) a search among all initializers for each of them
    session = make_session(model, threads=1, optimize=False, widen=False, prepack=small)
    return run_session(session, feeds)


def _lacks_kernel(error: Exception) -> bool:
    return "NOT_IMPLEMENTED" in str(error) or "bfloat16" in str(error)


def _float32_twin(model: str | Path | bytes | Detached) -> bytes | None:
    """The bytes of a bfloat16 model's float32 twin; None for other models."""
    import onnx

    from axformer_passes.probe import BFLOAT16, holds, widened

    if isinstance(model, Detached):
        return bytes(widened(model.whole(), BFLOAT16).SerializeToString()) if holds(model.proto) else None
    proto = onnx.ModelProto.FromString(model) if isinstance(model, bytes) else onnx.load(str(model))
    return bytes(widened(proto, BFLOAT16).SerializeToString()) if holds(proto) else None


def _reason(error: Exception) -> str:
    """Why a provider did not start, without the source files and the host that its messages name."""
    text = re.sub(r"^\S+:\d+ .*?\) ", "", " ".join(str(error).split()))
    failure = re.search(r"\w+ failure \d+: [^;]*", text)
    return (failure[0] if failure else text[:200]).strip().rstrip(".")
