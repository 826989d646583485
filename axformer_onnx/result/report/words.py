"""The sentences and cells of a report, shared by its Markdown and terminal forms."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from axformer_onnx.options import OptimizeOptions, fields_of, flag
from axformer_onnx.records import Interval
from axformer_onnx.result.report.record import (
    ComparisonRecord,
    CompensationRecord,
    IntervalRecord,
    LatencyRecord,
    ModelRecord,
    PointRecord,
    Report,
)

DIVERGENCE = "divergence from the source"
NOT_MEASURED = "not measured"
"""In the place of a speed that does not hold."""


def headline(report: Report) -> str:
    """One sentence: what came out."""
    if report.is_unchanged:
        return _nothing(report)
    smaller = change(report.source.size_bytes, report.candidate.size_bytes)
    if report.fidelity:
        agrees = f"{report.metric} with the source is {report.candidate.score:.2f} ({paired(report.comparison)})"
        return f"{agrees}: fidelity, not accuracy; size {smaller}, {_speed(report)}."
    verdict = {
        (True, False): "significantly worse than the source",
        (False, True): "significantly better than the source",
    }.get((report.comparison.worse, report.comparison.better), "not significantly different from the source")
    return f"{report.metric} is {verdict} ({paired(report.comparison)}); size {smaller}, {_speed(report)}."


def _speed(report: Report) -> str:
    """Only what was measured, and of that what the intervals bear out."""
    measured = [x for x in report.latency if x.reliable]
    lost = [x for x in report.latency if not x.reliable]
    if lost and not measured:
        return f"speed not measured: {lost[0].why}{in_cpu_time(lost[0].cpu_speedup)}"
    missing = "".join(
        f"; speed at {x.batch} x {x.length} not measured: {x.why}{in_cpu_time(x.cpu_speedup)}" for x in lost
    )
    return _difference(measured) + missing


def _difference(measured: Sequence[LatencyRecord]) -> str:
    faster = [x for x in measured if x.speedup.low > 1]
    slower = [x for x in measured if x.speedup.high < 1]
    if slower:
        worst = min(slower, key=lambda x: x.speedup.value)
        return f"slower: {speed(worst.speedup)} at {worst.batch} x {worst.length}"
    if faster:
        best = max(faster, key=lambda x: x.speedup.value)
        return f"{speed(best.speedup)} as fast at {best.batch} x {best.length}"
    return "latency not measurably different"


def _nothing(report: Report) -> str:
    if report.compensation is not None:
        why = f"no smaller graph meets {report.compensation.goal} on the select rows"
        why += "; the search was interrupted" if report.search.interrupted else ""
        return f"Nothing was removed: {why}. The graph computes what the source computes; {_speed(report)}."
    trials, accepted = len(report.search.trials), report.search.accepted
    if accepted:
        why = f"{accepted} of {trials} trials were accepted, but no stage held its score on the select rows"
    else:
        why = f"none of {trials} trials was accepted"
    if report.search.interrupted:
        why += "; the search was interrupted"
    return f"Nothing was removed: {why}. The graph is the source, cleaned up."


def paired(comparison: ComparisonRecord) -> str:
    """For example "-0.17 points [-0.92, +0.58], p = 0.71, exact McNemar"; the metric's own words where it has any."""
    if comparison.words is not None:
        return comparison.words
    difference = comparison.difference
    text = f"{difference.value:+.2f} points [{difference.low:+.2f}, {difference.high:+.2f}]"
    if comparison.p_value is not None:
        text += f", p = {comparison.p_value:.2g}"
    return f"{text}, {comparison.test}"


def change(before: float, after: float) -> str:
    """For example "-12.3 %"."""
    if before == 0:
        return ""
    percent = 100 * (after / before - 1)
    return f"{percent:+.1f} %" if abs(percent) >= 0.05 else "unchanged"


def count(value: float | None) -> str:
    """For example "22.71 M", "1.36 G", "812"."""
    if value is None:
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f}"


def megabytes(size_bytes: int) -> str:
    """For example "90.90 MB" (10^6 bytes)."""
    return f"{size_bytes / 1e6:.2f} MB"


def speed(speedup: IntervalRecord | Interval) -> str:
    """For example "1.21x [1.19, 1.23]"; above 1 is faster than the source."""
    return f"{speedup.value:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}]"


