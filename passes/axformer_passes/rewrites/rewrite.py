"""What an exact rewrite is: it changes how a graph computes, never what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_passes.probe import Runner

    Pass = Callable[[ir.Model, Runner], object]


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """One exact rewrite, by the key that a plan has for it.

    name     key of the plan, and name of the option
    on, off  the plan's two values; `off` is what a plan without the key means
    help     what `on` does, as one sentence for the command line
    usual    optimize does it unless told otherwise; else only where it is asked for
    walked   runs in the form in which the graph is walked, behind the cut: fused nodes are still lowered
    lifted   runs behind the lifting of fused nodes
    """

    name: str
    on: str
    off: str
    help: str
    usual: bool = True
    walked: Pass | None = None
    lifted: Pass | None = None
