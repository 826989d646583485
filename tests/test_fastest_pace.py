"""The fastest pace that is known: in one process, from one to the next, and for some hours."""

from __future__ import annotations

from pathlib import Path

import pytest

from axformer_onnx.runtime.fastest_pace import HOURS, FastestPace, make_pace, pace_file


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def test_a_faster_pace_replaces_the_known_one_and_a_slower_one_does_not(tmp_path: Path) -> None:
    fastest = FastestPace(lambda threads: tmp_path / "pace.json", Clock())
    assert [fastest(1, ms) for ms in (0.3, 0.5, 0.2, 0.4)] == [0.3, 0.3, 0.2, 0.2]


def test_the_next_process_knows_it(tmp_path: Path) -> None:
    file, clock = tmp_path / "new" / "pace.json", Clock()
    FastestPace(lambda threads: file, clock)(1, 0.2)
    assert FastestPace(lambda threads: file, clock)(1, 0.5) == 0.2
    assert [path.name for path in file.parent.iterdir()] == ["pace.json"]


def test_after_some_hours_or_on_a_clock_set_back_it_counts_no_more(tmp_path: Path) -> None:
    clock = Clock()
    fastest = FastestPace(lambda threads: tmp_path / "pace.json", clock)
    fastest(1, 0.2)
    clock.now += 3600 * HOURS - 1
    assert fastest(1, 0.5) == 0.2
    clock.now += 2
    assert fastest(1, 0.5) == 0.5
    clock.now -= 10
    assert fastest(1, 0.6) == 0.6


def test_what_cannot_be_read_or_written_costs_the_memory_between_runs_alone(tmp_path: Path) -> None:
    broken = tmp_path / "pace.json"
    broken.write_text("{")
    assert FastestPace(lambda threads: broken, Clock())(1, 0.4) == 0.4
    blocked = FastestPace(lambda threads: broken / "below" / "pace.json", Clock())
    assert [blocked(1, ms) for ms in (0.4, 0.5)] == [0.4, 0.4]


def test_machines_that_share_a_cache_folder_have_a_file_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one = pace_file(2)
    monkeypatch.setattr(
        "axformer_onnx.runtime.fastest_pace.describe_hardware", lambda: {"cpu": "other / processor", "onnxruntime": "1"}
    )
    assert one != pace_file(2) and "/" not in pace_file(2).name


def test_every_number_of_threads_has_a_pace_of_its_own(tmp_path: Path) -> None:
    fastest = FastestPace(lambda threads: tmp_path / f"{threads}.json", Clock())
    assert (fastest(1, 0.5), fastest(2, 0.9), fastest(1, 0.6), fastest(2, 0.8)) == (0.5, 0.9, 0.5, 0.8)
    assert pace_file(1) != pace_file(2)


def test_the_arithmetic_runs_on_the_threads_that_are_asked_for() -> None:
    make_pace(1)()
    make_pace(0)()
    assert make_pace(1) is make_pace(1) and make_pace(1) is not make_pace(0)
