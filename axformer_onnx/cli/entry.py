"""The command line: parse, call, print, exit. Everything it does a notebook can do with the modules it calls."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from axformer_onnx.errors import AxformerError, UsageError, printable

if TYPE_CHECKING:
    from axformer_onnx.scoring import Machine
    from axformer_onnx.tasks import Task

_EPILOG = """\b
Exit codes:
  0    done
  2    something about the input that you can mend: model, plan, data, options
  3    something at run time: ONNX Runtime, a provider, a missing extra, the file system,
       a produced graph that failed its own check
  130  stopped with Ctrl-C
"""
_Command = TypeVar("_Command", bound=Callable[..., Any])
_MODEL = click.Path(path_type=Path)


def _options(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    """Several options as one decorator, shown in the order given."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_task_options = _options(
    click.option(
        "--task",
        required=True,
        help="cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, mnli-mm, custom, multilabel or embedding.",
    ),
    click.option("--columns", help="Text columns, one or two: text_a,text_b. Needed for --task custom."),
    click.option("--label", help="Label column; default: label (multilabel: labels)."),
    click.option(
        "--metric",
        help="Of a task of your own. custom: accuracy, f1, macro-f1, mcc, pearson_spearman; "
        "multilabel: micro-f1, macro-f1, exact-match; embedding: spearman, pearson, cosine.",
    ),
    click.option("--data", help="File or folder with rows, or a data set of the hub; default: data/ beside the model."),
)
_machine_options = _options(
    click.option("--provider", default="cpu", show_default=True, help="Execution provider of ONNX Runtime."),
    click.option("--threads", type=click.IntRange(1), help="Threads of ONNX Runtime; default: its own choice."),
    click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Batch size of latency."),
    click.option(
        "--length",
        type=click.IntRange(1),
        multiple=True,
        help="Tokens of latency, repeatable; default: median and 95th percentile of the data.",
    ),
    click.option("--max-length", type=click.IntRange(3), help="Truncate rows at so many tokens; default: the model's."),
)
_seed = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of every random choice."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
_overwrite = click.option("--overwrite", is_flag=True, help="Replace what an earlier run left in the output.")


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="axformer-onnx")
def cli() -> None:
    """Make a fine-tuned transformer smaller and faster, in ONNX, and prove that it scores as well.

    MODEL is an .onnx file, or a folder that holds model.onnx.
    """


@cli.command()
@click.argument("checkpoint")
@click.argument("out", type=_MODEL)
@click.option("--task", help="Compare the checkpoint's labels with this task's.")
@click.option(
    "--exporter",
    type=click.Choice(["auto", "optimum", "dynamo", "torchscript", "transformers"]),
    default="auto",
    show_default=True,
    help="Who writes the graph; transformers: version 5 or later.",
)
@click.option("--opset", type=click.IntRange(7), help="Operator set; default: the exporter's.")
@_json
def export(checkpoint: str, out: Path, task: str | None, exporter: Any, opset: int | None, as_json: bool) -> None:
    """Write a checkpoint to OUT/model.onnx, checked against torch.

    CHECKPOINT is a Hugging Face checkpoint folder, or a name on the hub; a sentence-transformers folder is
    written with pooling and normalisation in the graph.

    Needs the extra: pip install 'axformer-onnx[export]'.
    """
    from axformer_onnx.exporting import export as run

    result = run(checkpoint, out, task=task, exporter=exporter, opset=opset)
    if as_json:
        _print_json({**vars(result), "path": str(result.path)})
        return
    for note in result.notes:
        click.echo(f"Note: {note}")
    checked = "" if result.worst_difference is None else f", within {result.worst_difference:.1g} of torch"
    click.echo(f"{result.path}: {result.exporter}, opset {result.opset}{checked}")


@cli.command()
@click.argument("model", type=_MODEL)
@click.option("--length", type=click.IntRange(1), help="Tokens for counting compute; default: 128.")
@_json
def inspect(model: Path, length: int | None, as_json: bool) -> None:
    """Show layers, heads, neurons, and what was not recognised."""
    from axformer_onnx.cli.console import console, print_inspection
    from axformer_onnx.commands import inspect_model

    found = inspect_model(model, length)
    if as_json:
        _print_json(found.to_json())
    else:
        print_inspection(found, console())


