"""The registry of operators: one record an operator, of all that is known of it.

A file of `axformer_passes.operators` states what its kind of operator does, one decorated function a concern:

    @channels("Softmax")    which labels are united, which the output carries
    @tokens("Softmax")      which tokens of its inputs are needed where some tokens of the output are wanted

Whoever walks a graph asks `known(node)` and leaves alone what nothing is stated of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import onnx_ir as ir

from axformer_passes.graph import operator
from axformer_passes.registry.token_rows import TokenRule
from axformer_passes.registry.walk import ChannelRule


@dataclasses.dataclass
class Operator:
    """What is stated of one operator; None: nothing.

    channels   how labels pass it
    tokens     which tokens of its inputs some tokens of its outputs are made of
    """

    channels: ChannelRule | None = None
    tokens: TokenRule | None = None


OPERATORS: dict[str, Operator] = {}
"""By type; `com.microsoft` operators by "com.microsoft::Type"."""
_UNKNOWN = Operator()
_Rule = TypeVar("_Rule", bound=Callable[..., Any])


def known(node: ir.Node) -> Operator:
    """The record of a node's operator; an empty one where nothing is stated."""
    return OPERATORS.get(operator(node), _UNKNOWN)


def channels(*operators: str) -> Callable[[ChannelRule], ChannelRule]:
    """Register a function as what these operators do to channels."""
    return _stated("channels", operators)


def tokens(*operators: str) -> Callable[[TokenRule], TokenRule]:
    """Register a function as what these operators need of the tokens of their inputs."""
    return _stated("tokens", operators)


def _stated(concern: str, operators: tuple[str, ...]) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        for name in operators:
            record = OPERATORS.setdefault(name, Operator())
            assert getattr(record, concern) is None, f"{name}: its {concern} are stated twice"
            setattr(record, concern, rule)
        return rule

    return register


__all__ = ["OPERATORS", "Operator", "channels", "known", "tokens"]
