"""What all tests share: one thread, quiet libraries, the zoo of tiny models, the sample of the matrix (sampling)."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import sampling

if TYPE_CHECKING:
    from zoo import ZooModel

# Before anything imports torch or numpy's BLAS: test processes share the cores, results do not vary.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--whole-matrix`."""
    parser.addoption("--whole-matrix", action="store_true", help="all cases of tests marked matrix or sampled")


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers; settle the seed before test processes start, so that all draw the same sample."""
    config.addinivalue_line("markers", "slow: takes more than about ten seconds on one core")
    config.addinivalue_line(
        "markers", "matrix(exporter): a case for each of many files of the zoo, of which a sample runs"
    )
    config.addinivalue_line("markers", "sampled(count): has many cases, of which so many run")
    os.environ[sampling.SEED] = sampling.seed_of_this_run()


def pytest_report_header(config: pytest.Config) -> str:
    """Which part of the matrix runs."""
    if _is_whole(config):
        return "matrix: the whole"
    seed = os.environ[sampling.SEED]
    return f"matrix: the sample of {sampling.SEED}={seed}; --whole-matrix (make test-all) runs all"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the sample does not hold."""
    if not _is_whole(config):
        items[:], left_out = sampling.sample(items, os.environ[sampling.SEED])
        config.hook.pytest_deselected(items=left_out)


def _is_whole(config: pytest.Config) -> bool:
    """Asked for, or tests are named one by one."""
    named = any("::" in argument for argument in config.args)
    return bool(config.option.whole_matrix or config.option.keyword or named)


@pytest.fixture(scope="session")
def zoo() -> Callable[..., ZooModel]:
    """`zoo("bert", "dynamo-23")`: see tests/zoo.py. Tests that import zoo directly need no fixture."""
    build: Any = pytest.importorskip("zoo", reason="the zoo needs the [export] extra (torch, transformers)").build
    return build  # type: ignore[no-any-return]


@pytest.fixture(scope="session", autouse=True)
def short_latency_measurements() -> Iterator[None]:
    """At most 30 rounds of a shape: a tiny model would run 300 of them in the time that a real one takes for these. Nobody waits
    for the machine that the tests run on to be free."""
    from axformer_onnx.runtime import latency, rounds
    from axformer_onnx.runtime.foreign_load import Counters, RunDelay

    deaf = rounds.Instruments(
        counters=lambda: Counters(time.monotonic()),
        delay=lambda: RunDelay(None),
        pace=lambda threads: lambda: None,
        fastest=lambda threads, ms: math.inf,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "MOST_ROUNDS", 30)
        patch.setattr(latency, "INSTRUMENTS", deaf)
        patch.setattr(latency, "MOST_WAIT", 0.0)
        yield


@pytest.fixture(scope="module")
def latency_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Latency tables are of few rounds and stay out of the user's cache; made once, so that all runs of a file see the same."""
    from axformer_onnx.scoring import plan_clock
    from axformer_onnx.search.compensated import latency_table

    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency_table, "_cache_folder", lambda: folder)
        patch.setattr(plan_clock, "ROUNDS", 5)
        patch.setattr(plan_clock, "PASSES", 1)
        patch.setattr(latency_table, "TRY_CPU_TIME", False)
        yield


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """call("inspect", path) -> (exit code, stdout, stderr), in this process."""

    from axformer_onnx import cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["axformer-onnx", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return run
