"""Messages are written once, in the words of the command line; here they become those of Python."""

from __future__ import annotations

import re
from functools import cache
from typing import Literal, get_args, get_origin

from axformer_onnx.options.base import Options, fields_of, flag, mark
from axformer_onnx.options.comparing import CompareOptions
from axformer_onnx.options.deploying import DeployOptions
from axformer_onnx.options.optimizing import OptimizeOptions
from axformer_onnx.options.others import ApplyOptions, ExportOptions, InspectOptions, ScoreOptions
from axformer_onnx.options.search_kinds import SEARCHES
from axformer_onnx.options.serving import ServeOptions
from axformer_onnx.options.target_kinds import TARGETS

_MODELS: tuple[type[Options], ...] = (
    OptimizeOptions, ScoreOptions, CompareOptions, ApplyOptions, ExportOptions, InspectOptions, DeployOptions,
    ServeOptions,
)  # fmt: skip
_NUMBER = r"\d+(?:\.\d+)?"


def in_python(message: str) -> str:
    """`message` with its options as keyword arguments: "--max-drop 1" -> "max_drop=1", "--overwrite" -> "overwrite=True".

    Names that are no option of ours stay as they are.
    """
    for pattern, name, value in _spellings():
        for match in reversed(list(re.finditer(pattern, message))):
            said = value or (f"={match['value']}" if match.groupdict().get("value") else "")
            if said and not value and not re.fullmatch(_NUMBER, match["value"]):
                said = f"={match['value']!r}"
            message = message[: match.start()] + name + said + message[match.end() :]
    return message


@cache
def _spellings() -> list[tuple[str, str, str]]:
    """(pattern, name in Python, value that it stands for) of every option."""
    found: dict[str, tuple[str, str, str]] = {}
    for model in _MODELS:
        for name, field in fields_of(model).items():
            if mark(field, "positional") and name in found:
                continue  # an argument here, an option of another command
            values = "|".join(_values(name, field.annotation))
            options = [flag(name), *([mark(field, "short")] if mark(field, "short") else [])]
            spelled = "|".join(map(re.escape, options))
            pattern = rf"(?<![\w-])(?:{spelled})(?![\w-])(?: (?P<value>{values})(?![\w.-]))?"
            found[name] = pattern, name, "=True" if field.annotation is bool else ""
    return list(found.values())


def _values(name: str, annotation: object) -> list[str]:
    """Patterns of the values that may follow."""
    if name == "search":
        return list(SEARCHES.names)
    if name == "for_":
        return sorted(TARGETS.names, key=len, reverse=True)
    if name == "task":
        return ["custom"]
    if name == "metric":
        return ["agreement", "pearson_spearman"]
    literals = [
        a for part in (annotation, *get_args(annotation)) if get_origin(part) is Literal for a in get_args(part)
    ]
    return [*map(re.escape, map(str, literals))] or [_NUMBER]