def in_cpu_time(speedup: IntervalRecord | Interval | None) -> str:
    """What follows on a speed that was not measured: "; in CPU time, on one thread, 1.21x [1.19, 1.23]", or nothing."""
    return "" if speedup is None else f"; in CPU time, on one thread, {speed(speedup)}"


def figure_rows(report: Report) -> list[tuple[str, str, str, str]]:
    """The rows (figure, source, result, change) of the main table."""
    before, after = report.source, report.candidate
    rows = [(report.metric, f"{before.score:.2f}", f"{after.score:.2f}", paired(report.comparison))]
    for name in before.metrics:
        if name != report.metric:
            b, a = before.metrics[name], after.metrics[name]
            rows.append((name, f"{b:.2f}", f"{a:.2f}", f"{a - b:+.2f} points"))
    rows.append(
        (DIVERGENCE, "", divergence(after), "") if report.fidelity else ("loss", _loss(before), _loss(after), "")
    )
    rows += [row for latency in report.latency for row in _latency_rows(latency)]
    size, parameters = (before.size_bytes, after.size_bytes), (before.parameters, after.parameters)
    rows.append(("file size", megabytes(size[0]), megabytes(size[1]), change(*size)))
    rows.append(("parameters", count(parameters[0]), count(parameters[1]), change(*parameters)))
    if before.macs is not None and after.macs is not None:
        name = f"multiply-accumulates, {report.macs_shape}"
        rows.append((name, count(before.macs), count(after.macs), change(before.macs, after.macs)))
    return rows


def divergence(model: ModelRecord) -> str:
    """For example "0.0123"; empty for the source itself."""
    return "" if model.divergence is None else f"{model.divergence:.4f}"


def _loss(model: ModelRecord) -> str:
    return "not finite" if model.loss is None else f"{model.loss:.4f}"


def milliseconds(value: float, *, reliable: bool) -> str:
    """For example "1.49 ms"; of a machine that was disturbed it says so."""
    return f"{value:.2f} ms" if reliable else f"{value:.2f} ms, disturbed"


def _latency_rows(x: LatencyRecord) -> list[tuple[str, str, str, str]]:
    shape = f"{x.batch} x {x.length}"
    p50, p95 = (
        [milliseconds(ms, reliable=x.reliable) for ms in pair]
        for pair in ((x.source_p50_ms, x.candidate_p50_ms), (x.source_p95_ms, x.candidate_p95_ms))
    )
    return [
        (
            f"latency p50, {shape}",
            p50[0],
            p50[1],
            speed(x.speedup) if x.reliable else NOT_MEASURED + in_cpu_time(x.cpu_speedup),
        ),
        (f"latency p95, {shape}", p95[0], p95[1], ""),
    ]


def runtime_form_sentences(report: Report) -> list[str]:
    """Whether there is a second graph, how fast it is, and who takes it; empty where none was asked for."""
    found = report.runtime_form
    if found is None:
        return []
    if found.kept is None:
        why = "no other form of it was measured faster on this machine"
        return [f"model.onnx is the only graph: {why}."]
    speeds = ", ".join(
        f"{speed(x.speedup) if x.reliable else NOT_MEASURED} at {x.batch} x {x.length}" for x in found.latency
    )
    takers = (
        "It has operators of com.microsoft: for ONNX Runtime and servers built on it (docs/runtime-forms.md); model.onnx is for "
        "all others"
        if found.contrib
        else "It has standard operators alone, which every ONNX runtime takes"
    )
    return [
        f"{found.file} computes the same as model.onnx ({found.kept}), {speeds} as fast on this machine.",
        f"{takers}.",
    ]


def control_sentence(report: Report) -> str | None:
    """How a random plan of equal size scores, or None where there is none."""
    if report.control is None or report.control_comparison is None:
        return None
    return (
        f"Control: a random plan of equal size (seed {report.control_seed}) "
        f"scores {report.control.score:.2f} ({paired(report.control_comparison)})."
    )


def majority_sentence(report: Report) -> str | None:
    """The rate of the most frequent label, or None where there is none."""
    if report.majority_rate is None:
        return None
    return f"Always answering the most frequent label scores {report.majority_rate:.2f} in {report.majority_metric}."


def search_sentence(report: Report) -> str:
    """What the search did."""
    search = report.search
    if report.compensation is not None:
        return _compensation_sentence(report, report.compensation)
    text = (
        f"Search {search.kind}, seed {search.seed}: {len(search.trials)} trials, {search.accepted} accepted, "
        f"stage {search.chosen_stage} of {search.accepted} chosen"
    )
    if search.resumed_trials:
        text += f", {search.resumed_trials} trials answered from the journal"
    if search.interrupted:
        text += "; interrupted: run the same command again to go on"
    return text + "."


