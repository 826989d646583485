"""MLPerf's load generator over sessions of ONNX Runtime: a clock, a schedule and percentiles that are not this project's.

Nothing of this project is imported here, and no time is taken in Python: LoadGen (MLCommons, C++) asks, waits, and writes what it
found into its log, which is read.

    SingleStream   one row at a time, the next when the last has been answered; the median latency
    Offline        all rows at once, which the session runs in batches; rows a second
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlperf_loadgen
import numpy as np
import onnxruntime

LIBRARY = 1024
"""Samples that LoadGen believes to draw from; all are the same tokens, of one length."""
PREFIX = ":::MLLOG "


def measured(
    graphs: Mapping[str, str], length: int, batch: int, vocabulary: int, threads: int | None, seconds: float, seed: int
) -> dict[str, dict[str, float]]:
    """{scenario: {graph: milliseconds of a run}}: of one row, the median; of `batch` rows, the mean. Graphs in the order given."""
    systems = {name: System(path, length, batch, vocabulary, threads, seed) for name, path in graphs.items()}
    for system in systems.values():
        system.warm_up()
    single = {name: asked(system, "SingleStream", seconds) for name, system in systems.items()}
    offline = {}
    for name, system in systems.items():
        guess = 1e9 / float(
            single[name]["result_50.00_percentile_latency_ns"]
        )  # a first run says how many rows fill the time
        rate = float(asked(system, "Offline", seconds / 4, guess)["result_samples_per_second"])
        offline[name] = asked(system, "Offline", seconds, rate)
    return {
        "SingleStream": {name: float(x["result_50.00_percentile_latency_ns"]) / 1e6 for name, x in single.items()},
        "Offline": {name: 1e3 * batch / float(x["result_samples_per_second"]) for name, x in offline.items()},
    }


class System:
    """A graph as LoadGen's system under test: every query is answered in batches, the last of them with what is left."""

    def __init__(self, path: str, length: int, batch: int, vocabulary: int, threads: int | None, seed: int) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.batch, self.queries = batch, list[int]()
        ids = np.random.default_rng(seed).integers(min(5, vocabulary - 1), vocabulary, (batch, length))
        made = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        self.feeds = {one.name: made[one.name].astype(np.int64) for one in self.session.get_inputs()}

    def issue(self, samples: Sequence[Any]) -> None:
        """Run them, and say so batch by batch."""
        self.queries.append(len(samples))
        for start in range(0, len(samples), self.batch):
            part = samples[start : start + self.batch]
            self.session.run(None, {name: rows[: len(part)] for name, rows in self.feeds.items()})
            mlperf_loadgen.QuerySamplesComplete([mlperf_loadgen.QuerySampleResponse(one.id, 0, 0) for one in part])

    def warm_up(self, runs: int = 5) -> None:
        """At both sizes."""
        for _ in range(runs):
            self.session.run(None, self.feeds)
            self.session.run(None, {name: rows[:1] for name, rows in self.feeds.items()})


def asked(system: System, scenario: str, seconds: float, rate: float = 1000.0) -> dict[str, Any]:
    """One test of LoadGen: {key: value} of what its log has. Raises: RuntimeError where LoadGen calls the test invalid."""
    settings = mlperf_loadgen.TestSettings()
    settings.scenario = getattr(mlperf_loadgen.TestScenario, scenario)
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = round(1000 * seconds), 64
    settings.offline_expected_qps = rate
    with tempfile.TemporaryDirectory() as folder:
        _run(system, settings, folder)
        found = results((Path(folder) / "mlperf_log_detail.txt").read_text(encoding="utf-8"))
    if scenario == "SingleStream" and found["result_validity"] != "VALID":
        raise RuntimeError(f"LoadGen calls its {scenario} test {found['result_validity']}; give it more --seconds")
    return found


def _run(system: System, settings: Any, folder: str) -> None:
    log = mlperf_loadgen.LogSettings()
    log.enable_trace, log.log_output.outdir, log.log_output.copy_summary_to_stdout = False, folder, False
    sut = mlperf_loadgen.ConstructSUT(system.issue, lambda: None)
    library = mlperf_loadgen.ConstructQSL(LIBRARY, LIBRARY, lambda samples: None, lambda samples: None)
    try:
        mlperf_loadgen.StartTestWithLogSettings(sut, library, settings, log)
    finally:
        mlperf_loadgen.DestroyQSL(library)
        mlperf_loadgen.DestroySUT(sut)


def results(log: str) -> dict[str, Any]:
    """{key: value} of the lines of LoadGen's detail log that state results."""
    lines = (json.loads(line.removeprefix(PREFIX)) for line in log.splitlines() if line.startswith(PREFIX))
    return {one["key"]: one["value"] for one in lines if one["key"].startswith("result_")}
