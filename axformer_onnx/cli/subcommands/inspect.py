"""`axformer-onnx inspect`."""

from __future__ import annotations

from axformer_onnx.cli.generated import command as subcommand
from axformer_onnx.cli.generated import print_json
from axformer_onnx.options import InspectOptions


@subcommand("inspect", InspectOptions)
def command(options: InspectOptions, as_json: bool) -> None:
    """Inspect, then print the table of layers."""
    from axformer_onnx.cli.console import console, print_inspection
    from axformer_onnx.cli.progress import progress
    from axformer_onnx.commands import inspect_model

    with progress() as watcher:
        found = inspect_model(options.model, options.length, options.sample, watcher.step)
    if as_json:
        print_json(found.to_json())
    else:
        print_inspection(found, console())
