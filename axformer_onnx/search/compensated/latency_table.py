"""What every rung of every unit costs on this machine: milliseconds measured through ONNX Runtime, on real graphs.

Units that are alike (same widths, same tokens) are one class. For some rungs of a class the whole model is built with all
units of the class on that rung, and timed interleaved with the unchanged one at the wanted batch and length:

    ms of a rung = ms of a full unit - (model - model with the class on that rung) / units in the class

So a figure holds what a block costs in its place: its multiplications, and its share of norms, softmax, transposes and memory
traffic. Savings do not add up: with fewer activations about, what is left fits a cache. So the model without any unit is timed,
too, and all figures are scaled to make their sum what that saves. Rungs that are not measured are interpolated. The figures are
made non-decreasing in the number of heads (neurons) kept (isotonic regression): a kernel may take longer for fewer, and then the
wider rung on the fast side of that step is the one to take.

A block that is a fiftieth of the model cannot be told from an error of a fiftieth. So what was measured is drawn towards what
multiply-accumulates say, the more the less certain it is (`believed`).

Where the machine is never free, all of it is CPU time on one thread: another figure, but one that other processes do not move.

Tables are kept in the user's cache folder under a key of model, machine, provider, threads, shape and versions; those of CPU time
are not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from axformer_onnx.records import FloatArray
from axformer_onnx.runtime import RUNTIME, cache_folder, describe_hardware, is_cpu_alone, keep_json, run_once, versions
from axformer_onnx.scoring import Machine, PlanClock, PlanTimes
from axformer_onnx.search.compensated.allocation import price_of
from axformer_onnx.search.compensated.levels import Unit
from axformer_onnx.search.compensated.table_error import (
    Correction,
    Mixed,
    TableError,
    believed,
    correction,
    error_of,
    mixed_rungs,
)
from axformer_passes.blocks import shares
from axformer_passes.plan import Hard, Plan
from axformer_passes.precision import Int8
from axformer_passes.probe import TokenSequence

if TYPE_CHECKING:
    import onnx_ir as ir

    from axformer_passes.blocks import BlockKind
    from axformer_passes.recognise import Examined

logger = logging.getLogger(__name__)
FORMAT = "axformer-latency/4"
MEASURED = {"attention": 7, "feed_forward": 9}
"""Rungs of a class that are measured, the full and the empty one among them; of a class of a single unit, fewer."""
_SINGLE = 4
TRY_CPU_TIME = True
"""Where wall-clock times do not hold."""
OVERHEAD = 0.002
"""Of what the model takes: standard deviation of what a class of blocks costs beside its multiply-accumulates."""
_Rung: TypeAlias = tuple[str, int, bool]
"""A class, heads (neurons) kept, are they integers?"""
_EMPTY, _SOURCE = "empty", "source"
"""The variant without any unit, and the graph that was given."""


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """p50 in milliseconds at one batch and length.

    source_ms   the source as it was given
    model_ms    the model that the search works on, in the form that is written: read-out narrowed where that is legal; constants,
                keys, values and padding as plans say, in half precision where they do
    unit_ms     by unit: of every rung, the empty one 0; non-decreasing in what is kept
    hard_ms     by k: what hard attention with that k adds to one attention block; empty where it was not asked for
    mixed       plans that change all units, timed: what sums of prices are wrong by (`table_error.py`)
    cpu_time    all of it is CPU time on one thread

    Sums of `unit_ms` and `hard_ms` are budgets of the units; `speedup` and `budget_ms` translate between them and what they mean.
    """

    batch: int
    length: int
    source_ms: float
    model_ms: float
    unit_ms: tuple[tuple[float, ...], ...]
    hard_ms: Mapping[int, float] = dataclasses.field(default_factory=dict)
    mixed: tuple[Mixed, ...] = ()
    cpu_time: bool = False

    @property
    def prices(self) -> list[FloatArray]:
        """float64[rungs] by unit."""
        return [np.array(ms) for ms in self.unit_ms]

    @property
    def rest_ms(self) -> float:
        """What is left with every unit empty."""
        return self.model_ms - self.whole_ms

    @property
    def whole_ms(self) -> float:
        """What all units cost as they are."""
        return sum(ms[0] for ms in self.unit_ms)

    @cached_property
    def correction(self) -> Correction:
        """From sums of prices to what is saved."""
        return correction(self.mixed, self.model_ms, self.whole_ms)

    @cached_property
    def error(self) -> TableError:
        """What it is wrong by."""
        return error_of(self.mixed, self.model_ms, self.whole_ms)

    def speedup(self, units_ms: float) -> float:
        """Times as fast as the source, with units whose prices add up to this."""
        left = self.model_ms - self.correction.saved_ms(self.whole_ms - units_ms)
        return self.source_ms / max(left, 1e-9)

    def budget_ms(self, speedup: float) -> float:
        """What the prices of units may add up to at a speedup against the source; negative where it is out of reach."""
        saved = self.model_ms - self.source_ms / speedup
        return self.whole_ms - self.correction.summed_ms(saved)


def measure_table(
    model: ir.Model,
    examined: Examined,
    units: Sequence[Unit],
    machine: Machine,
    shape: tuple[int, int],
    *,
    source: Path,
    tokens: TokenSequence,
    hard: Sequence[int] = (),
    int8: Int8 | None = None,
    rewrites: Plan = Plan(),  # noqa: B008
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, left: None,
) -> LatencyTable:
    """Measure; nothing is cached here. `examined` is of `model`, which was made of the graph at `source`; `tokens`: what rows are
    made of; `hard`: the ks to price; `int8`: as in the plans to come; `rewrites`: the exact rewrites of those, and their halves.

    Raises: RuntimeFailure where a session does not run.
    """
    classes = unit_classes(examined, units)
    wanted = [(c, n, i) for c, members in classes.items() for n, i in _measured_rungs(units, members)]
    variants: list[tuple[Any, Plan]] = [
        ((c, n, i), _plan([(units[u], n, i) for u in classes[c]], int8)) for c, n, i in wanted
    ]
    attention = [i for unit in units if unit.kind == "attention" for i in unit.layers]
    variants += [(k, _hardened(attention, k)) for k in hard if attention]
    variants.append((_EMPTY, _plan([(unit, 0, False) for unit in units])))
    clock = PlanClock(model, examined, rewrites, machine, shape, tokens, seed)
    times = clock.times([(_SOURCE, source), *variants], progress)
    if not times.holds and TRY_CPU_TIME and is_cpu_alone(machine.provider):
        clock = dataclasses.replace(clock, cpu_time=True)
        times = clock.times([(_SOURCE, source), *variants], progress)
    base_ms, ms = times.ms, {key: part * times.ms for key, part in times.parts.items()}
    saved = {key: base_ms - ms[key] for key in wanted}
    if any(times.errors[key] for key in wanted):
        blocks = shares(model, examined.anatomy, run_once, 1, shape[1])  # of one row: rates are fitted
        counts = {(block.layer, block.kind): block.macs for block in blocks}
        work = {
            c: sum(counts[i, units[u].kind] for u in members for i in units[u].layers) for c, members in classes.items()
        }
        saved = _weighed(saved, times, {c: units[members[0]] for c, members in classes.items()}, work)
    unit_ms: list[tuple[float, ...]] = [()] * len(units)
    for c, members in classes.items():
        layers = sum(len(units[u].layers) for u in members)
        measured = {(n, i): saved[c, n, i] / layers for n, i in _measured_rungs(units, members)}
        for u in members:
            unit_ms[u] = _by_rung(units[u], measured)
    unit_ms = _adding_up(unit_ms, base_ms - ms[_EMPTY])
    added = {k: (ms[k] - base_ms) / len(attention) for k in hard if attention}
    table = LatencyTable(*shape, ms[_SOURCE], base_ms, tuple(unit_ms), added, cpu_time=clock.cpu_time)
    return dataclasses.replace(table, mixed=_mixed(table, units, int8, clock, progress))


def _mixed(
    table: LatencyTable,
    units: Sequence[Unit],
    int8: Int8 | None,
    clock: PlanClock,
    progress: Callable[[int, int], None],
) -> tuple[Mixed, ...]:
    """Plans of all units, timed like those that the prices come from."""
    choices = mixed_rungs(units, table.prices, clock.seed) if table.whole_ms > 0 else []
    plans = [
        (rungs, _plan([(u, u.counts[r], u.rungs[r].int8) for u, r in zip(units, rungs, strict=True)], int8))
        for rungs in choices
    ]
    parts = clock.times(plans, progress).parts
    return tuple(
        Mixed(table.whole_ms - price_of(table.prices, rungs), table.model_ms * (1 - parts[rungs])) for rungs in choices
    )


def unit_classes(examined: Examined, units: Sequence[Unit]) -> dict[str, list[int]]:
    """Units that cost the same, by a name that says what they have in common."""
    found: dict[str, list[int]] = {}
    for number, unit in enumerate(units):
        block = getattr(examined.anatomy.layers[unit.layers[0]], unit.kind)
        last = block.output if unit.kind == "attention" else block.down
        tokens = np.shape(examined.labelling.values[last.input])[:-1]
        name = f"{unit.kind} {unit.size} of {last.rows} to {last.columns}, {list(tokens)}"
        found.setdefault(name, []).append(number)
    return found


def _measured_counts(units: Sequence[Unit], members: Sequence[int]) -> list[int]:
    """Which rungs of a class are measured beside the full one: evenly spaced in what they keep, the empty one among them."""
    unit = units[members[0]]
    most = MEASURED[unit.kind] if sum(len(units[u].layers) for u in members) > 1 else _SINGLE
    targets = np.linspace(0, unit.size, most)[:-1]
    counts = np.array(unit.counts[1:])
    return sorted({int(counts[np.abs(counts - target).argmin()]) for target in targets})


def _measured_rungs(units: Sequence[Unit], members: Sequence[int]) -> list[tuple[int, bool]]:
    """(heads or neurons kept, are they integers?) of those: of integers the full one, too, and not the empty one."""
    unit = units[members[0]]
    counts = _measured_counts(units, members) if unit.height > 1 else [0]
    integers = [*counts[1:], unit.size] if len(unit.ladders) > 1 else []
    return [*((n, False) for n in counts), *((n, True) for n in integers)]


def _weighed(
    saved: Mapping[_Rung, float], times: PlanTimes, units: Mapping[str, Unit], work: Mapping[str, float]
) -> dict[_Rung, float]:
    """Savings in ms, weighed against what multiply-accumulates say. `units`: one of each class; `work`: multiply-accumulates of all
    blocks of a class.

    The design has four columns: multiply-accumulates that a variant takes away, and that it turns into integers, of attention and
    of feed-forward blocks.
    """
    design = np.zeros((len(saved), 4))
    for row, (c, kept, rounded) in zip(design, saved, strict=True):
        first, part = 2 * (units[c].kind == "feed_forward"), kept / units[c].size
        row[first : first + 2] = work[c] * (1 - part), work[c] * part * rounded
    errors = np.array([times.errors[key] * times.parts[key] * times.ms for key in saved])
    drawn = believed(np.array(list(saved.values())), errors, design, OVERHEAD * times.ms)
    return dict(zip(saved, drawn.tolist(), strict=True))


def _by_rung(unit: Unit, saved: Mapping[tuple[int, bool], float]) -> tuple[float, ...]:
    """ms of every rung from what the measured ones save against the full one in float32."""
    from scipy.optimize import isotonic_regression

    empty, found = min(n for n, _ in saved), list[float]()
    for ladder in unit.ladders:
        int8 = unit.rungs[ladder.start].int8
        own = {n: x for (n, i), x in saved.items() if i == int8} | {empty: saved[empty, False]}
        counts = np.array(sorted({*own, unit.size}), dtype=float)
        cost = np.array([saved[empty, False] - own.get(int(n), 0.0) for n in counts])
        rising = np.maximum(isotonic_regression(cost).x, 0.0)
        kept = np.array([unit.counts[r] for r in ladder], dtype=float)
        found += [float(x) for x in np.interp(kept, counts, rising)]
    return tuple(found)


def _adding_up(unit_ms: Sequence[tuple[float, ...]], saved: float) -> list[tuple[float, ...]]:
    """Scaled, so that all full units together are what the model without any of them saves."""
    whole = sum(ms[0] for ms in unit_ms)
    factor = max(saved, 0.0) / whole if whole > 0 else 1.0
    return [tuple(factor * x for x in ms) for ms in unit_ms]


def _plan(wanted: Sequence[tuple[Unit, int, bool]], int8: Int8 | None = None) -> Plan:
    """Every unit with so many heads (neurons), and in integers where that is said."""
    plan = Plan()
    integers: list[tuple[int, BlockKind]] = []
    for unit, count, rounded in wanted:
        for layer in unit.layers:
            without = plan.without_heads if unit.kind == "attention" else plan.without_neurons
            plan = without(layer, range(count, unit.size))
            integers += [(layer, unit.kind)] if rounded and count else []
    if int8 is None or not integers:
        return plan
    return dataclasses.replace(plan, int8=int8.with_blocks(integers).products_alone())


def _hardened(layers: Sequence[int], k: int) -> Plan:
    plan = Plan()
    for layer in layers:
        plan = plan.with_hard_attention(layer, k, Hard(k).mode)
    return plan


# -- cache ------------------------------------------------------------------------------------------------------------


def cached_table(key: Mapping[str, Any], units: Sequence[Unit], measure: Callable[[], LatencyTable]) -> LatencyTable:
    """The table of this key from the user's cache folder; measured, and written there, where it is not.

    A folder that cannot be written costs the cache, not the run.
    """
    whole = {**key, "units": [[u.kind, list(u.layers), list(u.counts)] for u in units], **machine_key()}
    path = _cache_folder() / f"{hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:32]}.json"
    try:
        known = from_json(json.loads(path.read_text(encoding="utf-8")))
        if [len(ms) for ms in known.unit_ms] == [len(u.rungs) for u in units]:
            return known
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    found = measure()
    if found.cpu_time:
        return found
    try:
        keep_json(path, {**to_json(found), "key": whole})
    except OSError as error:
        logger.info("the latency table is not cached: %s", error)
    return found


def machine_key() -> dict[str, Any]:
    """What a latency depends on beside the model: processor, cores, GPU, ONNX Runtime."""
    hardware, found = describe_hardware(), versions()
    return {
        "format": FORMAT,
        "cpu": hardware["cpu"],
        "cores": hardware["cores_usable"],
        **({"gpu": hardware["gpu"]} if "gpu" in hardware else {}),
        "versions": {name: found[name] for name in found if name.startswith(("axformer-onnx", RUNTIME))},
    }


def to_json(table: LatencyTable) -> dict[str, Any]:
    """Plain dictionaries and lists; `error` says what `mixed` comes to."""
    fields = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
    return {
        **fields,
        "hard_ms": {str(k): ms for k, ms in table.hard_ms.items()},
        "mixed": [dataclasses.asdict(one) for one in table.mixed],
        "error": dataclasses.asdict(table.error),
    }


def from_json(data: Mapping[str, Any]) -> LatencyTable:
    """Inverse of `to_json`."""
    return LatencyTable(
        batch=int(data["batch"]),
        length=int(data["length"]),
        source_ms=float(data["source_ms"]),
        model_ms=float(data["model_ms"]),
        unit_ms=tuple(tuple(float(x) for x in ms) for ms in data["unit_ms"]),
        hard_ms={int(k): float(ms) for k, ms in data["hard_ms"].items()},
        mixed=tuple(Mixed(float(m["summed_ms"]), float(m["measured_ms"])) for m in data["mixed"]),
        cpu_time=bool(data.get("cpu_time", False)),
    )


def _cache_folder() -> Path:
    return cache_folder("latency")


__all__ = ["LatencyTable", "cached_table", "from_json", "measure_table", "to_json", "unit_classes"]
