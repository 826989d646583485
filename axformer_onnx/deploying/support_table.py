"""The table of docs/deploying.md: what each target reads, and what was seen of it, from the targets' own records."""

from __future__ import annotations

from axformer_onnx.deploying.reads import ONNX_RUNTIME, Reads
from axformer_onnx.deploying.target import Target
from axformer_onnx.options import TARGETS

_HEAD = ("`--for`", "reader", "operator set", "IR", "domains", "graph", "serves", "hard attention", "integers")


def support_table() -> str:
    """Markdown: the targets, and below it where each reader's version is stated."""
    targets = [target for target in TARGETS if isinstance(target, Target)]
    rows = [_row(target) for target in targets]
    lines = [_line(_HEAD), _line(["---"] * len(_HEAD)), *map(_line, rows), ""]
    lines += [f"* `{target.name}`: {target.reads.source}." for target in targets]
    return "\n".join(lines) + "\n"


def runtime_table() -> str:
    """Markdown: what each version of ONNX Runtime reads."""
    rows = [(version, str(opset), str(ir)) for version, (opset, ir) in ONNX_RUNTIME.items()]
    return "\n".join(map(_line, [("ONNX Runtime", "operator set", "IR"), ("---",) * 3, *rows])) + "\n"


def _row(target: Target) -> list[str]:
    reads = target.reads
    return [
        f"`{target.name}`",
        reads.what,
        _newest(reads.opset),
        _newest(reads.ir),
        _domains(reads),
        f"`{target.graph_place}`",
        ", ".join(target.roles) or "any graph",
        target.hard,
        target.int8,
    ]


def _newest(version: int | None) -> str:
    return "any" if version is None else f"<= {version}"


def _domains(reads: Reads) -> str:
    return ", ".join(("ONNX", *reads.domains))


def _line(cells: object) -> str:
    assert isinstance(cells, list | tuple)
    return "| " + " | ".join(cells) + " |"


def written_into(text: str) -> str:
    """A document with both tables put between their marks."""
    for mark, table in (("<!-- table", support_table()), ("<!-- versions", runtime_table())):
        before, _, rest = text.partition(mark)
        opening, _, rest = rest.partition("\n")
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{mark}{opening}\n\n{table}\n{end}{after}"
    return text


if __name__ == "__main__":
    from pathlib import Path

    page = Path(__file__).parents[2] / "docs" / "deploying.md"
    page.write_text(written_into(page.read_text(encoding="utf-8")), encoding="utf-8")
