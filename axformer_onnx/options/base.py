"""What an option is: a field of a pydantic model that says its default, bounds, choices and help, once for both faces.

The command line is generated from these fields (`axformer_onnx.cli`), so are the signatures of `import axformer_onnx`; the
journal's header takes the fields that are marked as decisive. Messages are written in the words of the command line;
`spelling.py` turns them into those of Python.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from axformer_onnx.errors import UsageError


class Options(BaseModel):
    """Base of every options record: immutable, and an unknown name is a mistake."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=(), defer_build=True
    )


Location = Annotated[str, BeforeValidator(lambda given: str(given) if isinstance(given, Path) else given)]
"""A path, or a name on the hub, as text; Python's face may give a Path."""
AnyOptions = TypeVar("AnyOptions", bound=Options)


def option(
    default: Any = ...,
    help: str = "",
    *,
    positional: bool = False,
    short: str | None = None,
    cli: bool = True,
    metavar: str | None = None,
    choices: object = None,
    decisive: bool | str = False,
    **constraints: Any,
) -> Any:
    """A field that is an option.

    positional    an argument of the command line, and positional in Python
    short         a second spelling on the command line: "-o"
    cli           False: of the Python face alone
    metavar       what `--help` calls it, where that is not its name
    choices       a registry, whose names are the values
    decisive      a run with another value is another run: the journal's header holds it; "if set": only where it is not the default
    constraints   ge, gt, le, lt, validate_default, ... of pydantic's Field
    """
    marks: dict[str, Any] = {
        "positional": positional, "short": short, "cli": cli, "metavar": metavar, "choices": choices, "decisive": decisive,
    }  # fmt: skip
    return Field(default, description=help, json_schema_extra=marks, **constraints)


def mark(field: FieldInfo, name: str) -> Any:
    """What `option` was told under this name."""
    marks = field.json_schema_extra
    return marks.get(name) if isinstance(marks, dict) else None


def fields_of(cls: type[Options]) -> dict[str, FieldInfo]:
    """The options in the order in which they are shown: the first group, the class's own, the other groups; in each the required
    ones first."""
    groups = [base for base in cls.__bases__ if issubclass(base, Options) and base is not Options]
    shown: dict[str, FieldInfo] = {}
    for group in (*groups[:1], cls, *groups[1:]):
        own = {name: cls.model_fields[name] for name in group.__annotations__ if name in cls.model_fields}
        shown |= dict(
            sorted(own.items(), key=lambda pair: (not mark(pair[1], "positional"), not pair[1].is_required()))
        )
    return shown


def flag(name: str) -> str:
    """ "max_drop" -> "--max-drop"; "for_", which Python wants for its keyword, -> "--for"."""
    return "--" + name.rstrip("_").replace("_", "-")


def make(cls: type[AnyOptions], values: Mapping[str, Any]) -> AnyOptions:
    """Validated options. Raises: UsageError, one line in the words of the command line."""
    for name in values:
        if name not in cls.model_fields:
            near = difflib.get_close_matches(name, cls.model_fields, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Known: {', '.join(fields_of(cls))}"
            raise UsageError(f"there is no option {name!r}.{hint}")
    try:
        return cls(**values)
    except ValidationError as error:
        raise UsageError(_first_line(error)) from None


def _first_line(error: ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "the options"
    if first["type"] == "missing":
        return f"{flag(name)} is missing"
    expected = first["msg"].replace("Input should be", "expected")
    expected = expected.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")
    return f"{flag(name)} is {first['input']!r:.80}: {expected[0].lower() + expected[1:]}"
