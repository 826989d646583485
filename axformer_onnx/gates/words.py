"""The sentences and cells of a verdict, shared by all of its forms."""

from __future__ import annotations

from axformer_onnx.gates.records import Gate, Verdict, names

HEADER = ("gate", "figure", "measured", "asked for", "outcome")
_UNITS = {"max-drop": " points", "max-divergence": "", "min-speedup": "x", "max-size-ratio": "x"}
_DIGITS = {"max-drop": ".2f", "max-divergence": ".4f", "min-speedup": ".3f", "max-size-ratio": ".3f"}


def gate_row(gate: Gate) -> tuple[str, ...]:
    """The cells of HEADER."""
    figure = f"{gate.what}, {gate.at}" if gate.at else gate.what
    return f"--{gate.name}", figure, measured(gate), asked(gate), gate.outcome


def measured(gate: Gate) -> str:
    """For example "0.34 points [-0.51, 1.20]", "1.310x [1.280, 1.342]"."""
    found, digits = gate.measured, _DIGITS[gate.name]
    if found is None:
        return "not measured"
    text = f"{found.value:{digits}}{_UNITS[gate.name]}"
    return text if found.low == found.high else f"{text} [{found.low:{digits}}, {found.high:{digits}}]"


def asked(gate: Gate) -> str:
    """For example "at most 0.5 points", "at least 1.2x"."""
    most = "at least" if gate.name == "min-speedup" else "at most"
    return f"{most} {gate.allowed:g}{_UNITS[gate.name]}"


def sentence(gate: Gate) -> str:
    """Why, and what would decide it."""
    needed = f"; {gate.needs}" if gate.needs else ""
    return f"{gate.full_name}: {gate.outcome}, {gate.why}{needed}"


def headline(verdict: Verdict) -> str:
    """One sentence that names what failed, or is undecided."""
    failed, open_ = verdict.of("failed"), verdict.of("undecided")
    if failed:
        more = f"; undecided: {names(open_)}" if open_ else ""
        return f"Failed: {names(failed)}{more}."
    if open_:
        counts = "a failure with --strict" if verdict.strict else "no failure without --strict"
        return f"Undecided ({counts}): {names(open_)}."
    return f"Passed: {names(verdict.gates)}."


def rates(verdict: Verdict) -> str:
    """How often this may be wrong."""
    estimated = [gate for gate in verdict.gates if gate.error > 0]
    if not estimated:
        return "Nothing was estimated: these figures are exact."
    share = max(gate.error for gate in estimated)
    of_each = f", {100 * share:.3g} % each" if len(estimated) > 1 else ""
    return (
        f"Error rates: a gate that holds fails with a probability of at most {100 * verdict.error_rate:.3g} % over all gates"
        f"{of_each}; one that does not hold passes with the same."
    )
