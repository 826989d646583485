"""What `import axformer_onnx` offers: each subcommand as a function, with the same options under the same names.

Options are validated by the models that the command line is generated from (`options/`), and refused with the same words, spelled
as keyword arguments.
"""

from __future__ import annotations

import functools
import inspect as signatures
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from axformer_onnx.errors import AxformerError
from axformer_onnx.options import (
    ApplyOptions,
    CompareOptions,
    DeployOptions,
    ExportOptions,
    InspectOptions,
    OptimizeOptions,
    Options,
    ReportOptions,
    ScoreOptions,
    ServeOptions,
    fields_of,
    in_python,
    make,
    mark,
)

if TYPE_CHECKING:
    from axformer_onnx.commands import CompareResult, Inspection, OptimizeResult, Preview, ScoreResult
    from axformer_onnx.deploying import Deployment
    from axformer_onnx.exporting import ExportResult
    from axformer_passes.plan import Plan

Face = TypeVar("Face", bound=Callable[..., Any])


def _face(model: type[Options]) -> Callable[[Face], Face]:
    """Give a function the keyword arguments of `model` in signature and docstring, and its errors the words of Python."""

    def decorate(function: Face) -> Face:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            try:
                return function(*arguments, **options)
            except AxformerError as error:
                error.args = (in_python(str(error)),)
                raise

        own = signatures.signature(function)
        call.__signature__ = own.replace(parameters=_parameters(own, model))  # type: ignore[attr-defined]
        call.__doc__ = f"{(function.__doc__ or '').rstrip()}\n\n    Options:\n\n{_described(model)}\n    "
        return call  # type: ignore[return-value]

    return decorate


def _parameters(own: signatures.Signature, model: type[Options]) -> list[signatures.Parameter]:
    """Those of the function itself, then the options by keyword."""
    first = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if len(first) == len(own.parameters):
        return first
    empty, kind = signatures.Parameter.empty, signatures.Parameter.KEYWORD_ONLY
    return first + [
        signatures.Parameter(
            name, kind, default=empty if field.is_required() else field.default, annotation=field.annotation
        )
        for name, field in fields_of(model).items()
        if not mark(field, "positional") and name not in own.parameters
    ]


def _described(model: type[Options]) -> str:
    fields = {name: field for name, field in fields_of(model).items() if not mark(field, "positional")}
    width = max(map(len, fields))
    return "\n".join(f"    {name:<{width}}  {in_python(field.description or '')}" for name, field in fields.items())


@_face(OptimizeOptions)
def optimize(model: str | Path, **options: Any) -> OptimizeResult:
    """Find what the model can do without, and write it smaller; the result holds the report, the plan and the graph's path.

    >>> import axformer_onnx as ax
    >>> result = ax.optimize("models/nli-mini", task="mnli", search="axformer", max_search_rows=60, length=16, output="smaller")
    >>> result.path.as_posix(), result.score.metric
    ('smaller/model.onnx', 'accuracy')
    >>> result.report.candidate.parameters < result.report.source.parameters
    True

    The default search takes a goal, `max_drop`, `speedup` or `size`, and hands out a frontier of plans: `result.frontier`.
    A run that was stopped goes on where it was: make the same call again.

    Raises: AxformerError; then nothing but the journal was written.
    """
    from axformer_onnx import commands

    return commands.optimize(make(OptimizeOptions, {"model": model, **options}))


@_face(OptimizeOptions)
def preview(model: str | Path, **options: Any) -> Preview:
    """What `optimize` would do with the same arguments: what was found, how rows are split, how long it will take, what is missing.

    >>> import axformer_onnx as ax
    >>> seen = ax.preview("models/nli-mini", task="mnli")
    >>> seen.problem is None, sorted(seen.given.rows)
    (True, ['report', 'search', 'select'])

    Nothing is searched; a checkpoint is exported. Raises: ModelError and RuntimeFailure for the model itself.
    """
    from axformer_onnx import commands

    return commands.preview(make(OptimizeOptions, {"model": model, **options}))


@_face(ApplyOptions)
def apply(
    plan: str | Path | Plan,
    model: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    sample: str | Path | None = None,
) -> Path:
    """Replay a plan: the same plan and model give the same bytes. Returns the graph's path.

    >>> import axformer_onnx as ax
    >>> ax.apply(ax.Plan().without_heads(0, [1]), "models/nli-mini", "without-a-head.onnx").name
    'without-a-head.onnx'

    Raises: PlanError for a plan of another model, UsageError for an output that exists, VerifyError for a graph that failed its
    check; then nothing was written.
    """
    from axformer_onnx import commands

    values = {"plan": plan, "model": model, "output": output, "overwrite": overwrite, "sample": sample}
    given = make(ApplyOptions, values)
    return commands.apply(given.plan, given.model, given.output, overwrite=given.overwrite, sample=given.sample)


