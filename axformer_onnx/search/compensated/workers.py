"""Score choices in other processes, on this machine or on a Ray cluster.

    --jobs 1               in this process, batches side by side on its threads
    --jobs N               N local processes (joblib's loky)
    --backend ray          the machines of the cluster that RAY_ADDRESS names, else a local one that ends with the search

What a worker needs is written once to a *spool* folder: the model that is searched on, weights of all rungs, rows. A worker
loads it at its first question; one on another machine gets it from Ray's object store. Batches run on one thread each in every
case, so the numbers are the same bits however many processes there are. An answer is a pure function of its question: where a
worker is lost, its questions and those not yet begun are given out again, in the end to this process.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import pickle
import tarfile
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from axformer_onnx.errors import RuntimeFailure
from axformer_onnx.inputs import Backend
from axformer_onnx.records import FloatArray
from axformer_onnx.search.compensated.divergence import Divergence, Race
from axformer_onnx.search.compensated.levels import Choice, Levels, round_stages

if TYPE_CHECKING:
    from axformer_onnx.data import Encoded, Rows
    from axformer_onnx.scoring import Reading
    from axformer_onnx.search.compensated.levels import Unit

logger = logging.getLogger(__name__)
RETRIES = 3
"""Times that lost questions are given to a new pool before this process does them itself."""
_MODEL, _SPOOL = "model.onnx", "spool.pickle"


@dataclasses.dataclass(frozen=True)
class Question:
    """Mean divergence over the first `parts` parts (a sweep), or a race against `incumbent`."""

    choice: Choice
    parts: int | None = None
    incumbent: FloatArray | None = None


class Scoring(Protocol):
    """Answers questions, in order."""

    def __call__(self, questions: Sequence[Question]) -> list[Race]:
        """A race for each question; of a sweep the rows of its parts."""


def answer(divergence: Divergence, question: Question) -> Race:
    """One question."""
    if question.parts is None:
        return divergence.race(question.choice, question.incumbent)
    return Race(np.concatenate([divergence.of(question.choice, i) for i in range(question.parts)]), True)


@dataclasses.dataclass(frozen=True)
class InProcess:
    """Answers here."""

    divergence: Divergence

    def __call__(self, questions: Sequence[Question]) -> list[Race]:
        """One after the other."""
        return [answer(self.divergence, question) for question in questions]


@dataclasses.dataclass(frozen=True)
class Spool:
    """What workers load. `remote`: a reference to the packed folder in Ray's object store, for other machines."""

    folder: str
    key: str
    provider: str
    remote: Any = None


class Pool:
    """Answers in other processes; `divergence` does here what workers could not.

    lost       times that a worker was lost
    seconds    that the questions took
    """

    def __init__(self, divergence: Divergence, folder: Path, *, jobs: int, backend: Backend) -> None:
        self._divergence, self._jobs, self._backend = divergence, jobs, backend
        self.lost, self.seconds = 0, 0.0
        provider = divergence.sessions.provider
        spool = Spool(str(folder), uuid.uuid4().hex, provider)
        self._spool = dataclasses.replace(spool, remote=_stored(folder)) if backend == "ray" else spool

    def __call__(self, questions: Sequence[Question]) -> list[Race]:
        """Spread over the workers; what is lost is given out again."""
        found, began = dict[int, Race](), time.monotonic()
        for _ in range(RETRIES):
            left = [i for i in range(len(questions)) if i not in found]
            if not left:
                break
            try:
                for i, (race, work) in zip(left, self._run([questions[i] for i in left]), strict=True):
                    found[i] = race
                    self._divergence.stages_elsewhere += work
            except Exception as error:
                if not _is_lost_worker(error):
                    raise
                self.lost += 1
                logger.warning("a worker was lost (%s); its questions are given out again", type(error).__name__)
        races = [found[i] if i in found else answer(self._divergence, questions[i]) for i in range(len(questions))]
        self.seconds += time.monotonic() - began
        return races

    def _run(self, questions: Sequence[Question]) -> Iterator[tuple[Race, int]]:
        if self._backend == "ray":
            yield from on_ray(self._spool, questions, self._jobs)
            return
        import joblib

        with joblib.parallel_config(backend="loky", n_jobs=self._jobs):
            parallel = joblib.Parallel(return_as="generator", batch_size=1)
            yield from parallel(joblib.delayed(_remote)(self._spool, question) for question in questions)