@cli.command()
@click.argument("plan", type=_MODEL)
@click.argument("model", type=_MODEL)
@click.option("--output", "-o", type=_MODEL, required=True, help="A folder, or a file that ends in .onnx.")
@_overwrite
@_json
def apply(plan: Path, model: Path, output: Path, overwrite: bool, as_json: bool) -> None:
    """Replay a plan: the same PLAN and MODEL give the same bytes."""
    from axformer_onnx.commands import apply as run

    path = run(plan, model, output, overwrite=overwrite)
    if as_json:
        _print_json({"path": str(path), "size_bytes": path.stat().st_size})
        return
    click.echo(f"{path}: written and verified against {model}")


@cli.command()
@click.argument("models", nargs=-1, required=True, type=_MODEL, metavar="MODEL [OTHER]")
@_task_options
@_machine_options
@_seed
@_json
def score(
    models: tuple[Path, ...], data: str | None, max_length: int | None, seed: int, as_json: bool, **rest: Any
) -> None:
    """Score a model, or two against each other.

    On the report rows, with a paired test, and latency measured side by side.
    """
    if len(models) > 2:
        raise UsageError(f"{len(models)} models were named; score takes one or two")
    from axformer_onnx.cli.console import console, print_scores, progress
    from axformer_onnx.commands import ScoreOptions
    from axformer_onnx.commands import score as run

    options = ScoreOptions(
        models=models,
        task=_task(**rest),
        data=data,
        machine=_machine(**rest),
        shapes=_shapes(**rest),
        max_length=max_length,
        seed=seed,
    )
    with progress() as watcher:
        result = run(options, watcher.step)
    if as_json:
        _print_json(result.to_json())
    else:
        print_scores(result, console())


@cli.command()
@click.argument("model", type=_MODEL)
@_task_options
@click.option("--search-data", help="File with rows for the search; default: a search file, else a part of train.")
@click.option("--calibration", help="File with unlabelled rows for compensation; default: the search rows.")
@click.option("--output", "-o", type=_MODEL, help="Folder; default: <folder of the model>-optimized here.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0),
    help="The fastest graph that scores at most so many points below MODEL on the select rows; default: 0.",
)
@click.option(
    "--speedup",
    type=click.FloatRange(1, min_open=True),
    help="The most accurate graph that is measured at least so many times as fast.",
)
@click.option(
    "--size",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="The most accurate graph whose file is at most this part of MODEL's.",
)
@click.option(
    "--effort",
    type=click.Choice(["low", "medium", "high"]),
    default="medium",
    show_default=True,
    help="How many candidates are asked about, on how many rows.",
)
@click.option(
    "--search",
    type=click.Choice(["compensated", "robust", "axformer"]),
    default="compensated",
    show_default=True,
    help="compensated: what stays makes up for what goes, latency is measured. robust: removes only what does not matter. "
    "axformer: the paper's rule.",
)
@click.option(
    "--refit-classifier", is_flag=True, help="Also refit the last linear layer, with the labels of the search rows."
)
@click.option(
    "--k", type=click.IntRange(1), default=30, show_default=True, help="K of hard attention (robust, axformer)."
)
@click.option(
    "--readout",
    type=click.Choice(["narrow", "whole"]),
    default="narrow",
    show_default=True,
    help="narrow: the last layer computes only the token that the output reads, where that is exact.",
)
@click.option(
    "--constants",
    type=click.Choice(["folded", "kept"]),
    default="folded",
    show_default=True,
    help="folded: factors, biases and sizes go where they cost least; exact but for rounding.",
)
@click.option(
    "--keys-values",
    type=click.Choice(["absorbed", "projected"]),
    default="absorbed",
    show_default=True,
    help="absorbed: behind a narrow read-out the last layer needs no keys and values of all tokens; exact but for rounding.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Processes that score candidates (compensated).",
)
@click.option(
    "--backend",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where those processes are; ray: the cluster that RAY_ADDRESS names, else a local one. Needs the extra [ray].",
)
@click.option(
    "--shared-weights",
    type=click.Choice(["together", "separate"]),
    help="Heads and neurons of layers that share weights: in all at once, or each with a copy; default: together.",
)
@click.option(
    "--max-search-rows", type=click.IntRange(3), help="Rows for the search, select rows included; default: 3000."
)
@_overwrite
@_machine_options
@_seed
@_json
def optimize(model: Path, as_json: bool, **options: Any) -> None:
    """Find what a model can do without, and write it smaller.

    The report compares MODEL and the result on rows that no decision used.

    Ctrl-C ends with the best so far. A killed run goes on where it was: run the same command again.
    """
    from axformer_onnx.cli.console import console, progress
    from axformer_onnx.commands import optimize as run
    from axformer_onnx.result.report import print_report

    with progress() as watcher:
        result = run(_optimize_options(model, **options), watcher)
    if as_json:
        click.echo(result.report.dumps(), nl=False)
    else:
        print_report(result.report, console())
        files = [name for name in _WRITTEN if (result.output / name).exists()]
        click.echo(f"Written to {result.output}: {', '.join(files)}")


