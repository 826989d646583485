"""What a target is: where its graph goes, what it reads, which files stand beside the graph, the lines that start it.

A target is one file in `targets/` that registers one object with `options.TARGETS` (docs/adding-a-deploy-target.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from axformer_onnx.deploying.contents import Contents, Role, names_of
from axformer_onnx.deploying.interface import Interface
from axformer_onnx.deploying.reads import Reads
from axformer_onnx.errors import UsageError
from axformer_onnx.options import TARGETS, TargetKind

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_onnx.options import DeployOptions


@dataclasses.dataclass(frozen=True)
class Job:
    """What a target is handed: the graph as it will be written, where it came from, and what was asked for.

    folder   to write into; it gets its name when it is complete
    model    the graph, with the inputs and outputs that the target asks for
    """

    contents: Contents
    model: ir.Model
    options: DeployOptions
    folder: Path

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs as written."""
        return names_of(self.model.graph.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs as written."""
        return names_of(self.model.graph.outputs)

    def write(self, files: Mapping[str, str]) -> None:
        """Write texts, by their path in the folder."""
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


class Target(TargetKind):
    """A target with its behaviour; see `TargetKind` for name, help and knows.

    title        what people call it
    graph_place  where its graph lies in the folder; NAME stands for the model's name
    reads        what its reader understands, with the source
    interface    inputs and outputs that it asks for
    roles        what it can serve; empty: any graph
    single_file  weights must lie in the graph's own file
    hard         may a graph with hard attention go there, and what was seen of it: the cell of the support table
    int8         the same for integers
    """

    title: str
    graph_place: str = "model.onnx"
    reads: Reads
    interface: Interface = Interface()
    roles: tuple[Role, ...] = ()
    single_file: bool = False
    hard: str
    int8: str

    def require(self, contents: Contents) -> None:
        """Raises: UsageError for a graph that this target cannot serve, with the reason."""
        if self.roles and contents.role not in self.roles:
            raise UsageError(
                f"{contents.path}: --for {self.name} serves {', '.join(self.roles)}; the graph answers "
                f"{', '.join(contents.outputs)}, which is none of these. Use --for plain"
            )

    def graph(self, contents: Contents, options: DeployOptions) -> str:
        """Path of the graph in the folder."""
        return self.graph_place.replace("NAME", contents.name)

    def place(self, job: Job) -> list[str]:
        """Write everything beside the graph and the README; returns notes for the user."""
        raise NotImplementedError

    def start(self, job: Job) -> str:
        """The README below its first line: how the folder is started or loaded, in Markdown."""
        raise NotImplementedError


def target_named(name: str) -> Target:
    """The target that `--for` calls so. Raises: UsageError."""
    target = TARGETS[name]
    assert isinstance(target, Target)
    return target
