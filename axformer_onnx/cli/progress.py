"""What the command line shows on stderr while it works: steps, and the search's progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from axformer_onnx.records import Trial
    from axformer_onnx.searches import Watcher


@contextlib.contextmanager
def progress() -> Iterator[Watcher]:
    """Steps as lines and the search as a bar with time left, on stderr; without a terminal the steps alone."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from axformer_onnx.searches import Watcher

    error = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[element]}"),
    )
    with Progress(*columns, console=error, transient=True, disable=not error.is_terminal) as bar:
        task = bar.add_task("search", total=None, visible=False, element="")

        def step(text: str) -> None:
            bar.update(task, visible=False)
            error.print(f"[dim]{text} ...[/dim]", soft_wrap=True)

        def trial(done: Trial, left: int) -> None:
            accepted = done.stage + done.accepted
            bar.update(
                task,
                visible=True,
                completed=done.index + 1,
                total=done.index + 1 + left,
                element=f"{accepted} accepted, {done.element}",
            )

        def part(what: str, done: int, of: int) -> None:
            bar.update(task, visible=True, completed=done, total=of, description=what, element="")

        yield Watcher(step, trial, part)
