"""The command line: parse, call, print, exit. What a command does, `import axformer_onnx` does in one call."""

from __future__ import annotations

from axformer_onnx.cli.entry import cli, main

__all__ = ["cli", "main"]
