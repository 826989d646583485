"""What the options must know of a target of deployments; the targets are in `axformer_onnx.deploying.targets`, registered here."""

from __future__ import annotations

from axformer_onnx.options.registry import Registry


class TargetKind:
    """Where a graph may go, by the name that `--for` gives it.

    name   as in `--for NAME`
    help   what its folder is, as one clause
    knows  options that mean something to it, beside those of every target; others are refused
    """

    name: str
    help: str
    knows: tuple[str, ...] = ()


TARGETS: Registry[TargetKind] = Registry("target", "axformer_onnx.deploying.targets")
