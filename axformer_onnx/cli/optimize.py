"""`axformer-onnx optimize`."""

from __future__ import annotations

import click

from axformer_onnx.cli.generated import command as subcommand
from axformer_onnx.options import OptimizeOptions

_MORE = """The report compares MODEL and the result on rows that no decision used.

Ctrl-C ends with the best so far. A killed run goes on where it was: run the same command again."""
_WRITTEN = (
    "model.onnx", "plan.json", "plan.safetensors", "report.md", "report.json", "journal.jsonl", "frontier",
)  # fmt: skip


@subcommand("optimize", OptimizeOptions, _MORE)
def command(options: OptimizeOptions, as_json: bool) -> None:
    """Optimize with a progress bar, then print the report."""
    from axformer_onnx import commands
    from axformer_onnx.cli.console import console
    from axformer_onnx.cli.progress import progress
    from axformer_onnx.result.report import print_report

    with progress() as watcher:
        result = commands.optimize(options, watcher)
    if as_json:
        click.echo(result.report.dumps(), nl=False)
    else:
        print_report(result.report, console())
        files = [name for name in _WRITTEN if (result.output / name).exists()]
        click.echo(f"Written to {result.output}: {', '.join(files)}")
