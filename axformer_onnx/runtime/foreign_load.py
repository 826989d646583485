"""What else a machine does while something is timed on it, as far as the system tells.

Other processes by the busy time of the cores that this one may use (psutil: every system); waiting tasks by pressure stall
information (Linux); a container's quota by its control group, version 1 or 2; time that a hypervisor took. What a neighbour on the
same silicon does to a virtual machine is told by nobody: see `undisturbed`.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

BUSY = 0.15
"""Cores. Below that, others are the system's own chores."""
_ROOT = Path("/")


@dataclasses.dataclass(frozen=True)
class Counters:
    """Totals at one moment, all in seconds; None where the system does not tell.

    now         of a clock that never goes back
    busy        core-seconds that the usable cores were not idle
    own         core-seconds of this process
    stolen      core-seconds that the hypervisor took of them
    waiting     how long some task of the machine had to wait for a core
    throttled   how long this process's control group was stopped for having used up its quota
    """

    now: float
    busy: float | None = None
    own: float = 0.0
    stolen: float | None = None
    waiting: float | None = None
    throttled: float | None = None


@dataclasses.dataclass(frozen=True)
class Load:
    """What others did between two moments; None where the system does not tell.

    cores       that this process may use
    others      how many of these other processes kept busy, in the mean
    stolen      how many the hypervisor took
    waiting     share of the time that some task, of this process or another, waited for a core
    throttled   share of the time that the container was stopped
    """

    cores: int
    others: float | None = None
    stolen: float | None = None
    waiting: float | None = None
    throttled: float | None = None

    @property
    def words(self) -> str:
        """What there was of it, for example "other processes kept 1.9 of 2 cores busy"; empty where there was nothing."""
        said = []
        if self.others is not None and self.others >= BUSY:
            said.append(f"other processes kept {self.others:.1f} of {self.cores} cores busy")
        if self.stolen is not None and self.stolen >= BUSY:
            said.append(f"the hypervisor took {self.stolen:.1f} of {self.cores} cores")
        if self.throttled is not None and self.throttled >= 0.01:
            said.append(f"the container was stopped {100 * self.throttled:.0f} % of the time (its CPU quota)")
        return ", ".join(said)

    def crowds(self, threads: int, spare: float = 0.0) -> bool:
        """Do others leave less room than `threads` threads need, by more than `spare` cores?"""
        room = max(self.cores - threads, 0) + max(BUSY, spare)
        taken = (self.others or 0.0) + (self.stolen or 0.0)
        return taken > room or (self.throttled or 0.0) >= 0.01


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_counters(root: Path = _ROOT, clock: Callable[[], float] = time.monotonic) -> Counters:
    """The totals now. `root`: where /proc and /sys are."""
    busy, stolen = _cores()
    return Counters(clock(), busy, time.process_time(), stolen, _waiting(root), _throttled(root))


def load_between(before: Counters, after: Counters, cores: int | None = None) -> Load:
    """What others did between two readings."""
    seconds = max(after.now - before.now, 1e-9)

    def rate(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else max(0.0, (b - a) / seconds)

    others = None
    if before.busy is not None and after.busy is not None:
        others = max(0.0, (after.busy - before.busy - (after.own - before.own)) / seconds)
    return Load(
        cores=cores or usable_cores(),
        others=others,
        stolen=rate(before.stolen, after.stolen),
        waiting=rate(before.waiting, after.waiting),
        throttled=rate(before.throttled, after.throttled),
    )


class RunDelay:
    """Milliseconds that threads of this process were ready to run and waited for a core, summed over threads; Linux alone tells.

    Of the threads that there are when it is made. `known` False: the system does not tell, and it is always 0.
    tasks   the folder of their folders; None: it is not to be told
    """

    def __init__(self, tasks: Path | None = Path("/proc/self/task")) -> None:
        try:
            self._files = [os.open(one / "schedstat", os.O_RDONLY) for one in tasks.iterdir()] if tasks else []
        except OSError:
            self._files = []
        self.known = bool(self._files)

    def __call__(self) -> float:
        """The total so far."""
        total = 0
        for file in self._files:
            try:
                total += int(os.pread(file, 64, 0).split()[1])
            except (OSError, IndexError, ValueError):  # the thread has ended
                continue
        return total / 1e6

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.pop())


def _cores() -> tuple[float | None, float | None]:
    """(busy, stolen) core-seconds of the usable cores."""
    try:
        import psutil

        every = psutil.cpu_times(percpu=True)
    except (ImportError, OSError, RuntimeError):  # a system that psutil was not built for, or that hides it
        return None, None
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(every))
    some = [every[i] for i in mine if i < len(every)] or every
    stolen = [getattr(one, "steal", None) for one in some]
    idle = sum(one.idle + getattr(one, "iowait", 0.0) for one in some)
    twice = sum(
        getattr(one, "guest", 0.0) + getattr(one, "guest_nice", 0.0) for one in some
    )  # they count as user time, too
    taken = sum(x for x in stolen if x is not None)
    busy = sum(map(sum, some)) - idle - twice - taken
    return busy, None if None in stolen else taken


def _waiting(root: Path) -> float | None:
    """Seconds of "some" in /proc/pressure/cpu."""
    try:
        line = (root / "proc/pressure/cpu").read_text(encoding="ascii").splitlines()[0]
        return int(line.rpartition("total=")[2]) / 1e6
    except (OSError, ValueError, IndexError):
        return None


def _throttled(root: Path) -> float | None:
    """Seconds by this process's control group; None where it has none with a CPU controller."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = ["", "unified"] if not controllers else [controllers, "cpu"]
        # in a container the path may be the host's, which is not seen there: then the group is the mount's root
        folders = [root / "sys/fs/cgroup" / mount / own for mount in mounts for own in (path.strip("/"), "")]
        for folder in folders:
            found = _throttled_in(folder / "cpu.stat")
            if found is not None:
                return found
    return None


def _throttled_in(path: Path) -> float | None:
    """Version 2 counts microseconds, version 1 nanoseconds."""
    try:
        known = dict(line.split() for line in path.read_text(encoding="ascii").splitlines())
        if "throttled_usec" in known:
            return int(known["throttled_usec"]) / 1e6
        return int(known["throttled_time"]) / 1e9 if "throttled_time" in known else None
    except (OSError, ValueError):
        return None


__all__ = ["BUSY", "Counters", "Load", "RunDelay", "load_between", "read_counters", "usable_cores"]
