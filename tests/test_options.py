"""Options: the journal's header, what the command line is generated from, how messages are spelled in Python."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import pytest

from axformer_onnx import cli
from axformer_onnx.errors import UsageError
from axformer_onnx.options import (
    SEARCHES,
    OptimizeOptions,
    Registry,
    SearchKind,
    fields_of,
    flag,
    in_python,
    make,
)
from axformer_onnx.runtime import run_once
from axformer_onnx.searches import AXFORMER, COMPENSATED, ROBUST
from axformer_passes.apply import apply_plan
from axformer_passes.io import load_model
from axformer_passes.plan import Plan
from axformer_passes.rewrites import REWRITES

MODEL = Path(__file__).parents[1] / "models" / "nli-mini"


def options(**changes: Any) -> OptimizeOptions:
    return make(OptimizeOptions, {"model": MODEL, "task": "mnli", **changes})


def command(verb: str) -> click.Command:
    found = cli.cli.get_command(click.Context(cli.cli), verb)
    assert found is not None
    return found


EXACT = {"readout": "narrow", "constants": "folded", "keys_values": "absorbed", "padding": "kept"}
COMPENSATED_HEADER = {"search": "compensated", "goal": "--max-drop 0", "effort": "medium", "shapes": None, **EXACT}


@pytest.mark.parametrize(
    ("changes", "header"),
    [
        ({}, {**COMPENSATED_HEADER, "seed": 0, "provider": "cpu"}),
        ({"speedup": 2}, {**COMPENSATED_HEADER, "goal": "--speedup 2", "seed": 0, "provider": "cpu"}),
        ({"size": 0.75, "batch": 4, "length": [8, 16], "effort": "low", "seed": 3},
         {**COMPENSATED_HEADER, "goal": "--size 0.75", "effort": "low", "shapes": ((4, 8), (4, 16)), "seed": 3, "provider": "cpu"}),
        ({"refit_classifier": True},
         {"search": "compensated", "goal": "--max-drop 0", "effort": "medium", "shapes": None, "refit_classifier": True, **EXACT,
          "seed": 0, "provider": "cpu"}),
        ({"search": "robust", "k": 7, "readout": "whole", "length": 8},
         {"search": "robust", "k": 7, **EXACT, "readout": "whole", "seed": 0, "provider": "cpu"}),
        ({"search": "axformer", "provider": "cuda", "threads": 1, "jobs": 2},
         {"search": "axformer", "k": 30, **EXACT, "seed": 0, "provider": "cuda"}),
    ],
)  # fmt: skip
def test_the_journals_header_holds_what_it_held_before_byte_for_byte(
    changes: dict[str, Any], header: dict[str, Any]
) -> None:
    """Written down from the format that earlier versions wrote, so that their journals are continued."""
    assert json.dumps(options(**changes).decisive()) == json.dumps(header)


def test_one_goal_is_chosen_and_no_drop_is_the_default() -> None:
    assert options().goal.words == "--max-drop 0"
    assert options(max_drop=1.5).goal.words == "--max-drop 1.5"
    assert options(length=8, batch=2).shapes == ((2, 8),) and options().shapes is None


def test_options_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        options().seed = 1  # type: ignore[misc]


def test_a_task_is_a_name_with_its_columns_or_a_task() -> None:
    named = options(columns="a,b", label="c").task
    assert (named.name, named.columns, named.label) == ("mnli", ("a", "b"), "c")
    assert options(task=named).task is named
    with pytest.raises(UsageError, match="go with a task's name"):
        options(task=named, columns="a,b")


def test_every_option_of_the_command_line_comes_from_a_field_and_takes_its_default() -> None:
    fields, parameters = fields_of(OptimizeOptions), {str(p.name): p for p in command("optimize").params}
    assert parameters.keys() - {"as_json", "dry_run"} == fields.keys()
    context = click.Context(command("optimize"))
    for name, field in fields.items():
        parameter = parameters[name]
        if isinstance(parameter, click.Option):
            assert flag(name) in parameter.opts and str(field.description) in str(parameter.help)
            assert field.is_required() == parameter.required
            if not field.is_required():
                assert (parameter.get_default(context) or None) == (field.default or None), name


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-drop", "-1"], ["--speedup", "1"], ["--size", "1"], ["--seed", "-1"], ["--length", "0"], ["--max-length", "2"],
        ["--readout", "folded"], ["--search", "robst"],
    ],
)  # fmt: skip
def test_bounds_and_choices_of_a_field_are_those_of_the_command_line(arguments: list[str]) -> None:
    with pytest.raises(click.BadParameter) as refused:
        command("optimize").make_context("optimize", [str(MODEL), "--task", "mnli", *arguments])
    assert refused.value.param is not None and arguments[0] in refused.value.param.opts


def test_choices_that_are_added_to_others_are_those_of_the_command_line() -> None:
    (padding,) = (one for one in command("optimize").params if one.name == "padding")
    assert isinstance(padding.type, click.Choice) and tuple(padding.type.choices) == ("kept", "removed", "measured")


@pytest.mark.parametrize(
    ("said", "spelled"),
    [
        ("use another -o, or --overwrite", "use another output, or overwrite=True"),
        ("--max-length is 999", "max_length is 999"),
        ("--task custom needs --columns", "task='custom' needs columns"),
        ("--keys-values absorbed and --k 30", "keys_values='absorbed' and k=30"),
        ("file a--task and --taskforce, non-o, --unknown 3", "file a--task and --taskforce, non-o, --unknown 3"),
        ("try another number with --length.", "try another number with length."),
    ],
)
def test_messages_are_spelled_in_python(said: str, spelled: str) -> None:
    assert in_python(said) == spelled


def test_a_search_is_added_by_registering_it_and_is_then_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(SearchKind):
        name, help, decisive = "mine", "does nothing", ("k",)

    monkeypatch.setattr(SEARCHES, "_found", {**{search.name: search for search in SEARCHES}, "mine": Mine()})
    assert options(search="mine", k=3, max_drop=1).decisive()["k"] == 3
    assert "mine" in SEARCHES.names
    with pytest.raises(UsageError, match="--max-drop 1 is for --search compensated or mine"):
        options(search="robust", max_drop=1)


def test_the_searches_are_three_in_the_order_of_help() -> None:
    assert list(SEARCHES) == [COMPENSATED, ROBUST, AXFORMER]


def test_a_name_is_registered_once() -> None:
    registry: Registry[SearchKind] = Registry("search", "axformer_onnx.searches")
    registry.add(ROBUST)
    with pytest.raises(AssertionError, match="two objects"):
        registry.add(ROBUST)


def test_every_rewrite_is_a_key_of_the_plan_with_the_values_that_the_plan_takes() -> None:
    hints = get_type_hints(Plan)
    for rewrite in REWRITES.values():
        assert set(get_args(hints[rewrite.name])) == {rewrite.on, rewrite.off}
        assert getattr(Plan(), rewrite.name) == rewrite.off
        assert getattr(options(), rewrite.name) == (rewrite.on if rewrite.usual else rewrite.off)
        assert rewrite.walked is not None or rewrite.lifted is not None


@pytest.mark.parametrize("name", REWRITES)
def test_a_plan_runs_the_rewrites_that_it_names_and_no_others(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    ran = list[str]()
    for key, rewrite in list(REWRITES.items()):
        hooks = {
            hook: (lambda model, runner, said=f"{key}.{hook}": ran.append(said))
            for hook in ("walked", "lifted")
            if getattr(rewrite, hook) is not None
        }
        monkeypatch.setitem(REWRITES, key, dataclasses.replace(rewrite, **hooks))
    apply_plan(load_model(MODEL / "model.onnx"), dataclasses.replace(Plan(), **{name: REWRITES[name].on}), run_once)
    assert ran and {said.partition(".")[0] for said in ran} == {name}
