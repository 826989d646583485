"""What the system tells of others, from files and counters that are made up here."""

from __future__ import annotations

from pathlib import Path

import pytest

from axformer_onnx.runtime.foreign_load import Counters, Load, RunDelay, load_between, read_counters


def tree(root: Path, files: dict[str, str]) -> Path:
    """These files under `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_load_is_what_the_cores_did_beside_this_process() -> None:
    before = Counters(100.0, busy=50.0, own=10.0, stolen=1.0, waiting=3.0, throttled=0.5)
    after = Counters(104.0, busy=57.0, own=13.0, stolen=1.4, waiting=5.0, throttled=0.7)
    load = load_between(before, after, cores=2)
    assert load.others == pytest.approx(1.0)
    assert load.stolen == pytest.approx(0.1)
    assert load.waiting == pytest.approx(0.5)
    assert load.throttled == pytest.approx(0.05)
    assert (
        load.words
        == "other processes kept 1.0 of 2 cores busy, the container was stopped 5 % of the time (its CPU quota)"
    )


def test_what_the_system_does_not_tell_stays_unknown() -> None:
    load = load_between(Counters(1.0), Counters(2.0), cores=4)
    assert (load.others, load.stolen, load.waiting, load.throttled) == (None, None, None, None)
    assert load.words == "" and not load.crowds(4)


@pytest.mark.parametrize(
    ("load", "threads", "crowded"),
    [
        (Load(2, others=0.1), 2, False),
        (Load(2, others=0.5), 2, True),
        (Load(2, others=0.9), 1, False),
        (Load(2, others=1.9), 1, True),
        (Load(2, others=0.1), 8, False),
        (Load(2, others=0.5), 8, True),
        (Load(16, others=3.0), 8, False),
        (Load(16, others=9.0), 8, True),
        (Load(16, others=3.0, stolen=6.0), 8, True),
        (Load(2, others=0.0, throttled=0.2), 1, True),
    ],
)
def test_others_crowd_where_they_leave_less_room_than_the_threads_need(load: Load, threads: int, crowded: bool) -> None:
    assert load.crowds(threads) is crowded


@pytest.mark.parametrize(
    ("files", "seconds"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.stat": "usage_usec 9\nthrottled_usec 2500000\n"}, 2.5),
        (
            {
                "proc/self/cgroup": "0::/pod/a\n",
                "sys/fs/cgroup/cpu.stat": "throttled_usec 1\n",
                "sys/fs/cgroup/pod/a/cpu.stat": "nr_throttled 1\nthrottled_usec 4000000\n",
            },
            4.0,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n2:cpu,cpuacct:/x\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.stat": "nr_throttled 3\nthrottled_time 7000000000\n",
            },
            7.0,
        ),
        ({"proc/self/cgroup": "1:cpu:/host/path\n", "sys/fs/cgroup/cpu/cpu.stat": "throttled_time 3000000000\n"}, 3.0),
        ({"proc/self/cgroup": "4:memory:/\n"}, None),
        ({}, None),
    ],
)
def test_a_quota_is_read_of_both_versions_of_control_groups(
    tmp_path: Path, files: dict[str, str], seconds: float | None
) -> None:
    assert read_counters(tree(tmp_path, files)).throttled == seconds


def test_pressure_is_read_where_linux_tells_it(tmp_path: Path) -> None:
    text = "some avg10=1.00 avg60=2.00 avg300=3.00 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
    assert read_counters(tree(tmp_path, {"proc/pressure/cpu": text})).waiting == 1.5
    assert read_counters(tmp_path / "nothing").waiting is None


def test_waiting_for_cores_is_the_sum_over_threads(tmp_path: Path) -> None:
    tasks = tree(tmp_path, {"1/schedstat": "5000000 2000000 7\n", "2/schedstat": "9 500000 1\n"})
    delay = RunDelay(tasks)
    assert delay.known and delay() == 2.5
    tree(tmp_path, {"2/schedstat": "9 1500000 1\n"})
    assert delay() == 3.5
    delay.close()
    other = RunDelay(tmp_path / "elsewhere")
    assert not other.known and other() == 0
