"""`axformer-onnx optimize`."""

from __future__ import annotations

import click

from axformer_onnx.cli.generated import command as subcommand
from axformer_onnx.options import OptimizeOptions

_MORE = """The report compares MODEL and the result on rows that no decision used.

Ctrl-C ends with the best so far. A killed run goes on where it was: run the same command again."""
_WRITTEN = (
    "model.onnx", "plan.json", "plan.safetensors", "report.html", "report.md", "report.json", "journal.jsonl", "frontier",
)  # fmt: skip

_DRY_RUN = click.Option(
    ["--dry-run"], is_flag=True, help="Say what was found, how rows are split and how long it takes; start nothing."
)


@subcommand("optimize", OptimizeOptions, _MORE, [_DRY_RUN])
def command(options: OptimizeOptions, as_json: bool, dry_run: bool) -> None:
    """Say what was found and what is missing; optimize with a progress bar, then print the report."""
    from axformer_onnx import commands
    from axformer_onnx.cli.console import console, print_preview
    from axformer_onnx.cli.generated import print_json
    from axformer_onnx.cli.progress import progress
    from axformer_onnx.result.report import print_report

    with progress() as watcher:
        seen = commands.preview(options, watcher.step, timed=dry_run)
    if dry_run and as_json:
        print_json(seen.to_json())
    elif dry_run or seen.lacking or seen.inferred:
        print_preview(seen, console(stderr=not dry_run), notes=dry_run)
    if seen.problem is not None:
        raise seen.problem
    if dry_run:
        return
    with progress() as watcher:
        result = commands.run(seen, watcher)
    if as_json:
        click.echo(result.report.dumps(), nl=False)
    else:
        print_report(result.report, console())
        files = [name for name in _WRITTEN if (result.output / name).exists()]
        click.echo(f"Written to {result.output}: {', '.join(files)}")