@_face(ScoreOptions)
def score(model: str | Path, other: str | Path | None = None, **options: Any) -> ScoreResult:
    """Score a model, or two against each other, on the report rows, with a paired test and latency side by side.

    >>> import axformer_onnx as ax
    >>> result = ax.score("models/nli-mini", task="mnli", length=16)
    >>> result.metric, [model.single_class for model in result.models.values()]
    ('accuracy', [None])

    Raises: AxformerError.
    """
    from axformer_onnx import commands

    models = (model,) if other is None else (model, other)
    return commands.score(make(ScoreOptions, {"models": models, **options}))


@_face(CompareOptions)
def compare(baseline: str | Path, candidate: str | Path, **options: Any) -> CompareResult:
    """Is the candidate as good as the baseline? A gate for each thing asked: passed, failed or undecided, with stated error rates.

    >>> import axformer_onnx as ax
    >>> candidate = ax.apply(ax.Plan().without_heads(0, [1]), "models/nli-mini", "candidate.onnx")
    >>> result = ax.compare("models/nli-mini", candidate, task="mnli", max_size_ratio=1.0, length=16)
    >>> result.outcome, result.ok
    ('passed', True)
    >>> [gate.full_name for gate in result.gates]
    ['max-size-ratio 1']

    In a test: `assert ax.compare(...).ok`. Raises: AxformerError; a gate that fails is an outcome and raises nothing.
    """
    from axformer_onnx import commands

    return commands.compare(make(CompareOptions, {"baseline": baseline, "candidate": candidate, **options}))


@_face(InspectOptions)
def inspect(model: str | Path, length: int | None = None, *, sample: str | Path | None = None) -> Inspection:
    """Layers, heads, neurons, parameters and compute of a graph, and what was not recognised.

    >>> import axformer_onnx as ax
    >>> len(ax.inspect("models/nli-mini").anatomy.layers)
    6

    Raises: ModelError; RuntimeFailure where the model does not take `length` tokens.
    """
    from axformer_onnx import commands

    given = make(InspectOptions, {"model": model, "length": length, "sample": sample})
    return commands.inspect_model(given.model, given.length, given.sample)


@_face(ReportOptions)
def report(run: str | Path, output: str | Path | None = None) -> Path:
    """Write the page of a finished run, report.html, from its report.json; nothing is measured again. Returns the page's path.

    >>> import axformer_onnx as ax
    >>> ax.report("smaller")
    Traceback (most recent call last):
    axformer_passes.errors.UsageError: smaller: holds no report.json; name the output folder of a finished run, or its report.json

    Raises: UsageError where there is no report, AxformerError for one of another format, RuntimeFailure where the page cannot be
    written.
    """
    from axformer_onnx import commands

    given = make(ReportOptions, {"run": run, "output": output})
    return commands.write_page(given.run, given.output)


@_face(ExportOptions)
def export(checkpoint: str | Path, out: str | Path, **options: Any) -> ExportResult:
    """Write a fine-tuned checkpoint to OUT/model.onnx, checked against torch. Needs the extra: pip install 'axformer-onnx[export]'.

    >>> import axformer_onnx as ax
    >>> ax.export("checkpoint", "exported", opset=3)
    Traceback (most recent call last):
    axformer_passes.errors.UsageError: opset is 3: expected at least 7

    Raises: UsageError, ModelError, RuntimeFailure, VerifyError; then nothing was written.
    """
    from axformer_onnx.exporting import export as run

    given = make(ExportOptions, {"checkpoint": checkpoint, "out": out, **options})
    return run(given.checkpoint, given.out, **given.model_dump(exclude={"checkpoint", "out"}))


@_face(DeployOptions)
def deploy(model: str | Path, output: str | Path, **options: Any) -> Deployment:
    """Write the folder that a server or a library reads: Triton, text-embeddings-inference, transformers.js, OpenVINO, ...

    >>> import axformer_onnx as ax
    >>> found = ax.deploy("models/nli-mini", "for-tei", for_="tei")
    >>> found.graph.as_posix(), found.opset
    ('for-tei/model.onnx', 17)

    Raises: UsageError where the target cannot serve the graph, with the reason; then nothing was written.
    """
    from axformer_onnx.deploying import deploy as run

    return run(make(DeployOptions, {"model": model, "output": output, **options}))


@_face(ServeOptions)
def serve(model: str | Path, **options: Any) -> None:
    """Answer requests for a model over HTTP (Open Inference Protocol v2) until the process is told to stop.

    >>> import axformer_onnx as ax
    >>> ax.serve("models/nli-mini", port=70000)
    Traceback (most recent call last):
    axformer_passes.errors.UsageError: port is 70000: expected at most 65535

    Needs the extra: pip install 'axformer-onnx[serve]'. Raises: RuntimeFailure for a port in use; what loading a model raises.
    """
    from axformer_onnx.serving import serve as run

    run(make(ServeOptions, {"model": model, **options}), lambda one: print(f"{one.name}: {one.url}/", flush=True))
