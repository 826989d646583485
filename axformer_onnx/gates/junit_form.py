"""JUnit XML, which GitLab, Jenkins, Azure Pipelines and most other CI servers show: a gate is a test case.

passed                  no child         failed     <failure>, its message the figure
undecided               <skipped>        undecided, --strict: <failure>
"""

from __future__ import annotations

from xml.etree import ElementTree as Xml

from axformer_onnx.errors import printable
from axformer_onnx.gates.records import Gate, Verdict
from axformer_onnx.gates.words import asked, measured, rates, sentence

SUITE = "axformer-onnx compare"


def junit(verdict: Verdict) -> str:
    """The document, with a trailing newline."""
    failures = sum(map(verdict.counts_as_failed, verdict.gates))
    skipped = len(verdict.of("undecided")) if not verdict.strict else 0
    counts = {"name": SUITE, "tests": str(len(verdict.gates)), "failures": str(failures), "errors": "0"}
    root = Xml.Element("testsuites", counts)
    suite = Xml.SubElement(root, "testsuite", {**counts, "skipped": str(skipped)})
    properties = Xml.SubElement(suite, "properties")
    for name in ("task", "metric", "rows", "baseline", "candidate", "error_rate", "strict"):
        Xml.SubElement(properties, "property", {"name": name, "value": printable(str(getattr(verdict, name)))})
    for gate in verdict.gates:
        _case(suite, verdict, gate)
    Xml.SubElement(suite, "system-out").text = printable("\n".join((rates(verdict), *verdict.warnings)))
    Xml.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{Xml.tostring(root, encoding="unicode")}\n'


def _case(suite: Xml.Element, verdict: Verdict, gate: Gate) -> None:
    case = Xml.SubElement(suite, "testcase", {"classname": f"compare.{verdict.task}", "name": gate.full_name})
    said = {"message": printable(f"{gate.outcome}: {gate.what} {measured(gate)}, asked for {asked(gate)}")}
    if verdict.counts_as_failed(gate):
        Xml.SubElement(case, "failure", {**said, "type": gate.outcome}).text = printable(sentence(gate))
    elif gate.outcome == "undecided":
        Xml.SubElement(case, "skipped", said).text = printable(sentence(gate))
    else:
        Xml.SubElement(case, "system-out").text = printable(sentence(gate))
