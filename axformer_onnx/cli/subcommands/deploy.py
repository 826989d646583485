"""`axformer-onnx deploy`."""

from __future__ import annotations

import click

from axformer_onnx.cli.generated import command as subcommand
from axformer_onnx.cli.generated import print_json
from axformer_onnx.options import DeployOptions

_MORE = """OUT is written whole or not at all; its README.md has the lines that start it. A graph that is rewritten for its
target (names of inputs, operator set, file format) is compared with the one that was given.

Options that name a target in brackets are for that target alone."""


@subcommand("deploy", DeployOptions, _MORE)
def command(options: DeployOptions, as_json: bool) -> None:
    """Deploy, then say what was written and how it is started."""
    from axformer_onnx.cli.progress import progress
    from axformer_onnx.deploying import deploy

    with progress() as watcher:
        found = deploy(options, watcher.step)
    if as_json:
        print_json({**vars(found), "path": str(found.path), "graph": str(found.graph)})
        return
    for note in found.notes:
        click.echo(f"Note: {note}")
    checked = (
        "as it was given"
        if found.worst_difference is None
        else f"within {found.worst_difference:.1g} of the one that was given"
    )
    click.echo(f"{found.graph}: operator set {found.opset}, IR version {found.ir}, {checked}")
    click.echo(f"{found.path / 'README.md'}: how it is started")
