"""Models of the Hugging Face hub by their names: the local cache is asked first, then the hub."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from axformer_onnx.errors import AxformerError, ModelError, RuntimeFailure
from axformer_passes.io import graph_files, is_checkpoint

_GRAPHS = ("model.onnx", "onnx/model.onnx")
_FETCHED = ("model.onnx*", "onnx/model.onnx*", "*.json", "*.txt", "*.model", "1_Pooling/*")
_SECONDS = 10
"""The hub is waited for so long: a mistyped name of a file should not take minutes where packets go nowhere."""


def snapshot(name: str, step: Callable[[str], None]) -> Path | None:
    """The folder of a hub's model that has a graph; None where it has a checkpoint alone.

    Raises: ModelError where the hub knows no such model; RuntimeFailure without huggingface_hub, or where the hub does not answer.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise RuntimeFailure(
            f"{_not_here(name)}; a name on the hub needs pip install 'axformer-onnx[export]' ({error})"
        ) from None
    try:
        cached = Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    except Exception:  # huggingface_hub's own: it is not there, or the name is none
        cached = None
    if cached is not None and graph_files(cached):
        return cached
    if cached is not None and is_checkpoint(cached):
        return None
    step(f"asking the hub for {name}")
    try:
        files = huggingface_hub.model_info(name, timeout=_SECONDS).siblings or []
        if not any(file.rfilename in _GRAPHS for file in files):
            return None
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_FETCHED)))
    except Exception as error:  # huggingface_hub's and its HTTP library's own
        raise _refusal(name, error) from None


def _refusal(name: str, error: Exception) -> AxformerError:
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    unknown = isinstance(error, (HFValidationError, RepositoryNotFoundError))
    kind = ModelError if unknown else RuntimeFailure
    return kind(
        f"{_not_here(name)}, and the Hugging Face hub did not give it ({type(error).__name__}): "
        "check the name and the network, or give a local folder"
    )


def _not_here(name: str) -> str:
    """What is said of a name that is no path here, with the name that is and looks most like it."""
    path = Path(name)
    try:
        near = difflib.get_close_matches(path.name, [found.name for found in path.parent.iterdir()], n=1)
    except OSError:  # there is no such folder, or it may not be read
        near = []
    return f"{name}: no such file or folder here" + (f" (did you mean {path.parent / near[0]}?)" if near else "")


__all__ = ["snapshot"]
