"""What ONNX Runtime says when it refuses, in a sentence of ours: what ran, on which inputs, why not, what to do."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy.typing as npt

from axformer_onnx.errors import RuntimeFailure

_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_SOURCE = re.compile(r"\S*/onnxruntime/\S+:\d+ .*?\)(?: const)? (?=\S)")
"""A place in ONNX Runtime's own C++ and the signature of the function there."""
_CONDITION = re.compile(r"\S[^.]*? was false\. (?=\S)")
"""A condition in C++, in front of the sentence that says what it means."""
_OPENVINO = re.compile(
    r"^.*\[OpenVINO-EP\] |Exception (?:while|from) [^:]*?\S+:(?:\d+:)? |Check '.*?' failed at \S+:\d+: "
)
"""Where OpenVINO's provider was when it failed, in front of what it says."""
_LONGEST = 300


def reason_of(error: Exception) -> str:
    """One line of what an exception of ONNX Runtime says: no code, no C++ source, no signature; at most 300 characters."""
    text = _CODE.sub("", " ".join(str(error).split()))
    text = _OPENVINO.sub("", text) if "[OpenVINO-EP] " in text else _CONDITION.sub("", _SOURCE.sub("", text))
    text = text.strip().rstrip(".")
    return text[:_LONGEST] or type(error).__name__


@contextlib.contextmanager
def told(what: str, feeds: Mapping[str, npt.NDArray[Any]]) -> Iterator[None]:
    """Around a run of `what` (as in "the model") on `feeds`.

    Raises: RuntimeFailure in place of what ONNX Runtime raises.
    """
    try:
        yield
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        shapes = ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in feeds.items())
        raise RuntimeFailure(
            f"{what}: ONNX Runtime could not run it on {shapes or 'no inputs'}: {reason_of(error)}. Check that the inputs are "
            "those the model was made for: token ids below its vocabulary, no more tokens than it has positions"
        ) from None


__all__ = ["reason_of", "told"]
