"""A model on a task: how its folder's tokenizer reads the rows, what of its outputs counts, how it scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from axformer_onnx.data import BatchSizes, Encoded, Encoder, Rows, read_json
from axformer_onnx.probing import recipe_in, spoken, vocabulary_of
from axformer_onnx.records import FloatArray, Scores
from axformer_onnx.runtime import (
    LatencyRow,
    compare_latency,
    fallback_note,
    is_cpu_alone,
    make_feeds,
    make_session,
    placement,
)
from axformer_onnx.scoring.outputs import score_session
from axformer_onnx.tasks import LabelMap, Output, Task, match_labels, with_label_names
from axformer_passes.probe import TokenSequence

if TYPE_CHECKING:
    from collections.abc import Iterable

Clock = Literal["wall", "cpu", "either"]
"""cpu: CPU time on one thread. either: the wall clock, and where it could not measure, CPU time as well (`LatencyRow.cpu`)."""
_VOCABULARY = 1000  # where config.json does not say; latency does not depend on which tokens there are


@dataclasses.dataclass(frozen=True)
class Machine:
    """Where sessions run. threads None: ONNX Runtime's choice."""

    provider: str = "cpu"
    threads: int | None = None

    def session(self, path: Path) -> Any:
        """A session on the model at `path`."""
        return make_session(path, provider=self.provider, threads=self.threads)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How one model reads a task.

    task     with its label names, from config.json or from the data
    tokens   rows for measuring latency: they begin and end as texts do
    output   what counts of the model
    """

    task: Task
    label_map: LabelMap
    encoder: Encoder
    tokens: TokenSequence
    output: Output

    def encode(self, rows: Rows) -> Encoded:
        """Tokens of the sequences that the task makes of every row."""
        return self.encoder.encode(rows, self.task.kind.passages)


def reading_of(
    folder: Path,
    session: Any,
    task: Task,
    rows: Rows,
    *,
    max_length: int | None = None,
    sizes: BatchSizes | None = None,
) -> Reading:
    """Find what the task reads of the model, match its labels, and load its tokenizer, both by what `folder` holds.

    sizes   of batches, where the graph takes no others than it declares; None: those that it declares

    Raises: DataError for a tokenizer that is missing or labels that do not match, UsageError for max_length.
    """
    config = read_json(folder / "config.json")
    task = with_label_names(task, config)
    if rows.label_names and not task.labels:
        task = dataclasses.replace(task, labels=rows.label_names)
    output = task.kind.output(session.get_outputs(), folder)
    label_map = match_labels(task, config or None, output.columns)
    if output.note:
        label_map = dataclasses.replace(label_map, note=f"{output.note} {label_map.note}")
    return Reading(
        task=task,
        label_map=label_map,
        encoder=Encoder.from_folder(folder, max_length).at(sizes or _declared(session)),
        tokens=spoken(recipe_in(folder), vocabulary_of(config) or _VOCABULARY),
        output=output,
    )


def _declared(session: Any) -> BatchSizes:
    """(sequences, tokens) of the graph's inputs, where it states them."""
    shapes = [one.shape for one in session.get_inputs() if len(one.shape) == 2]
    rows, tokens = shapes[0] if shapes else (None, None)
    return rows if isinstance(rows, int) else None, tokens if isinstance(tokens, int) else None


def score_file(
    path: Path,
    reading: Reading,
    encoded: Encoded,
    rows: Rows,
    machine: Machine,
    progress: Callable[[int], None] | None = None,
    *,
    source: FloatArray | None = None,
) -> Scores:
    """Scores of the graph at `path` with a session of its own; `source`: the source's outputs, where it is not the source."""
    return score_session(
        machine.session(path), encoded, rows, reading.task, reading.label_map,
        output=reading.output, source=source, progress=progress,
    )  # fmt: skip


