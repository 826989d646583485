"""`axformer-onnx compare`."""

from __future__ import annotations

import click

from axformer_onnx.cli.generated import command as subcommand
from axformer_onnx.cli.generated import print_json
from axformer_onnx.options import CompareOptions

_MORE = """Paired on the report rows, with latency measured side by side. A gate that was not asked for fails nobody.

A gate is failed where its interval excludes what is allowed, passed where all of it is allowed, else undecided: it says how many
rows or repetitions would decide it. A speed that the machine was too disturbed to measure is undecided.

Exit codes: 0 passed, or undecided without --strict; 1 failed; 2 and 3 as of every command."""


@subcommand("compare", CompareOptions, _MORE)
def command(options: CompareOptions, as_json: bool) -> None:
    """Compare, print the verdict, and exit with 1 where it fails."""
    from axformer_onnx.cli.console import console, print_verdict
    from axformer_onnx.cli.progress import progress
    from axformer_onnx.commands import compare
    from axformer_onnx.gates import headline

    with progress() as watcher:
        result = compare(options, watcher.step)
    if as_json:
        print_json(result.to_json())
        click.echo(headline(result.verdict), err=True)
    else:
        print_verdict(result.verdict, console())
    if not result.ok:
        click.get_current_context().exit(1)
