"""From an options model to a subcommand: names, types, bounds, choices, defaults and help all come from its fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from axformer_onnx.cli.verbs import VERBS
from axformer_onnx.options import AnyOptions, Registry, fields_of, flag, make, mark


def command(
    verb: str, model: type[AnyOptions], more: str = "", own: Sequence[click.Option] = ()
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function of (validated options, print JSON) the subcommand `verb`.

    more   what `--help` says below the line of `VERBS`
    own    options of the command line alone, which the function gets by keyword
    """

    def decorate(run: Callable[..., None]) -> click.Command:
        def callback(as_json: bool, **values: Any) -> None:
            more = {str(one.name): values.pop(str(one.name)) for one in own}
            run(make(model, values), as_json, **more)

        fields = {name: field for name, field in fields_of(model).items() if mark(field, "cli")}
        parameters: list[click.Parameter] = [_parameter(name, field) for name, field in fields.items()]
        parameters += own
        parameters.append(click.Option(["--json", "as_json"], is_flag=True, help="Print JSON for machines."))
        return click.Command(verb, callback=callback, params=parameters, help=f"{VERBS[verb]}\n\n{more}")

    return decorate


def print_json(data: Any) -> None:
    """For machines, on stdout."""
    click.echo(json.dumps(data, indent=2, default=list))


def _parameter(name: str, field: FieldInfo) -> click.Parameter:
    kind, several = _kind(field)
    if mark(field, "positional"):
        metavar = mark(field, "metavar")
        return click.Argument([name], type=kind, nargs=-1 if several else 1, required=True, metavar=metavar)
    short = mark(field, "short")
    names, described = [flag(name), *([short] if short else [])], _help(field)
    if field.annotation is bool:
        return click.Option([*names, name], is_flag=True, help=described)
    if field.is_required():
        return click.Option([*names, name], type=kind, required=True, help=described)
    shown = field.default not in (None, ())
    return click.Option(
        [*names, name], type=kind, multiple=several, default=field.default, show_default=shown, help=described
    )


def _help(field: FieldInfo) -> str:
    choices = mark(field, "choices")
    known = [f" {item.name}: {item.help}." for item in choices] if isinstance(choices, Registry) else []
    return f"{field.description}{''.join(known)}"


def _kind(field: FieldInfo) -> tuple[Any, bool]:
    """The type in click's terms, and whether it may be given several times."""
    choices = mark(field, "choices")
    if isinstance(choices, Registry):
        return click.Choice(choices.names), False
    parts = [part for part in _parts(field.annotation) if part is not type(None)]
    if parts and all(get_origin(part) is Literal for part in parts):
        return click.Choice([value for part in parts for value in get_args(part)]), False
    annotation = parts[0] if parts else str
    bounds = list(field.metadata)
    several = get_origin(annotation) is tuple and annotation is not None and _repeats(field)
    if several:
        annotation = get_args(annotation)[0]
        if get_origin(annotation) is Annotated:
            annotation, *extra = get_args(annotation)
            bounds += [bound for part in extra for bound in getattr(part, "metadata", [part])]
    return _click_type(annotation, bounds), several


def _repeats(field: FieldInfo) -> bool:
    """A tuple that is given item by item; the others are one text with commas."""
    return bool(mark(field, "positional")) or field.default == ()


def _parts(annotation: Any) -> tuple[Any, ...]:
    return (annotation,) if get_origin(annotation) in (tuple, Literal, None) else get_args(annotation)


def _click_type(annotation: Any, bounds: list[Any]) -> Any:
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    if annotation is Path:
        return click.Path(path_type=Path)
    if annotation not in (int, float):
        return str
    limits: dict[str, Any] = {}
    for bound in bounds:
        for attribute, side, is_open in (("ge", "min", 0), ("gt", "min", 1), ("le", "max", 0), ("lt", "max", 1)):
            if getattr(bound, attribute, None) is not None:
                limits |= {side: getattr(bound, attribute), f"{side}_open": bool(is_open)}
    if not limits:
        return annotation
    return (click.IntRange if annotation is int else click.FloatRange)(**limits)
