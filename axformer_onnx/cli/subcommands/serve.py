"""`axformer-onnx serve`."""

from __future__ import annotations

import json

import click

from axformer_onnx.cli.generated import command as subcommand
from axformer_onnx.options import ServeOptions

_MORE = """Open Inference Protocol v2 over HTTP, with dynamic batching, metrics for Prometheus and a page to try it on: for trying
out and for load tests.

Needs the extra: pip install 'axformer-onnx[serve]'."""


@subcommand("serve", ServeOptions, _MORE)
def command(options: ServeOptions, as_json: bool) -> None:
    """Serve, and say where; with --json one line, as soon as it answers."""
    from axformer_onnx.cli.progress import progress
    from axformer_onnx.serving import Started, serve

    def started(one: Started) -> None:
        infer = f"{one.url}/v2/models/{one.name}/infer"
        if as_json:
            click.echo(json.dumps({"url": one.url, "name": one.name, "infer": infer, "notes": list(one.notes)}))
            return
        click.echo(f"{one.name}: {one.about}")
        for note in one.notes:
            click.echo(f"Note: {note}")
        for what, where in (("page", f"{one.url}/"), ("requests", infer), ("metrics", f"{one.url}/metrics")):
            click.echo(f"  {what:<9} {where}")
        click.echo("Ctrl-C stops it.")

    with progress() as watcher:
        serve(options, started, watcher.step)
    if not as_json:
        click.echo("stopped")
