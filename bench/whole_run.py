"""How much less work is a whole compensated search than a plain loop that answers the same questions?

    python bench/whole_run.py [MODEL] [--task T] [--data FOLDER] [--search-data FILE] [--speedup S | --max-drop D]
                              [--effort medium] [--every N] [--json FILE]

One `optimize` runs. Every choice that it asks about, in the sweep and in races, is written down with the answer. The plain loop
answers it by surgery (`apply_plan` with the weights of the rungs), save, load and a full evaluation on *all* search rows, in
batches of 32 in file order, each padded to its longest row, with as many threads.

    stages x rows   counted where a stage runs (`report_agrees`: the report counts the same), against choices x search rows x
                    stages; the source's own outputs count as work of the search alone
    layers x rows   the same without the stages before the first and behind the last layer
    fewer rows      part of that ratio: the search asks on fewer rows than there are, and stops races that are lost
    reuse           the rest of it: what lies before the first changed block does not run again
    seconds         of scoring: the source's outputs, sessions and all questions, against the plain loop's. One choice of every N,
                    drawn at random, is replayed, right after it was asked; the total is their mean times the choices. `same_rows`:
                    had the plain loop evaluated on the rows alone that the search looked at (its evaluation scaled, not run)
    whole_run       seconds of all of `optimize`, and what they would be with the plain loop in the place of scoring: calibration,
                    latencies, refits, points and report cost both the same

A replayed choice must get the divergence that the search found, row by row; the largest differences are told. Seconds are not
work: the plain loop's graphs are smaller than the stages, which the search runs at full width, but it pays for surgery and padding.
With more search rows to be had the ratios grow and the search does nothing else: `reuse` and `same_rows` are free of that.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from record import stamped, write

from axformer_onnx.commands.optimization import OptimizeOptions, OptimizeResult, Watcher, optimize
from axformer_onnx.data.encoding import feeds
from axformer_onnx.records import FloatArray
from axformer_onnx.runtime.sessions import make_session, run_once, run_session
from axformer_onnx.scoring import stage_scorer as stages
from axformer_onnx.search.compensated import preparation
from axformer_onnx.search.compensated.divergence import Race
from axformer_onnx.search.compensated.levels import Choice, Levels
from axformer_onnx.search.compensated.preparation import Scored, SearchInputs
from axformer_onnx.search.compensated.tuning import EFFORTS
from axformer_onnx.search.compensated.workers import Question
from axformer_onnx.tasks.definitions import get_task
from axformer_onnx.tasks.outputs import logits_of
from axformer_passes.apply import apply_plan
from axformer_passes.io.files import save_model

PLAIN_BATCH = 32
STEPS = ("surgery", "save", "load", "evaluate")
EXAMPLE = Path(__file__).resolve().parents[1] / "models" / "nli-mini" / "model.onnx"


class PlainLoop:
    """Surgery, save, load, full evaluation on all search rows of a prepared search."""

    def __init__(self, inputs: SearchInputs, levels: Levels) -> None:
        self.inputs, self.levels, self.given = inputs, levels, inputs.given
        self.source = self._outputs(self._session(inputs.given.source.path))

    def __call__(self, choice: Choice) -> tuple[dict[str, float], FloatArray]:
        """({step: seconds}, float64[search rows] divergences, in file order)."""
        marks = [time.perf_counter()]
        plan, weights = self.levels.plan(choice, self.inputs.start)
        graph = apply_plan(self.given.source.model, plan, run_once, weights=weights or None)
        marks.append(time.perf_counter())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            save_model(graph, path)
            marks.append(time.perf_counter())
            session = self._session(path)
            marks.append(time.perf_counter())
            outputs = self._outputs(session)
            marks.append(time.perf_counter())
        found = self.given.reading.task.kind.divergence(self.source, outputs)
        return dict(zip(STEPS, np.diff(marks).tolist(), strict=True)), found

    def _session(self, path: Path) -> Any:
        machine = self.inputs.options.machine
        return make_session(path, provider=machine.provider, threads=machine.threads)

    def _outputs(self, session: Any) -> FloatArray:
        encoded, output = self.given.encoded["search"], logits_of(session.get_outputs()).name
        names = [one.name for one in session.get_inputs()]
        parts = []
        for start in range(0, len(encoded), PLAIN_BATCH):
            rows = list(range(start, min(start + PLAIN_BATCH, len(encoded))))
            parts.append(run_session(session, feeds(encoded, rows, names), [output])[output])
        return np.concatenate(parts).astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Replayed:
    """One choice by the plain loop: seconds by step, rows the search looked at, and how far the two divergences are apart."""

    seconds: dict[str, float]
    seen: int
    row_difference: float
    mean_difference: float


class Listener:
    """A `workers.Scoring` that passes on all questions of one search, times them, and replays one of every N.

    asked           (question, rows looked at, all were) of every question
    stage_rows      rows that ran through each stage
    by_question     stages x rows that ran for the source, the sweep and races
    seconds         of scoring; `aside`: of the replays, which are no part of the run
    """

    def __init__(self, every: int, seed: int) -> None:
        self.every, self._draws = every, np.random.default_rng(seed)
        self.asked, self.replayed = list[tuple[Question, int, bool]](), list[Replayed]()
        self.stage_rows, self._lock = Counter[int](), threading.Lock()
        self.by_question = Counter[str]()
        self.seconds = self.aside = 0.0

    def begin(self, inputs: SearchInputs, levels: Levels, scored: Scored, seconds: float) -> None:
        """Take over from the search's own scoring, which it took so long to make."""
        began = time.perf_counter()
        self.inputs, self._inner, self.seconds = inputs, scored.scoring, seconds
        self.by_question["source"] = self.stage_rows.total()
        self._order, self._weights = scored.sampled.rows, np.concatenate(scored.divergence.weights)
        self._plain, self._next = PlainLoop(inputs, levels), int(self._draws.integers(self.every))
        self.aside += time.perf_counter() - began

    def __call__(self, questions: Sequence[Question]) -> list[Race]:
        """The search's own answers."""
        began, ran = time.perf_counter(), self.stage_rows.total()
        races = self._inner(questions)
        answered = time.perf_counter()
        self.seconds += answered - began
        self.by_question[kind_of(questions[0])] += self.stage_rows.total() - ran
        for question, race in zip(questions, races, strict=True):
            if len(self.asked) == self._next:
                self._replay(question.choice, race)
            self.asked.append((question, len(race.divergence), race.finished))
            if len(self.asked) % self.every == 0:
                self._next = len(self.asked) + int(self._draws.integers(self.every))
        self.aside += time.perf_counter() - answered
        return races

    def ran(self, stage: int, rows: int) -> None:
        """A stage ran on so many rows, in any thread."""
        with self._lock:
            self.stage_rows[stage] += rows

    def _replay(self, choice: Choice, race: Race) -> None:
        seconds, plain = self._plain(choice)
        seen = len(race.divergence)
        same = self._weights[:seen] * plain[self._order[:seen]]
        differences = float(np.abs(same - race.divergence).max()), abs(float(same.mean()) - race.mean)
        self.replayed.append(Replayed(seconds, len(same), *differences))
        told = f"choice {len(self.asked)}: divergence {race.mean:.5f}, plain loop {same.mean():.5f}"
        print(f"{told} in {sum(seconds.values()):.2f} s", file=sys.stderr, flush=True)