def default_shapes(encoded: Encoded) -> tuple[tuple[int, int], ...]:
    """(batch, length): one row at the median and at the 95th percentile of the rows' lengths; the graph's own, where it takes no
    others."""
    if encoded.sizes != (None, None):
        batch, length = encoded.sizes
        return ((batch or 1, length or int(np.median(encoded.lengths))),)
    median, high = np.percentile(encoded.lengths, [50, 95], method="nearest")
    return tuple((1, int(length)) for length in dict.fromkeys((int(median), int(high))))


def latency_of(
    models: Mapping[str, Path],
    shapes: Iterable[tuple[int, int]],
    tokens: TokenSequence,
    machine: Machine,
    seed: int,
    *,
    wait_seconds: float = 0.0,
    say: Callable[[str], None] = lambda text: None,
    clock: Clock = "wall",
) -> list[LatencyRow]:
    """Latency of the graphs at these paths, interleaved, on rows as `tokens` has them; the first is the baseline.

    wait_seconds   for a free machine, at most; `say` is told what for
    """
    alone = dataclasses.replace(machine, threads=1)

    def on_one_thread() -> dict[str, Any]:
        return {name: alone.session(path) for name, path in models.items()}

    by_cpu = clock == "cpu"
    sessions = on_one_thread() if by_cpu else {name: machine.session(path) for name, path in models.items()}
    names = sorted({one.name for session in sessions.values() for one in session.get_inputs()})
    feeds = [(batch, length, make_feeds(names, batch, length, tokens=tokens, seed=seed)) for batch, length in shapes]
    return compare_latency(
        sessions, feeds, seed=seed, wait_seconds=0.0 if by_cpu else wait_seconds, say=say, cpu_time=by_cpu,
        on_one_thread=on_one_thread if clock == "either" and is_cpu_alone(machine.provider) else None,
    )  # fmt: skip


def placement_of(
    path: Path, shape: tuple[int, int], tokens: TokenSequence, machine: Machine, seed: int
) -> dict[str, dict[str, int]]:
    """{provider: {operator: nodes}} of a run at (batch, length); empty where only the CPU is asked for."""
    if is_cpu_alone(machine.provider):
        return {}
    names = sorted(one.name for one in machine.session(path).get_inputs())
    feeds = make_feeds(names, *shape, tokens=tokens, seed=seed)
    return placement(path, feeds, provider=machine.provider, threads=machine.threads)


def latency_warnings(rows: Iterable[LatencyRow]) -> list[str]:
    """A sentence for each shape at which the machine was too disturbed for a figure."""
    doubts = {f"{row.batch} x {row.length}": row.why for row in rows if not row.reliable}
    return [
        f"latency at {shape} does not hold: {why}. Measure again on a free machine (axformer-onnx score SOURCE RESULT ...)"
        for shape, why in doubts.items()
    ]


def provider_warnings(session: Any, provider: str) -> list[str]:
    """The sentence where ONNX Runtime fell back to another provider; none otherwise."""
    note = fallback_note(session, provider)
    return [note] if note else []


def score_warnings(scores: Scores, who: str) -> list[str]:
    """What a reader must know of these scores: one class for all rows, no better than the most frequent label."""
    found = []
    if scores.single_class is not None:
        found.append(f"{who} gives every row the class {scores.single_class!r}: its score is that of a constant answer")
    value = scores.metrics.get(scores.majority_metric)
    if value is not None and scores.majority_rate is not None and value <= scores.majority_rate:
        found.append(
            f"{who} scores {value:.2f} % in {scores.majority_metric}, no more than always answering the most frequent "
            f"label ({scores.majority_rate:.2f} %)"
        )
    return found


def truncation_notes(parts: Sequence[tuple[str, Encoded]]) -> list[str]:
    """A sentence for each set of rows with rows longer than the limit."""
    return [
        f"{encoded.truncated} of {len(encoded)} {role} {_unit(encoded)} were truncated at {encoded.max_length} tokens"
        for role, encoded in parts
        if encoded.truncated
    ]


def _unit(encoded: Encoded) -> str:
    return "rows" if len(encoded) == encoded.rows else "texts"
