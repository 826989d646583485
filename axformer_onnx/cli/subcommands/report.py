"""`axformer-onnx report`."""

from __future__ import annotations

import click

from axformer_onnx.cli.generated import command as subcommand
from axformer_onnx.options import ReportOptions

_MORE = """RUN is the output folder of `axformer-onnx optimize`, or its report.json; nothing is measured again. The page is one
file, and fetches nothing."""


@subcommand("report", ReportOptions, _MORE)
def command(options: ReportOptions, as_json: bool) -> None:
    """Write the page, then print the report."""
    from axformer_onnx.cli.console import console
    from axformer_onnx.commands import read_report, write_page
    from axformer_onnx.result.report import print_report

    report = read_report(options.run)
    page = write_page(options.run, options.output)
    if as_json:
        click.echo(report.dumps(), nl=False)
    else:
        print_report(report, console())
        click.echo(f"Written: {page}")
