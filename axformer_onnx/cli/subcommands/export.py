"""`axformer-onnx export`."""

from __future__ import annotations

import click

from axformer_onnx.cli.generated import command as subcommand
from axformer_onnx.cli.generated import print_json
from axformer_onnx.options import ExportOptions

_MORE = """CHECKPOINT is a Hugging Face checkpoint folder, or a name on the hub; a sentence-transformers folder is written with
pooling and normalisation in the graph.

Needs the extra: pip install 'axformer-onnx[export]'."""


@subcommand("export", ExportOptions, _MORE)
def command(options: ExportOptions, as_json: bool) -> None:
    """Export, then say where it is and how near to torch."""
    from axformer_onnx.exporting import export

    result = export(options.checkpoint, options.out, **options.model_dump(exclude={"checkpoint", "out"}))
    if as_json:
        print_json({**vars(result), "path": str(result.path)})
        return
    for note in result.notes:
        click.echo(f"Note: {note}")
    checked = "" if result.worst_difference is None else f", within {result.worst_difference:.1g} of torch"
    click.echo(f"{result.path}: {result.exporter}, opset {result.opset}{checked}")
