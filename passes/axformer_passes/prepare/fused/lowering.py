"""Lower: write every fused node that has a rule as its primitive steps, and remember what it was.

    fused(x, weights, ...)   ->   step -> step -> ... -> step        outputs keep their names; inner names are made from them

Each new node carries in its `meta` the group that it belongs to, its role there and what its inputs are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from axformer_passes.graph import SHARED_FROM, fresh, initializer, source_name
from axformer_passes.prepare.recipes import (
    RULES,
    Fixed,
    FusedInput,
    FusedInputPiece,
    FusedNode,
    Made,
    NotLowered,
    Recipe,
    Ref,
    Rule,
    Types,
)

MEMBER = "axformer.fused"
"""Key of a `Member` in the meta of a lowered node."""
NOT_LOWERED = "axformer.not_lowered"
"""Key in the meta of a node that stays, whose value says why."""


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """A fused node that was lowered: all that is needed to write it again. Names and plain values, so that a clone of the
    graph can be lifted, too.

    inputs    name of each input (None: left out)
    outputs   name, type, shape and metadata of each output
    results   output number -> the role and output that make it
    """

    domain: str
    op_type: str
    overload: str
    version: int | None
    name: str | None
    doc_string: str | None
    metadata_props: Mapping[str, str]
    attributes: Mapping[str, ir.Attr]
    inputs: tuple[str | None, ...]
    outputs: tuple[tuple[str | None, ir.TypeProtocol | None, ir.Shape | None, Mapping[str, str]], ...]
    results: Mapping[int, Made]
    read: tuple[bool, ...]
    opset: int
    facts: dict[str, Any]
    steps: int

    @property
    def operator(self) -> str:
        """The key of its rule."""
        return _operator(self.domain, self.op_type)


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """What one lowered node is in its group; `refs` says what each of its inputs is."""

    group: Group
    role: str
    refs: tuple[Ref | None, ...]


class Pieces:
    """Pieces of vectors as initializers: those of a vector that several nodes share are uses of one tensor (`prepare.share`)."""

    def __init__(self) -> None:
        self._tensors: dict[tuple[int, int, int], tuple[ir.TensorProtocol, ir.TensorProtocol]] = {}

    def value(self, graph: ir.Graph, whole: ir.Value | None, ref: FusedInputPiece) -> ir.Value:
        """A new initializer for one use of a piece of `whole`."""
        assert whole is not None and whole.const_value is not None
        name = f"{source_name(whole)}_part_{ref.number}"
        value = initializer(graph, name, ref.array)
        assert value.const_value is not None
        key = id(whole.const_value), ref.number, ref.count
        # the whole is held, too: its id stays its own
        value.const_value = self._tensors.setdefault(key, (value.const_value, whole.const_value))[0]
        value.meta[SHARED_FROM] = name
        return value


def lower(model: ir.Model) -> None:
    """Replace in place every fused node of the main graph whose form has a lowering; the others stay. Never raises for them."""
    graph, types, pieces = model.graph, Types(), Pieces()
    opset = model.opset_imports.get("", 1)
    for node in list(graph):
        rule = RULES.get(_operator(node.domain, node.op_type))
        types.see(node)
        if rule is None:
            continue
        form = _form(node, opset, types)
        recipe = Recipe(form)
        reason = _attempt(rule, form, recipe)
        if reason is None:
            _emit(graph, node, recipe, types, pieces)
        else:
            node.meta[NOT_LOWERED] = reason


def _attempt(rule: Rule, form: FusedNode, recipe: Recipe) -> str | None:
    """Write the steps of a node; the reason where it has none."""
    try:
        rule.lower(form, recipe)
    except NotLowered as reason:
        return str(reason)
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        return f"its attributes and inputs do not fit together: {error}"
    missing = [number for number, read in enumerate(form.read) if read and number not in recipe.results]
    return f"output {missing[0]} is read, which its steps do not make" if missing else None


def _operator(domain: str, op_type: str) -> str:
    return op_type if domain in ("", "ai.onnx") else f"{domain}::{op_type}"


def _form(node: ir.Node, opset: int, types: Types) -> FusedNode:
    facts: dict[str, Any] = {}
    for slot, value in enumerate(node.inputs):
        facts[f"rank {slot}"], facts[f"dtype {slot}"] = types.rank(value), types.dtype(value)
    read = tuple(bool(v.uses()) or v.is_graph_output() for v in node.outputs)
    return FusedNode(node.op_type, dict(node.attributes), tuple(node.inputs), read, opset, facts)


def _emit(graph: ir.Graph, node: ir.Node, recipe: Recipe, types: Types, pieces: Pieces) -> None:
    group = _group(node, recipe)
    base, made = str(node.outputs[0].name), dict[Made, ir.Value]()
    for step in recipe.steps:
        outputs = [ir.Value(name=fresh(graph, f"{base}_{step.role}")) for _ in range(step.outputs)]
        inputs = [
            pieces.value(graph, node.inputs[ref.slot], ref)
            if isinstance(ref, FusedInputPiece)
            else _value(graph, node, ref, made, f"{base}_{step.role}")
            for ref in step.inputs
        ]
        new = ir.Node(step.domain, step.op_type, inputs, list(step.attributes.values()), outputs=outputs)
        new.metadata_props.update(node.metadata_props)
        new.meta[MEMBER] = Member(group, step.role, step.inputs)
        graph.insert_before(node, new)
        made.update({Made(step.role, i): value for i, value in enumerate(outputs)})
        types.see(new)
    replaced = [(node.outputs[number], made[ref]) for number, ref in group.results.items()]
    names = [old.name for old, _ in replaced]
    for old, new_value in replaced:
        new_value.type, new_value.shape = old.type, old.shape
        new_value.metadata_props.update(old.metadata_props)
        types.state(new_value, types.dtype(old), types.rank(old))
        old.replace_all_uses_with(new_value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    for name, (_, new_value) in zip(names, replaced, strict=True):
        new_value.name = name


def _value(graph: ir.Graph, node: ir.Node, ref: Ref | None, made: dict[Made, ir.Value], base: str) -> ir.Value | None:
    if ref is None:
        return None
    if isinstance(ref, FusedInput):
        return node.inputs[ref.slot]
    if isinstance(ref, Made):
        return made[ref]
    assert isinstance(ref, Fixed)
    return initializer(graph, f"{base}_const", ref.array)


def _group(node: ir.Node, recipe: Recipe) -> Group:
    results = {number: ref for number, ref in recipe.results.items() if isinstance(ref, Made)}
    return Group(
        domain=node.domain,
        op_type=node.op_type,
        overload=node.overload,
        version=node.version,
        name=node.name,
        doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props),
        attributes=dict(node.attributes),
        inputs=tuple(v.name if v is not None else None for v in node.inputs),
        outputs=tuple((v.name, v.type, v.shape, dict(v.metadata_props)) for v in node.outputs),
        results={n: r for n, r in results.items() if n < len(node.outputs)},
        read=recipe.form.read,
        opset=recipe.form.opset,
        facts=recipe.form.facts,
        steps=len(recipe.steps),
    )
