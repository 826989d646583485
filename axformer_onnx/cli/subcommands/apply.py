"""`axformer-onnx apply`."""

from __future__ import annotations

import click

from axformer_onnx.cli.generated import command as subcommand
from axformer_onnx.cli.generated import print_json
from axformer_onnx.options import ApplyOptions


@subcommand("apply", ApplyOptions, "PLAN is a plan.json, or a folder that holds one.")
def command(options: ApplyOptions, as_json: bool) -> None:
    """Apply, then say where the graph is."""
    from axformer_onnx.cli.progress import progress
    from axformer_onnx.commands import apply

    with progress() as watcher:
        path = apply(
            options.plan, options.model, options.output,
            overwrite=options.overwrite, sample=options.sample, step=watcher.step,
        )  # fmt: skip
    if as_json:
        print_json({"path": str(path), "size_bytes": path.stat().st_size})
        return
    click.echo(f"{path}: written and verified against {options.model}")
