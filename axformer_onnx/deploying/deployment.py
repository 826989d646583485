"""`deploy`: the graph as its target reads it, the files beside it, the lines that start it, in one folder."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from axformer_onnx.deploying.comparison import require_same
from axformer_onnx.deploying.contents import Contents, read_contents
from axformer_onnx.deploying.conversion import at_ir, at_opset
from axformer_onnx.deploying.interface import fitted
from axformer_onnx.deploying.placement import placed, record, require_free
from axformer_onnx.deploying.reads import require_operators
from axformer_onnx.deploying.target import Job, Target, target_named
from axformer_onnx.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_onnx.options import DeployOptions

_OPERATOR_SET, _FILE_FORMAT = "--target-opset", "--target-ir"


@dataclasses.dataclass(frozen=True)
class Deployment:
    """What was written.

    path              the folder
    graph             the graph in it
    target            who reads it, as `--for` names it
    opset, ir         of the graph: version of the default operator set and of the file format
    rewritten         the graph differs from the one that was given: in its names, its operator set or its format
    worst_difference  of an output of the rewritten graph, relative to its largest value; None: the file is the one that was given
    notes             sentences for the user
    """

    path: Path
    graph: Path
    target: str
    opset: int
    ir: int
    rewritten: bool
    worst_difference: float | None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Fitted:
    contents: Contents
    model: ir.Model
    notes: tuple[str, ...]

    @property
    def rewritten(self) -> bool:
        return self.model is not self.contents.model


def deploy(options: DeployOptions, step: Callable[[str], None] = lambda text: None) -> Deployment:
    """Write the folder that `options.for_` reads. The input is left alone; a folder that is there is refused without overwrite.

    Raises: UsageError where the target cannot serve the graph, with the reason; ModelError, DataError, VerifyError, RuntimeFailure;
    then nothing was written.
    """
    from axformer_onnx.inputs import locate
    from axformer_passes.io import sha256_of

    target = target_named(options.for_)
    located = locate(options.model, None, None, step)
    source = _form(located.path, options)
    require_free(options.output, source, overwrite=options.overwrite)
    step(f"reading {source}")
    first = _fit(read_contents(source, options.name), target, options)
    others = [_fit(read_contents(_graph_at(path), options.name), target, options) for path in options.also]
    notes = [*located.notes, *_form_note(source, target, options)]
    with placed(options.output) as folder:
        worst, graphs = list[float](), list[str]()
        for one in (first, *others):
            name = target.graph(one.contents, options)
            if name in graphs:
                raise UsageError(
                    f"{one.contents.path}: is in {one.contents.precision}, as another graph is that goes to {name}"
                )
            graphs.append(name)
            step(f"writing {name}")
            worst += _write(one, folder / name, single_file=target.single_file)
            notes += one.notes
        job = Job(first.contents, first.model, options, folder)
        notes += target.place(job)
        job.write({"README.md": _readme(job, target)})
        record(
            folder, {"for": target.name, "graphs": graphs, "source_sha256": sha256_of(source), **_versions(first.model)}
        )
    return Deployment(
        path=options.output,
        graph=options.output / graphs[0],
        target=target.name,
        rewritten=first.rewritten,
        worst_difference=max(worst) if worst else None,
        notes=tuple(dict.fromkeys(notes)),
        **_versions(first.model),
    )


def _versions(model: ir.Model) -> dict[str, int]:
    return {"opset": model.opset_imports[""], "ir": model.ir_version}


def _graph_at(path: Path) -> Path:
    from axformer_passes.io import model_path

    return model_path(path)


def _form(graph: Path, options: DeployOptions) -> Path:
    """The file of the form that was asked for. Raises: UsageError where there is none."""
    from axformer_onnx.result import RUNTIME_MODEL

    if options.form == "portable":
        return graph
    path = graph.parent / RUNTIME_MODEL
    if not path.is_file():
        raise UsageError(
            f"{graph.parent}: holds no {RUNTIME_MODEL}: `optimize --runtime-form measured` writes it where it is faster. "
            "Leave --form runtime out"
        )
    return path


def _form_note(graph: Path, target: Target, options: DeployOptions) -> list[str]:
    from axformer_onnx.result import RUNTIME_MODEL

    reads = "com.microsoft" in target.reads.domains
    if options.form == "portable" and reads and (graph.parent / RUNTIME_MODEL).is_file():
        return [f"the run also holds {RUNTIME_MODEL}, measured to be faster on its machine: --form runtime deploys it"]
    return []


def _fit(contents: Contents, target: Target, options: DeployOptions) -> _Fitted:
    """The graph with the inputs, outputs, operator set and format that the target reads. Raises: UsageError."""
    target.require(contents)
    require_operators(contents.model, target.reads, target.name)
    model = fitted(contents, target.interface, target.name)
    notes = list[str]()
    have, reads = model.opset_imports[""], target.reads
    opset = options.target_opset or (reads.opset if reads.opset is not None and have > reads.opset else have)
    ir_version = options.target_ir or (
        reads.ir if reads.ir is not None and model.ir_version > reads.ir else model.ir_version
    )
    if opset != have:
        model = at_opset(model, opset)
        why = _OPERATOR_SET if options.target_opset else f"{reads.what} reads no later one"
        notes.append(f"operator set {have} was converted to {opset} ({why})")
    if ir_version != model.ir_version:
        before, model = model.ir_version, at_ir(model, ir_version)
        why = _FILE_FORMAT if options.target_ir else f"{reads.what} reads no later one"
        notes.append(f"IR version {before} was written as {ir_version} ({why})")
    return _Fitted(contents, model, tuple(notes))


def _write(one: _Fitted, path: Path, *, single_file: bool) -> list[float]:
    """Write the graph; what was rewritten is checked and compared, and its difference returned. Raises: UsageError, VerifyError."""
    from axformer_passes.io import SINGLE_FILE_LIMIT, external_files, save_model

    source = one.contents.path
    parts = external_files(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not one.rewritten and (not parts or (path.name == source.name and not single_file)):
        shutil.copyfile(source, path)
        for part in parts:
            target = path.parent / part.resolve().relative_to(source.resolve().parent)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(part, target)
        return []
    save_model(one.model, path, single_file_limit=SINGLE_FILE_LIMIT if single_file else None)
    if single_file and (path.parent / f"{path.name}.data").is_file():
        raise UsageError(f"{source}: its weights do not fit into one file of 2 GiB, and this target reads no other")
    return [require_same(one.contents, path)]


def _readme(job: Job, target: Target) -> str:
    versions = _versions(job.model)
    start = target.start(job).strip("\n")
    said = f"Operator set {versions['opset']}, IR version {versions['ir']}"
    return (
        f"# {job.contents.name}, for {target.title}\n\n{start}\n\n"
        f"{said}; inputs {', '.join(job.inputs)}; outputs {', '.join(job.outputs)}. "
        "Written by `axformer-onnx deploy`; docs/deploying.md has a table of what each target reads.\n"
    )