def _compensation_sentence(report: Report, found: CompensationRecord) -> str:
    times = (
        f", {found.plain_work / found.work:.0f} times less work than evaluating each whole on all search rows"
        if found.work
        else ""
    )
    mixed = f" ({found.rows['mixed']} synthesised by recombination)" if found.rows.get("mixed") else ""
    calibration = f"{found.rows['calibration']} calibration rows{mixed}; " if found.rows["calibration"] else ""
    text = (
        f"Search compensated, {found.goal}, effort {found.effort}, seed {report.search.seed}: {found.evaluations} candidates "
        f"evaluated on up to {found.rows['races']} rows{times}; {calibration}{len(found.frontier)} points built"
    )
    if found.hard_asked:
        taken = sum(layer.hard_attention is not None for layer in report.layers)
        text += (
            f"; hard attention was tried {found.hard_asked} times and is in {taken or 'no'} layer{'s' * (taken > 1)}"
        )
    if not found.reached:
        text += "; no point meets the goal, this one comes nearest"
    if report.search.interrupted:
        text += "; interrupted: run the same command again to go on"
    return text + "."


def options_line(report: Report) -> str:
    """The options of the run as the command line has them, those at their defaults left out."""
    return shlex.join(_options(report))


def command_words(report: Report) -> list[str]:
    """The command that makes such a run, word by word, as a shell reads them."""
    return [shlex.quote(word) for word in ("axformer-onnx", "optimize", report.model, *_options(report))]


def _options(report: Report) -> list[str]:
    said, fields = list[str](), fields_of(OptimizeOptions)
    for name, value in report.options.items():
        if isinstance(value, list) and not (name in fields and fields[name].default == ()):
            value = ",".join(map(str, value))
        for one in value if isinstance(value, list) else [value]:
            said += [flag(name)] if one is True else [flag(name), str(one)]
    return said


FRONTIER_HEADER = ("speedup", "select rows", "below the source", "judged", "divergence", "file size", "plan")


def table_sentence(report: Report) -> str | None:
    """How far speeds by the latency table can be trusted, or None where no plan was timed for it."""
    table = report.compensation.table if report.compensation else None
    if table is None or not table.plans:
        return None
    much = "much" if table.bias >= 0 else "little"
    return (
        f"The latency table, tried on {table.plans} plans that change all blocks: sums of its prices promised "
        f"{100 * abs(table.bias):.1f} % too {much} speed, which is taken off; what is left is {100 * table.median:.1f} % in the "
        f"median, {100 * table.worst:.1f} % at worst."
    )


def frontier_rows(report: Report) -> list[tuple[str, ...]]:
    """A row for each operating point, slowest first; empty where there are none."""
    points = report.compensation.frontier if report.compensation else []
    return [_point_row(point) for point in sorted(points, key=lambda p: p.speedup.value)]


def _point_row(point: PointRecord) -> tuple[str, ...]:
    return (
        speed(point.speedup) if point.reliable else NOT_MEASURED,
        f"{point.score:.2f}",
        f"{point.drop:+.2f} (SE {point.noise:.2f})",
        f"{point.judged_drop:+.2f}",
        f"{point.divergence:.4f}",
        megabytes(point.size_bytes),
        f"{point.folder}{' <- the result' if point.chosen else ''}",
    )


def condition_rows(report: Report) -> list[tuple[str, str]]:
    """(name, value): when, with which options, of which files and on what it ran; versions are apart."""
    return [
        ("created", report.created),
        ("options", options_line(report)),
        ("provider", report.provider),
        ("threads", str(report.threads or "ONNX Runtime's default")),
        ("source sha256", report.source.sha256),
        ("result sha256", report.candidate.sha256),
        *sorted(report.hardware.items()),
        *[("ran on", line) for line in placement_words(report.placement)],
    ]


def placement_words(found: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A line a provider, for example "CPUExecutionProvider: 3 of 120 operators (Gather 2, Shape 1)"."""
    total = sum(sum(counts.values()) for counts in found.values())
    return [
        f"{name}: {sum(counts.values())} of {total} operators ({', '.join(f'{op} {n}' for op, n in counts.items())})"
        for name, counts in found.items()
    ]