_WRITTEN = (
    "model.onnx", "plan.json", "plan.safetensors", "report.md", "report.json", "journal.jsonl", "frontier",
)  # fmt: skip


_AS_GIVEN = (
    "data", "search_data", "calibration", "search", "effort", "refit_classifier", "k", "readout", "constants", "keys_values",
    "jobs", "backend", "shared_weights", "seed", "max_length", "overwrite",
)  # fmt: skip
"""Options of the command line that are those of a run, under the same names."""


def _optimize_options(
    model: Path,
    output: Path | None,
    max_drop: float | None,
    speedup: float | None,
    size: float | None,
    max_search_rows: int | None,
    **rest: Any,
) -> Any:
    from axformer_onnx.inputs import MAX_SEARCH_ROWS, OptimizeOptions
    from axformer_onnx.result import default_output
    from axformer_passes.io import model_path

    return OptimizeOptions(
        model=model,
        task=_task(**rest),
        output=output or default_output(model_path(model)),
        goal=_goal(rest["search"], max_drop, speedup, size),
        machine=_machine(**rest),
        shapes=_shapes(**rest),
        max_search_rows=max_search_rows or MAX_SEARCH_ROWS,
        **{name: rest[name] for name in _AS_GIVEN},
    )


def _goal(search: str, max_drop: float | None, speedup: float | None, size: float | None) -> Any:
    from axformer_onnx.inputs import Goal

    asked = {"drop": max_drop, "speedup": speedup, "size": size}
    given = [Goal(kind, value) for kind, value in asked.items() if value is not None]  # type: ignore[arg-type]
    if len(given) > 1:
        raise UsageError(f"{given[0].words} and {given[1].words} were given; name one goal")
    if given and search != "compensated":
        raise UsageError(f"{given[0].words} is for --search compensated; --search {search} has no goal but the loss")
    return given[0] if given else Goal()


def _task(task: str, columns: str | None, label: str | None, metric: str | None, **rest: Any) -> Task:
    from axformer_onnx.tasks import custom_task, get_task, is_kind, own_task, with_columns

    names = columns.split(",") if columns else None
    if task.strip().lower() == "custom":
        if names is None:
            raise UsageError("--task custom needs --columns, for example --columns text_a,text_b")
        return custom_task(names, label or "label", metric or "accuracy")
    if is_kind(task.strip().lower()):
        return own_task(task.strip().lower(), names, label, metric)
    if metric is not None:
        raise UsageError(f"--metric is for --task custom, multilabel and embedding; {task} has its own")
    return with_columns(get_task(task), names, label)


def _machine(provider: str, threads: int | None, **rest: Any) -> Machine:
    from axformer_onnx.scoring import Machine

    return Machine(provider, threads)


def _shapes(batch: int, length: tuple[int, ...], **rest: Any) -> tuple[tuple[int, int], ...] | None:
    if not length and batch != 1:
        raise UsageError("--batch needs --length, for example --batch 8 --length 128")
    return tuple((batch, one) for one in length) or None


def _print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, default=list))


def main() -> None:
    """Entry point of `axformer-onnx`: errors of ours are one line on stderr and their exit code; bugs are tracebacks."""
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # what it warns of in a damaged graph is said in our error
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; the same command goes on where the journal ends", err=True)
        sys.exit(130)
    except AxformerError as error:
        click.echo(f"error: {printable(' '.join(str(error).split()))}", err=True)
        sys.exit(error.exit_code)
