"""Other processes give the same bits, and a lost one costs its questions alone."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from axformer_onnx.errors import RuntimeFailure
from axformer_onnx.runtime.spill import Shelf
from axformer_onnx.search.compensated import workers
from axformer_onnx.search.compensated.divergence import Divergence, Race, scorer_of
from axformer_onnx.search.compensated.levels import Choice, build_levels
from axformer_onnx.search.compensated.workers import (
    Cluster,
    InProcess,
    Pool,
    Question,
    Spool,
    read_spool,
    start_ray,
    write_spool,
)
from axformer_onnx.tasks import CLASSIFICATION

tiny_folder = pytest.importorskip("tiny_folder", reason="needs the [export] extra (torch, transformers)")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Divergence, Path]]:
    """A tiny model with its levels, and the spool of it."""
    from axformer_onnx.compensate.moments import text_samples
    from axformer_onnx.data.roles import resolve
    from axformer_onnx.runtime.sessions import make_session
    from axformer_onnx.scoring.evaluation import reading_of
    from axformer_onnx.scoring.stage_sessions import StageSessions
    from axformer_onnx.tasks.definitions import get_task
    from axformer_passes.io.files import load_model

    folder = tiny_folder.make_folder(tmp_path_factory.mktemp("tiny") / "model", search=160)
    rows = resolve(get_task("mnli"), model_dir=folder).search
    reading = reading_of(folder, make_session(folder / "model.onnx"), get_task("mnli"), rows)
    sessions = StageSessions(load_model(folder / "model.onnx"), threads=1)
    halves = [rows.take(np.arange(len(rows))[i::2]) for i in range(2)]
    parts = [(half, reading.encoder.encode(half)) for half in halves]
    weights = [np.linspace(0.5, 1.5, len(half)) for half in halves]
    with Shelf(2**20) as shelf:
        samples = text_samples(reading.encoder.encode(rows), sessions.input_names)
        levels = build_levels(sessions, samples, shelf)
        scorers = [scorer_of(sessions, *part, reading, 2**20) for part in parts]
        divergence = Divergence(sessions, levels, scorers, kind=CLASSIFICATION, weights=weights)
        spool = tmp_path_factory.mktemp("spool")
        write_spool(spool, divergence, reading, parts)
        yield divergence, spool


def questions_of(divergence: Divergence, count: int = 12) -> list[Question]:
    rng = np.random.default_rng(5)
    units = divergence.levels.units
    choices = [Choice(tuple(int(rng.integers(0, len(u.rungs))) for u in units)) for _ in range(count)]
    return [Question(choice, 1 if i % 3 else None) for i, choice in enumerate(choices)]


def same(one: list[Race], two: list[Race]) -> bool:
    return all((a.divergence == b.divergence).all() and a.finished == b.finished for a, b in zip(one, two, strict=True))


def test_spool_gives_back_the_same_bits(case: tuple[Divergence, Path]) -> None:
    divergence, spool = case
    questions = questions_of(divergence, 5)
    assert same(InProcess(divergence)(questions), InProcess(read_spool(spool, "cpu"))(questions))


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [2, 4])
def test_any_number_of_processes_gives_the_same_bits_and_their_work_is_counted(
    case: tuple[Divergence, Path], jobs: int
) -> None:
    divergence, spool = case
    questions = questions_of(divergence)
    expected, before = InProcess(divergence)(questions), divergence.stages_run
    assert same(Pool(divergence, spool, jobs=jobs, backend="local")(questions), expected)
    assert divergence.stages_run > before


_TRUE_REMOTE = workers._remote


def _dies_once(spool: Spool, question: Question) -> Any:
    """A worker that is killed, as by the system, at its first question."""
    mark = Path(spool.folder) / "died"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return _TRUE_REMOTE(spool, question)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
    return None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # loky tells that a worker stopped
def test_killed_worker_costs_its_questions_alone(
    case: tuple[Divergence, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    divergence, spool = case
    questions = questions_of(divergence)
    expected = InProcess(divergence)(questions)
    monkeypatch.setattr(workers, "_remote", _dies_once)
    pool = Pool(divergence, spool, jobs=2, backend="local")
    assert same(pool(questions), expected)
    assert pool.lost == 1


def test_where_workers_keep_dying_this_process_does_the_work(
    case: tuple[Divergence, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    divergence, spool = case

    class TerminatedWorkerError(RuntimeError):
        pass

    def dead(self: Pool, questions: Any) -> Iterator[Any]:
        raise TerminatedWorkerError
        yield

    monkeypatch.setattr(Pool, "_run", dead)
    pool, questions = Pool(divergence, spool, jobs=2, backend="local"), questions_of(divergence, 4)
    assert same(pool(questions), InProcess(divergence)(questions)) and pool.lost == workers.RETRIES


def test_error_of_a_question_is_no_lost_worker(case: tuple[Divergence, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    divergence, spool = case

    def wrong(self: Pool, questions: Any) -> Iterator[Any]:
        raise ValueError("a bug")
        yield

    monkeypatch.setattr(Pool, "_run", wrong)
    with pytest.raises(ValueError, match="a bug"):
        Pool(divergence, spool, jobs=2, backend="local")(questions_of(divergence, 2))


def test_without_ray_the_install_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(RuntimeFailure, match=r"pip install 'axformer-onnx\[ray\]'"):
        start_ray(2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_local_ray_cluster_gives_the_same_bits(case: tuple[Divergence, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="needs the [ray] extra")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    divergence, spool = case
    questions = questions_of(divergence)
    cluster = start_ray(2)
    assert (cluster.jobs, cluster.ours, cluster.local) == (2, True, True) and cluster.seconds > 0
    try:
        pool = Pool(divergence, spool, jobs=2, backend="ray")
        pool._spool = dataclasses.replace(pool._spool, folder="/nowhere")  # as on a machine that lacks it
        assert same(pool(questions), InProcess(divergence)(questions)) and pool.seconds > 0
        again = start_ray(2)
        again.close()
        assert ray.is_initialized() and not again.ours, "who finds it running leaves it running"
    finally:
        cluster.close()
    assert not ray.is_initialized()


@pytest.mark.parametrize(("start", "work", "pays"), [(4.0, 3.0, False), (4.0, 5.0, True), (4.0, 0.0, True)])
def test_a_start_that_took_longer_than_the_work_is_said(start: float, work: float, pays: bool) -> None:
    said = Cluster(2, start, ours=True, local=True).note(work)
    assert "took 4.0 s to start" in said and ("--jobs without Ray is faster" in said) != pays
