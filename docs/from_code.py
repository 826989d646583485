"""A Sphinx extension: the reference says what the code says.

* Signatures of the public functions are those of `axformer_onnx/__init__.pyi`, as type checkers and editors see them.
* Docstrings of this project list names in two columns, which are definitions on a page.
* Links to pages that stand outside of docs/ lead to the page here that includes them.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "bench/results/budget.md": "/results.md",
    "bench/results/int8.md": "/results.md",
    "CHANGELOG.md": "/changelog.md",
    "CONTRIBUTING.md": "/contributing.md",
    "models/nli-mini/README.md": "/example-model.md",
}
"""Pages of the repository: where each is included here."""

_TWO_COLUMNS = re.compile(r"^( *)([\w./-]+(?:, [\w./-]+)*) {2,}(\S.*)$")
_REFERENCE = re.compile(r"(?<![`\w])(\w+)_(?=[\s.,;:)]|$)")
"""A name that ends in an underscore, which would be a link."""
_LINK = re.compile(r"\]\((?P<up>(?:\.\./)+)(?P<path>[\w./-]+\.md)(?P<anchor>#[\w-]+)?\)")


@cache
def stub_signatures() -> dict[str, tuple[str, str]]:
    """Public function -> (arguments in brackets, what it returns)."""
    tree = ast.parse((ROOT / "axformer_onnx" / "__init__.pyi").read_text(encoding="utf-8"))
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {f.name: (f"({ast.unparse(f.args)})", ast.unparse(f.returns) if f.returns else "None") for f in functions}


def with_definitions(lines: list[str]) -> list[str]:
    """The lines of a docstring; those that have a name, a gap and words become a definition each."""
    found, width = list[str](), 0  # width: the column where the words of the last definition began
    in_example = False
    for line in lines:
        in_example = line.lstrip().startswith(">>>") or (in_example and bool(line.strip()))
        columns = None if in_example else _TWO_COLUMNS.match(line)
        if columns:
            indent, name, words = columns.groups()
            found += (
                ["", f"{indent}``{name}``", f"{indent}    {words}"]
                if not width
                else [f"{indent}``{name}``", f"{indent}    {words}"]
            )
            width = columns.start(3)
        elif width and line.strip() and line.startswith(" " * width):
            found.append(f"{' ' * (len(found[-1]) - len(found[-1].lstrip()))}{line.strip()}")
        else:
            found += ["", line] if width and line.strip() else [line]
            width = 0
    return found


def inside(text: str) -> str:
    """A page's text, its links to pages of the repository made links to pages of the documentation."""

    def led(link: re.Match[str]) -> str:
        page = ELSEWHERE.get(link["path"])
        return f"]({page}{link['anchor'] or ''})" if page else link[0]

    return _LINK.sub(led, text)


def _signature(app: Sphinx, what: str, name: str, *rest: Any) -> tuple[str, str] | None:
    return stub_signatures().get(name.removeprefix("axformer_onnx.")) if what == "function" else None


def _docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [
        line if line.lstrip().startswith(">>>") else _REFERENCE.sub(r"\1\\_", line) for line in with_definitions(lines)
    ]


def _source(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = inside(source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("source-read", _source)
    return {"parallel_read_safe": True}