def _remote(spool: Spool, question: Question) -> tuple[Race, int]:
    """In a worker: (the answer, stages x rows that it took)."""
    held = spool.key in _HELD  # what loading it took counts, too
    divergence = _loaded(spool)
    before = divergence.stages_run if held else 0
    race = answer(divergence, question)
    return race, divergence.stages_run - before


_HELD: dict[str, Divergence] = {}


def _loaded(spool: Spool) -> Divergence:
    """The spool's model and rows, loaded once in a process."""
    if spool.key not in _HELD:
        _HELD.clear()
        folder = Path(spool.folder)
        if spool.remote is not None and not (folder / _SPOOL).is_file():
            folder = _unpacked(spool)
        _HELD[spool.key] = read_spool(folder, spool.provider)
    return _HELD[spool.key]


def write_spool(folder: Path, divergence: Divergence, reading: Reading, rows: Sequence[tuple[Rows, Encoded]]) -> None:
    """Write what a worker needs: model, units with the weights of all rungs, rows and their tokens by part."""
    from axformer_passes.io import save_model
    from axformer_passes.probe import recipe_of

    folder.mkdir(parents=True, exist_ok=True)
    save_model(divergence.sessions.model, folder / _MODEL)
    units = divergence.levels.units
    for number, unit in enumerate(units):
        pairs = {rung: divergence.levels.weights(number, rung) for rung in range(1, unit.height)}
        arrays = {f"{part}{rung}": pair[i] for rung, pair in pairs.items() for i, part in enumerate(("weight", "bias"))}
        np.savez(folder / f"unit{number}.npz", **arrays)  # type: ignore[arg-type]
    content = {
        "units": units, "int8": divergence.levels.int8, "reading": reading, "rows": list(rows), "weights": divergence.weights,
        "recipe": recipe_of(divergence.sessions.model),
    }  # fmt: skip
    (folder / _SPOOL).write_bytes(pickle.dumps(content))


def read_spool(folder: Path, provider: str) -> Divergence:
    """Inverse of `write_spool`."""
    from axformer_onnx.scoring import StageSessions
    from axformer_onnx.search.compensated.divergence import scorer_of
    from axformer_passes.io import load_model
    from axformer_passes.probe import describe
    from axformer_passes.stages import writable

    content = pickle.loads((folder / _SPOOL).read_bytes())
    model = load_model(folder / _MODEL)
    describe(model, content["recipe"])
    sessions = StageSessions(model, provider=provider, threads=1)
    units: Sequence[Unit] = content["units"]
    places = {(u.kind, u.layers[0]): writable(sessions.staged.examined, u.layers[0], u.kind) for u in units}
    assert all(place is not None for place in places.values())
    levels = Levels(units, places, _Npz(folder), content["int8"])  # type: ignore[arg-type]
    if levels.int8 is not None:
        round_stages(sessions, levels)
    parts = [scorer_of(sessions, rows, encoded, content["reading"], 2**28) for rows, encoded in content["rows"]]
    return Divergence(sessions, levels, parts, kind=content["reading"].task.kind, weights=content["weights"])


class _Npz:
    """The weights of a spool, as `Levels` asks a shelf for them."""

    def __init__(self, folder: Path) -> None:
        self._files = {int(p.stem[4:]): np.load(p) for p in folder.glob("unit*.npz")}

    def get(self, number: int, names: Sequence[str]) -> dict[str, Any]:
        unit, rung = divmod(number, 1000)
        return {name: self._files[unit][f"{name}{rung}"] for name in names}


