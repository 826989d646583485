"""The structure of the code: no import circles, neither between files nor between rooms; every room has a face."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"axformer_passes": ROOT / "passes" / "axformer_passes", "axformer_onnx": ROOT / "axformer_onnx"}
MOST_FILES = 13
"""In one room, its face included."""


@cache
def imports() -> dict[str, frozenset[str]]:
    """What every module imports of the project, type-checking imports and those inside functions included."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    return {module: frozenset(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def rooms() -> list[Path]:
    """The folders of both packages, themselves left out."""
    return sorted(
        face.parent for root in PACKAGES.values() for face in root.rglob("__init__.py") if face.parent != root
    )


def room_of(module: str) -> str:
    """The room that a module stands in; a module on top is a room of its own."""
    package, *inner = module.split(".")
    path = PACKAGES[package].joinpath(*inner)
    return module if path.is_dir() or len(inner) < 2 else module.rpartition(".")[0]


def circle(arrows: Mapping[str, frozenset[str]]) -> list[str]:
    """A circle of these arrows; empty where there is none."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_files_import_one_another_in_a_circle() -> None:
    assert circle(imports()) == []


def test_no_rooms_import_one_another_in_a_circle() -> None:
    between: dict[str, set[str]] = defaultdict(set)
    for module, imported in imports().items():
        between[room_of(module)] |= {room_of(other) for other in imported} - {room_of(module)}
    assert circle({room: frozenset(others) for room, others in between.items()}) == []


def test_a_circle_is_found_where_there_is_one() -> None:
    assert circle({"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a")})


def test_passes_import_nothing_of_the_tool() -> None:
    found = {m for m, others in imports().items() if m.startswith("axformer_passes") for o in others if "_onnx" in o}
    assert found == set()


@pytest.mark.parametrize("room", rooms(), ids=lambda room: str(room.relative_to(ROOT)))
def test_a_room_has_a_face_that_says_what_it_is_and_about_a_dozen_files(room: Path) -> None:
    tree = ast.parse((room / "__init__.py").read_text(encoding="utf-8"))
    assert len((ast.get_docstring(tree) or "").split()) >= 8
    defined = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert defined == [], "a face hands names on; what is computed stands in a file with a name"
    assert len(list(room.glob("*.py"))) <= MOST_FILES


def test_other_rooms_are_entered_by_their_face() -> None:
    inner = []
    for module, imported in imports().items():
        for other in imported:
            room = room_of(other)
            if room not in (other, room_of(module)) and not module.startswith(f"{room}."):
                inner.append(f"{module} imports {other}, expected {room}")
    assert inner == []
