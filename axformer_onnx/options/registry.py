"""Named objects that others add: one file registers one object, and nothing else names it."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from axformer_onnx.errors import UsageError


class Named(Protocol):
    """What can be registered: it has a name, and a line that says what it is."""

    name: str
    help: str


Item = TypeVar("Item", bound=Named)


class Registry(Generic[Item]):
    """Objects by name, in the order of registration.

    what    what the objects are, for messages: "search"
    home    the module whose import registers our own; it is imported on the first look-up, so that this registry can stand
            below what is registered
    """

    def __init__(self, what: str, home: str) -> None:
        self._what, self._home = what, home
        self._found: dict[str, Item] = {}

    def add(self, item: Item) -> Item:
        """Register `item`; a name is taken once."""
        assert item.name not in self._found, f"two objects are registered as {self._what} {item.name!r}"
        self._found[item.name] = item
        return item

    def __getitem__(self, name: str) -> Item:
        """The object called `name`. Raises: UsageError that lists the names, and the nearest one."""
        self._load()
        if name in self._found:
            return self._found[name]
        near = difflib.get_close_matches(str(name), self._found, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"unknown {self._what} {name!r}.{hint} Known: {', '.join(self._found)}")

    def __iter__(self) -> Iterator[Item]:
        self._load()
        return iter(self._found.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Every registered name."""
        return tuple(item.name for item in self)

    def _load(self) -> None:
        importlib.import_module(self._home)