@contextlib.contextmanager
def overheard(listener: Listener) -> Iterator[None]:
    """While this is open, compensated searches ask `listener`, and stages tell it that they ran."""
    make, run = preparation._scored, stages._Run.stage

    def make_scored(inputs: SearchInputs, levels: Levels, spool: Path) -> Scored:
        began = time.perf_counter()
        scored = make(inputs, levels, spool)
        listener.begin(inputs, levels, scored, time.perf_counter() - began)
        return dataclasses.replace(scored, scoring=listener)

    def run_stage(self: Any, stage: Any, tensors: Any) -> Any:
        listener.ran(stage.index, len(tensors[self.sessions.input_names[0]]))
        return run(self, stage, tensors)

    with (
        mock.patch.object(preparation, "_scored", make_scored),
        mock.patch.object(stages._Run, "stage", run_stage),
    ):
        yield


def work(listener: Listener, result: OptimizeResult) -> dict[str, Any]:
    """Stages x rows and layers x rows, against the plain loop's."""
    inputs, choices = listener.inputs, len(listener.asked)
    all_stages, search = inputs.sessions.stages, len(inputs.given.rows["search"])
    blocks = Counter(block.layer for stage in all_stages for block in stage.blocks)
    layers = [sum(1 / blocks[block.layer] for block in stage.blocks) for stage in all_stages]
    done, plain = sum(listener.stage_rows.values()), choices * search * len(all_stages)
    done_layers = sum(layers[stage] * rows for stage, rows in listener.stage_rows.items())
    seen = sum(rows for _, rows, _ in listener.asked)
    told = result.report.compensation
    assert told is not None
    return {
        "choices_asked": choices,
        "report_agrees": (told.evaluations, told.work, told.plain_work) == (choices, done, plain),
        "distinct_choices": len({question.choice for question, _, _ in listener.asked}),
        "rows": {"search": search, **told.rows, "mean_of_a_choice": round(seen / choices, 1)},
        "stages": len(all_stages),
        "stages_x_rows": ratio(done, plain),
        "layers_x_rows": ratio(round(done_layers), choices * search * round(sum(layers))),
        "ratio_by": {
            "fewer_rows": round(choices * search / seen, 2),
            "reuse": round(seen * len(all_stages) / done, 2),
        },
        "by_question": {kind: question(listener, kind, plain // choices) for kind in ("sweep", "races")},
        "stages_x_rows_of_the_source": listener.by_question["source"],
    }


def question(listener: Listener, kind: str, plain: int) -> dict[str, float]:
    """What one kind of question took; `plain`: stages x rows of a choice in the plain loop."""
    asked = [(rows, finished) for question, rows, finished in listener.asked if kind_of(question) == kind]
    done = listener.by_question[kind]
    return {
        "choices": len(asked),
        "lost_early": sum(not finished for _, finished in asked),
        "rows_of_a_choice": round(float(np.mean([rows for rows, _ in asked] or [0])), 1),
        "stages_x_rows": done,
        "ratio": round(plain * len(asked) / max(1, done), 2),
    }


def kind_of(question: Question) -> str:
    """sweep or races."""
    return "races" if question.parts is None else "sweep"


def wall_clock(listener: Listener, run_seconds: float) -> dict[str, Any]:
    """Seconds of scoring against the plain loop's, and of the whole run."""
    choices, replayed = len(listener.asked), listener.replayed
    if not replayed:
        return {"replayed": 0, "scoring_seconds": round(listener.seconds, 2)}
    search = len(listener.inputs.given.rows["search"])
    each = np.array([sum(one.seconds.values()) for one in replayed])
    same_rows = [sum(one.seconds.values()) - (1 - one.seen / search) * one.seconds["evaluate"] for one in replayed]
    error = float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else None
    plain = float(each.mean()) * choices
    return {
        "replayed": len(replayed),
        "share_replayed": round(len(replayed) / choices, 4),
        "plain_is_extrapolated": len(replayed) < choices,
        "plain_seconds_of_a_choice": {
            "mean": round(float(each.mean()), 3),
            "standard_error": None if error is None else round(error, 3),
            **{step: round(float(np.mean([one.seconds[step] for one in replayed])), 3) for step in STEPS},
        },
        "scoring_seconds": ratio(listener.seconds, plain),
        "scoring_seconds_same_rows": ratio(listener.seconds, float(np.mean(same_rows)) * choices),
        "whole_run_seconds": ratio(run_seconds, run_seconds - listener.seconds + plain),
        "largest_difference": {
            "of_a_row": float(f"{max(one.row_difference for one in replayed):.2e}"),
            "of_a_mean": float(f"{max(one.mean_difference for one in replayed):.2e}"),
        },
    }


def ratio(search: float, plain: float) -> dict[str, float]:
    """Both sides and how many times as much the plain loop takes."""
    return {"search": round(search, 2), "plain": round(plain, 2), "ratio": round(plain / search, 2)}


def measure(a: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run, overheard."""
    goal = {"speedup": a.speedup} if a.speedup is not None else {"max_drop": a.max_drop}
    options = OptimizeOptions(
        model=a.model, task=get_task(a.task), output=folder / "out", data=a.data, search_data=a.search_data, effort=a.effort,
        threads=a.threads, seed=a.seed, **goal,
    )  # fmt: skip
    listener = Listener(a.every, a.seed)
    began = time.perf_counter()
    with overheard(listener):
        result = optimize(options, Watcher(step=lambda text: print(text, file=sys.stderr, flush=True)))
    seconds = time.perf_counter() - began - listener.aside
    return stamped({
        "command": " ".join(["python bench/whole_run.py", *sys.argv[1:]]),
        "goal": options.goal.words,
        "effort": a.effort,
        "threads": a.threads,
        **work(listener, result),
        **wall_clock(listener, seconds),
    })  # fmt: skip


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=EXAMPLE)
    parser.add_argument("--task", default="mnli")
    parser.add_argument("--data")
    parser.add_argument("--search-data")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--speedup", type=float)
    goal.add_argument("--max-drop", type=float, default=0.0)
    parser.add_argument("--effort", choices=list(EFFORTS), default="medium")
    parser.add_argument("--every", type=int, default=20, help="replay one choice of so many; 1: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(a, Path(folder))
    print(json.dumps(figures, indent=2))
    write(a.json, figures)


if __name__ == "__main__":
    main()
