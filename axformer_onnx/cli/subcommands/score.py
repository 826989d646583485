"""`axformer-onnx score`."""

from __future__ import annotations

from axformer_onnx.cli.generated import command as subcommand
from axformer_onnx.cli.generated import print_json
from axformer_onnx.options import ScoreOptions


@subcommand("score", ScoreOptions, "On the report rows, with a paired test, and latency measured side by side.")
def command(options: ScoreOptions, as_json: bool) -> None:
    """Score, then print a column a model."""
    from axformer_onnx.cli.console import console, print_scores
    from axformer_onnx.cli.progress import progress
    from axformer_onnx.commands import score

    with progress() as watcher:
        result = score(options, watcher.step)
    if as_json:
        print_json(result.to_json())
    else:
        print_scores(result, console())
