"""The face that type checkers see is the one that is called."""

from __future__ import annotations

import ast
from pathlib import Path

import stub

import axformer_onnx as ax


def test_the_stub_states_the_options_of_today() -> None:
    written = stub.FILE.read_text(encoding="utf-8")
    assert ast.dump(ast.parse(written)) == ast.dump(ast.parse(stub.stub())), "write it again: make stub"


def test_a_checker_is_told_what_the_options_are() -> None:
    functions = {node.name: node for node in ast.parse(stub.stub()).body if isinstance(node, ast.FunctionDef)}
    spelled = {
        argument.arg: ast.unparse(argument.annotation)
        for argument in functions["optimize"].args.kwonlyargs
        if argument.annotation is not None
    }
    assert spelled["speedup"] == "float | None" and spelled["task"] == "str | Task | None"
    assert spelled["output"] == "str | Path | None" and spelled["effort"] == "Literal['low', 'medium', 'high']"
    assert ast.unparse(functions["optimize"].returns or ast.Constant(None)) == "OptimizeResult"


def test_a_users_script_that_is_type_checked_uses_every_public_name() -> None:
    script = ast.parse((Path(__file__).parent / "typed_user.py").read_text(encoding="utf-8"))
    used = {
        node.attr
        for node in ast.walk(script)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ax"
    }
    assert used - {"__all__"} == set(ax.__all__)