# -- Ray --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A Ray cluster.

    jobs       processes that it has room for, at most as many as were asked for
    seconds    that it took to start or to join
    ours       it is ours to end; `local`: and runs on this machine alone
    """

    jobs: int
    seconds: float
    ours: bool
    local: bool

    def note(self, worked: float) -> str:
        """How long it took to start, and whether that paid: what it answered took `worked` seconds."""
        kind = f"a local cluster of {self.jobs} processes" if self.local else f"a cluster, {self.jobs} processes of it"
        said = f"Ray ({kind}) took {self.seconds:.1f} s to start and {worked:.1f} s to answer"
        if not 0 < worked < self.seconds:
            return said
        return f"{said}: the start took longer than the work, so for this model --jobs without Ray is faster"

    def close(self) -> None:
        """End it if it is ours; workers end by themselves first, so that none is reported as lost."""
        import ray

        if self.ours and ray.is_initialized():
            ray.shutdown()


def start_ray(jobs: int) -> Cluster:
    """Join the cluster that RAY_ADDRESS names, else start a local one for so many processes. Raises: RuntimeFailure."""
    try:
        import ray
    except ImportError:
        raise RuntimeFailure("--backend ray needs the extra: pip install 'axformer-onnx[ray]'") from None
    began, ours, address = time.monotonic(), not ray.is_initialized(), os.environ.get("RAY_ADDRESS")
    if ours:
        try:
            ray.init(
                address=address, num_cpus=None if address else jobs, log_to_driver=False, logging_level=logging.ERROR,
                include_dashboard=False,
            )  # fmt: skip
        except Exception as error:  # Ray's own kinds, or the network's
            where = f"the cluster at RAY_ADDRESS={address}" if address else "a local Ray cluster"
            raise RuntimeFailure(f"{where} cannot be reached: {' '.join(str(error).split())[:200]}") from None
    room = int(ray.cluster_resources().get("CPU", 1))
    if room < jobs:
        logger.warning("the Ray cluster has %d CPUs: --jobs %d becomes %d", room, jobs, max(1, room))
    return Cluster(max(1, min(jobs, room)), time.monotonic() - began, ours, not address)


def on_ray(spool: Spool, questions: Sequence[Question], jobs: int) -> Iterator[tuple[Race, int]]:
    """Answers in order, at most `jobs` questions at a time.

    Tasks, not actors: Ray keeps the processes of tasks for the next ones, which find the spool loaded, and lets them end when they
    are idle. (A pool of actors is killed after every batch, which Ray reports as a worker that died.)
    """
    import ray

    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_remote)
    given, running = list[Any](), list[Any]()
    for question in questions:
        if len(running) >= jobs:
            _, running = ray.wait(running, num_returns=1)
        given.append(task.remote(spool, question))
        running.append(given[-1])
    yield from (ray.get(one) for one in given)


def _stored(folder: Path) -> Any:
    import ray

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(folder, arcname=".")
    return [ray.put(packed.getvalue())]


def _unpacked(spool: Spool) -> Path:
    import ray

    folder = Path(tempfile.mkdtemp(prefix="axformer-spool-"))
    with tarfile.open(fileobj=io.BytesIO(ray.get(spool.remote[0]))) as archive:
        archive.extractall(folder, filter="data")
    return folder


def _is_lost_worker(error: Exception) -> bool:
    """Is it the death of a process, not an error of its own?"""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(
        names & {"TerminatedWorkerError", "BrokenProcessPool", "RayActorError", "WorkerCrashedError", "RaySystemError"}
    )


__all__ = [
    "Backend",
    "Cluster",
    "InProcess",
    "Pool",
    "Question",
    "Scoring",
    "Spool",
    "answer",
    "on_ray",
    "read_spool",
    "start_ray",
    "write_spool",
]
