"""Writes axformer_onnx/__init__.pyi, the face of the package as type checkers and editors see it: `make stub`.

Functions take their keywords from the options' models when they are called; a checker needs them spelled out. `test_stub.py` holds
the file to the models.
"""

from __future__ import annotations

import enum
import inspect
import types
import typing
from pathlib import Path
from typing import Any

import axformer_onnx as ax
from axformer_onnx.options.base import Location

FILE = Path(ax.__file__).with_suffix(".pyi")
PATHS = ("str", "Path")
TASK = ("str", "Task")
HEAD = '''"""The face of the package, for type checkers. Written by `make stub` from the options' models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

'''


def stub() -> str:
    """The whole file."""
    homes = {name: module for module, names in ax._HOMES.items() for name in names if module != "axformer_onnx.api"}
    names = [name for name in ax.__all__ if name != "__version__" and not inspect.isfunction(getattr(ax, name))]
    modules: dict[str, list[str]] = {}
    for name in names:
        modules.setdefault(homes.get(name, "axformer_onnx.errors"), []).append(name)
    imports = [
        f"from {module} import {name} as {name}\n"
        for module, found in sorted(modules.items())
        for name in sorted(found)
    ]
    functions = [_function(name) for name in ax.__all__ if inspect.isfunction(getattr(ax, name))]
    return HEAD + "".join(imports) + "\n__version__: str\n__all__: list[str]\n\n" + "\n".join(functions)


def _function(name: str) -> str:
    found = getattr(ax, name)
    signature = inspect.signature(found)
    lines, starred = [], False
    for one in signature.parameters.values():
        if one.kind is one.KEYWORD_ONLY and not starred:
            lines.append("    *,\n")
            starred = True
        default = "" if one.default is one.empty else f" = {_default(one.default)}"
        spelled = _spelled(one.annotation, one.name)
        optional = " | None" if one.default is None and "None" not in spelled else ""
        lines.append(f"    {one.name}: {spelled}{optional}{default},\n")
    return f"def {name}(\n{''.join(lines)}) -> {signature.return_annotation}: ...\n"


def _default(value: Any) -> str:
    plain = value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, enum.Enum))
    return repr(value) if plain else "..."


def _spelled(annotation: Any, name: str) -> str:
    """What a caller may give: a Path also as text, a task also by its name, columns of text also joined by commas."""
    if isinstance(annotation, str):
        return annotation
    return " | ".join(dict.fromkeys(_alternatives(annotation, name)))


def _alternatives(annotation: Any, name: str) -> tuple[str, ...]:
    if annotation is Any and name == "task":
        return TASK
    if annotation is Path or annotation == Location:
        return PATHS
    if typing.get_origin(annotation) is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0], name)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(one for part in typing.get_args(annotation) for one in _alternatives(part, name))
    if typing.get_origin(annotation) is typing.Literal:
        return (f"Literal[{', '.join(map(repr, typing.get_args(annotation)))}]",)
    if typing.get_origin(annotation) is tuple:
        inner = " | ".join(_alternatives(typing.get_args(annotation)[0], name))
        return (f"Sequence[{inner}]", inner)
    if annotation is type(None):
        return ("None",)
    return (annotation.__name__,)


if __name__ == "__main__":
    FILE.write_text(stub(), encoding="utf-8")
