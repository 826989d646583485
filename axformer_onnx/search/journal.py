"""journal.jsonl: every candidate that a search evaluated, one line an answer, so that a killed run can go on.

    {"format": "axformer-journal/2", "source_sha256": ..., "data": ..., "options": ..., "versions": ...}
    {"trial": 0, "stage": 0, "element": "layer 5 head 1", "plan": "<digest>", "loss": ..., "accepted": ...}
    {"select": 3, "plan": "<digest>", "score": 84.2, "score_noise": 0.4, "rise": -0.01, "noise": 0.02}
    {"fact": "sweep 3 part 0", "value": ...}       what a compensated search measured, by a name that says what

Lines are only appended, each by one write followed by fsync. A run that finds its own header answers its first
trials from the file; the search is deterministic, so it asks the same questions and ends with the same plan as an
unbroken run. A last line without its newline was torn by the kill and is dropped. A different header is another run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Discriminator, Tag, TypeAdapter, ValidationError

from axformer_onnx.errors import RuntimeFailure, UsageError
from axformer_onnx.records import StageScore, Trial, plan_digest
from axformer_passes.plan import Plan

FORMAT = "axformer-journal/2"


class HeaderLine(BaseModel):
    """The first line: which run this is, in fields that the run names itself."""

    model_config = ConfigDict(extra="allow")

    format: str


class TrialLine(BaseModel):
    """One trial of a walk; loss and best are None where they are no numbers."""

    trial: int
    stage: int
    element: str
    plan: str
    loss: float | None
    best: float | None
    accepted: bool
    reason: str
    seconds: float
    details: dict[str, Any]


class StageLine(BaseModel):
    """One stage of a walk on the select rows."""

    select: int
    plan: str
    score: float
    score_noise: float
    rise: float | None
    noise: float | None


class FactLine(BaseModel):
    """What a compensated search measured."""

    fact: str
    value: Any


_KINDS = ("format", "trial", "select", "fact")
"""The key that says which line it is."""
Line = HeaderLine | TrialLine | StageLine | FactLine
_LINE: TypeAdapter[Line] = TypeAdapter(
    Annotated[
        Annotated[HeaderLine, Tag("format")]
        | Annotated[TrialLine, Tag("trial")]
        | Annotated[StageLine, Tag("select")]
        | Annotated[FactLine, Tag("fact")],
        Discriminator(lambda line: next((key for key in _KINDS if isinstance(line, dict) and key in line), None)),
    ]
)


class Journal:
    """An open journal, a `Memory` for `walk`; a context manager. The file is locked while it is open."""

    def __init__(self, path: Path, descriptor: int, lock: FileLock, lines: Sequence[Line]) -> None:
        """Wrap an open file; use `open_journal`."""
        self._path, self._descriptor, self._lock = path, descriptor, lock
        self._trials = [line for line in lines if isinstance(line, TrialLine)]
        self._stages = {(line.select, line.plan): line for line in lines if isinstance(line, StageLine)}
        self._facts = {line.fact: line.value for line in lines if isinstance(line, FactLine)}
        self.resumed = len(self._trials) + len(self._facts)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        _release(self._lock)

    def recall(self, index: int, element: str, plan: Plan) -> Trial | None:
        """The answer to trial `index`, or None where the journal ends.

        Raises: UsageError if the journal holds another question there (a changed program or an edited file).
        """
        if index >= len(self._trials):
            return None
        line = self._trials[index]
        if (line.trial, line.element, line.plan) != (index, element, plan_digest(plan)):
            raise UsageError(
                f"{self._path}: trial {index} is {line.element!r}, but this search asks {element!r}; the "
                "journal was written by another version. Use another -o, or --overwrite"
            )
        return Trial(
            index=index,
            stage=line.stage,
            element=element,
            plan=plan,
            loss=_number(line.loss),
            best=_number(line.best),
            accepted=line.accepted,
            reason=line.reason,
            seconds=line.seconds,
            details=line.details,
        )

    def remember(self, trial: Trial) -> None:
        """Append a trial."""
        self._append(
            TrialLine(
                trial=trial.index,
                stage=trial.stage,
                element=trial.element,
                plan=plan_digest(trial.plan),
                loss=_finite(trial.loss),
                best=_finite(trial.best),
                accepted=trial.accepted,
                reason=trial.reason,
                seconds=round(trial.seconds, 3),
                details=dict(trial.details),
            )
        )

    def recall_stage(self, stage: int, plan: Plan) -> StageScore | None:
        """This stage on the select rows, or None."""
        line = self._stages.get((stage, plan_digest(plan)))
        if line is None:
            return None
        return StageScore(line.score, _number(line.rise), _number(line.noise), line.score_noise)

    def remember_stage(self, stage: int, plan: Plan, score: StageScore) -> None:
        """Append a stage on the select rows."""
        self._append(
            StageLine(
                select=stage,
                plan=plan_digest(plan),
                score=score.score,
                score_noise=score.score_noise,
                rise=_finite(score.rise),
                noise=_finite(score.noise),
            )
        )

    def fact(self, name: str, measure: Callable[[], Any]) -> Any:
        """What an earlier run measured under this name, else what `measure` gives now (JSON values), written before it is used."""
        if name not in self._facts:
            self._facts[name] = json.loads(json.dumps(measure(), allow_nan=False))
            self._append(FactLine(fact=name, value=self._facts[name]))
        return self._facts[name]

    def _append(self, line: Line) -> None:
        content = (json.dumps(line.model_dump(), allow_nan=False) + "\n").encode()
        try:
            os.write(self._descriptor, content)
            os.fsync(self._descriptor)
        except OSError as error:
            raise RuntimeFailure(f"{self._path}: cannot write the journal: {error.strerror}") from None


def open_journal(path: Path, header: Mapping[str, Any], *, overwrite: bool = False) -> Journal:
    """Open the journal at `path` for a run described by `header` (JSON values): new, or to be continued.

    Raises: UsageError if the file belongs to another run (unless `overwrite`) or another process is writing
    it.
    """
    wanted = HeaderLine.model_validate(json.loads(json.dumps({"format": FORMAT, **header})))
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
    except OSError as error:
        raise RuntimeFailure(f"{path}: cannot open the journal: {error.strerror}") from None
    lock = FileLock(path.with_name(f"{path.name}.lock"), blocking=False, thread_local=False)
    try:
        _acquire(lock, path)
        if overwrite:
            os.ftruncate(descriptor, 0)
        lines = _read_whole_lines(descriptor, path)
        journal = Journal(path, descriptor, lock, lines[1:])
        if lines:
            _check_header(path, lines[0].model_dump(), wanted.model_dump())
        else:
            journal._append(wanted)
    except BaseException:
        os.close(descriptor)
        _release(lock)
        raise
    return journal


def _acquire(lock: FileLock, path: Path) -> None:
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(f"{path}: another run is writing this folder. Wait for it, or use another -o") from None
    except OSError as error:
        raise RuntimeFailure(f"{lock.lock_file}: cannot be locked: {error.strerror or error}") from None


def _release(lock: FileLock) -> None:
    """Let go of the lock if it is held; its file goes with it, where the system lets an open file go."""
    if lock.is_locked:
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def _read_whole_lines(descriptor: int, path: Path) -> list[Line]:
    """Every line that ends in a newline; what follows the last newline is cut off the file."""
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(0)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    lines = []
    for number, text in enumerate(whole.splitlines(), start=1):
        try:
            lines.append(_LINE.validate_python(json.loads(text)))
        except (ValueError, ValidationError):
            raise UsageError(f"{path}: line {number} is not a journal line. Use another -o, or --overwrite") from None
    if len(whole) != len(data):
        os.ftruncate(descriptor, len(whole))
    return lines


def _check_header(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [name for name in _flat(wanted) | _flat(found) if _flat(found).get(name) != _flat(wanted).get(name)]
    if differing:
        name = min(differing)
        raise UsageError(
            f"{path}: the output folder holds another run: {name} was {_flat(found).get(name)!r}, now "
            f"{_flat(wanted).get(name)!r}. Use another -o, or --overwrite"
        )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            flat |= _flat(entry, f"{prefix}{key}.")
        else:
            flat[prefix + key] = entry
    return flat


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
