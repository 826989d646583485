"""For services that draw a figure over time: ratios to the baseline, which mean the same on another machine; never milliseconds.

Both forms hold what was measured, whatever the gates say, and leave out what was not.
"""

from __future__ import annotations

import json

from axformer_onnx.gates.records import Ratio, Verdict


def benchmark(verdict: Verdict) -> str:
    """For github-action-benchmark, `tool: customBiggerIsBetter`; what is better smaller stands there as its inverse."""
    entries = []
    for one in map(_bigger, verdict.ratios):
        entry = {"name": f"{verdict.task}: {one.name}", "unit": "x", "value": one.value}
        if one.low is not None and one.high is not None:
            entry["range"] = f"{one.low:.4g} to {one.high:.4g}"
        if one.extra:
            entry["extra"] = one.extra
        entries.append(entry)
    return json.dumps(entries, indent=2) + "\n"


def bmf(verdict: Verdict) -> str:
    """Bencher Metric Format: {benchmark: {measure: {value, lower_value, upper_value}}}, for `bencher run --adapter json`."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for one in verdict.ratios:
        metric = {"value": one.value}
        if one.low is not None and one.high is not None:
            metric |= {"lower_value": one.low, "upper_value": one.high}
        found.setdefault(f"{verdict.task}: {one.name}", {})[f"{one.measure}-ratio"] = metric
    return json.dumps(found, indent=2) + "\n"


def _bigger(one: Ratio) -> Ratio:
    """The same, bigger is better."""
    if one.bigger_is_better:
        return one
    low, high = (None if end is None else 1 / end for end in (one.high, one.low))
    return Ratio(f"{one.name}, times as small", one.measure, 1 / one.value, low, high, extra=one.extra)
