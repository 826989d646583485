"""What a reader of ONNX files understands: operator set, version of the file format, domains of operators; and since when.

A target states it with its source. Where the reader is ONNX Runtime, it follows from its version.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from axformer_onnx.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

ONNX_RUNTIME: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "1.18": (21, 10),
        "1.19": (21, 10),
        "1.20": (21, 10),
        "1.21": (22, 10),
        "1.22": (22, 10),
        "1.23": (23, 11),
        "1.24": (25, 13),
        "1.25": (26, 13),
        "1.26": (26, 13),
        "1.27": (26, 13),
        "1.28": (26, 13),
        "1.29": (26, 13),
        "1.30": (26, 13),
        "1.31": (26, 13),
        "1.32": (28, 14),
    }
)
"""Version of ONNX Runtime -> (newest operator set, newest IR version) that it loads. Measured with the last patch of each, on
graphs of one Relu that state them; `make clients` measures it again for those that targets name."""


OPERATORS_SINCE: Mapping[str, str] = MappingProxyType({"MultiHeadAttention": "1.21"})
"""Operator of com.microsoft -> the first ONNX Runtime that computes it as runtime forms use it. Measured on masks that all heads
share: 1.18 and 1.19 refuse them, 1.20 computes other numbers without a word, 1.21 and later are right."""


@dataclasses.dataclass(frozen=True)
class Reads:
    """What a target's reader understands.

    opset     newest version of the default operator set; None: it looks at the operators alone
    ir        newest version of the file format; None: any
    domains   operators' domains beside the default one that it has implementations for
    what      what it is, with its version: "ONNX Runtime 1.22"
    runtime   the version, where it is ONNX Runtime
    source    where that is stated
    """

    opset: int | None
    ir: int | None
    domains: tuple[str, ...]
    what: str
    source: str
    runtime: str = ""


def onnx_runtime(version: str, source: str) -> Reads:
    """What ONNX Runtime of a version reads."""
    opset, newest = ONNX_RUNTIME[version]
    return Reads(opset, newest, ("ai.onnx.ml", "com.microsoft"), f"ONNX Runtime {version}", source, version)


def require_operators(model: ir.Model, reads: Reads, target: str) -> None:
    """Raises: UsageError naming the first node whose operator the target has not, or not in the way that it is used."""
    for node in model.graph.all_nodes():
        where = f"node {node.name or node.outputs[0].name!r}"
        if node.domain not in ("", "ai.onnx", *reads.domains):
            raise UsageError(
                f"--for {target}: {reads.what} has no operators of {node.domain}, and {where} is its {node.op_type}; deploy the "
                "portable model.onnx"
            )
        since = OPERATORS_SINCE.get(node.op_type) if node.domain == "com.microsoft" else None
        if since and reads.runtime and _number(reads.runtime) < _number(since):
            raise UsageError(
                f"--for {target}: {where} is {node.op_type}, which ONNX Runtime computes rightly from {since} on, and "
                f"{reads.runtime} is allowed there ({reads.source}); deploy the portable model.onnx"
            )


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
