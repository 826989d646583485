"""Lift: what lowering took apart becomes the fused node again, with the sizes that a cut has left.

    step -> step' -> ... -> step   ->   fused'(x, weights', ...)

The nodes of a group say what the fused node would be now: inputs from where they are read, head counts from the constants of
Reshape and Split. Its rule is then run on that node, and only where every step comes out as it stands in the graph,
and nothing else reads between the steps, is it written. So lifting undoes lowering or does nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import SHARED_FROM, constant, initializer
from axformer_passes.prepare.fused.lowering import MEMBER, Group, Member
from axformer_passes.prepare.recipes import (
    RULES,
    Fixed,
    FusedInput,
    FusedInputPiece,
    FusedNode,
    Lowered,
    Made,
    NotLowered,
    Recipe,
    RecipeStep,
    Ref,
    Rule,
)


@dataclasses.dataclass
class _Scene:
    """The graph while it is lifted.

    order    place of each node
    named    every value of the graph by its name
    joined   the vectors put together so far, by the tensors of their pieces: shared pieces make one shared vector
    """

    graph: ir.Graph
    order: dict[ir.Node, int]
    named: dict[str, ir.Value]
    joined: dict[tuple[int, ...], tuple[ir.TensorProtocol, list[Any]]] = dataclasses.field(default_factory=dict)


def lift(model: ir.Model) -> int:
    """Write every group that still is its fused node as that node, in place; returns how many.

    Groups that passes have changed otherwise (hard attention, a bypassed block) stay primitive; dead ones are left to the
    clean-up. Constants that only the lowering needed go with it.
    """
    scene = _scene(model.graph)
    groups: dict[Group, dict[str, ir.Node]] = {}
    for node in model.graph:
        member = node.meta.get(MEMBER)
        if member is not None:
            groups.setdefault(member.group, {})[member.role] = node
    lifted = 0
    for group, members in groups.items():
        form = _now(scene, group, members)
        if form is not None and _whole(scene, group, members, form):
            _write(scene, group, members, form)
            lifted += 1
    return lifted


def _scene(graph: ir.Graph) -> _Scene:
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    return _Scene(graph, {node: i for i, node in enumerate(graph)}, {str(v.name): v for v in values})


def _now(scene: _Scene, group: Group, members: Mapping[str, ir.Node]) -> FusedNode | None:
    """The fused node that the members describe; None where they do not describe one."""
    rule: Rule = RULES[group.operator]
    if len(members) != group.steps or not _alive(group, members):
        return None
    inputs = _inputs(scene, group, members)
    attributes = dict(group.attributes)
    form = FusedNode(group.op_type, attributes, tuple(inputs), group.read, group.opset, group.facts)
    try:
        attributes.update(rule.narrow(Lowered(members, form)))
    except (LookupError, ValueError, TypeError):
        return None
    return form


def _alive(group: Group, members: Mapping[str, ir.Node]) -> bool:
    finals = [members[ref.role].outputs[ref.output] for ref in group.results.values()]
    return any(v.uses() or v.is_graph_output() for v in finals)


def _inputs(scene: _Scene, group: Group, members: Mapping[str, ir.Node]) -> list[ir.Value | None]:
    """What the members read from outside, by slot of the fused node; parts of a vector are put together again."""
    given: dict[int, ir.Value | None] = {}
    parts: dict[int, dict[FusedInputPiece, ir.Value | None]] = {}
    for node in members.values():
        for value, ref in zip(node.inputs, _refs(node), strict=False):
            if isinstance(ref, FusedInput):
                given.setdefault(ref.slot, value)
            elif isinstance(ref, FusedInputPiece):
                parts.setdefault(ref.slot, {})[ref] = value
    inputs: list[ir.Value | None] = []
    for slot, name in enumerate(group.inputs):
        if slot in parts:
            inputs.append(_joined(scene, name, parts[slot]))
        elif slot in given or name is None:
            inputs.append(given.get(slot))
        else:  # read by the fused node alone: its lowering has no use for it
            inputs.append(scene.named.get(name))
    return inputs


def _refs(node: ir.Node) -> tuple[Ref | None, ...]:
    member: Member = node.meta[MEMBER]
    return member.refs


def _joined(scene: _Scene, name: str | None, parts: Mapping[FusedInputPiece, ir.Value | None]) -> ir.Value | None:
    """The vector whose pieces these are: the original initializer, or one that is not registered yet."""
    arrays = {ref: array for ref, value in parts.items() if (array := constant(value)) is not None}
    if len(arrays) != len(parts):
        return None
    original = scene.graph.initializers.get(name) if name is not None else None
    if original is not None and all(array.tobytes() == ref.array.tobytes() for ref, array in arrays.items()):
        return original
    if len(arrays) != next(iter(arrays)).count:
        return None
    pieces = [parts[ref] for ref in sorted(parts, key=lambda ref: ref.number)]
    key = tuple(id(piece.const_value) for piece in pieces if piece is not None)
    array = np.concatenate([arrays[ref] for ref in sorted(arrays, key=lambda ref: ref.number)])
    held = [piece.const_value for piece in pieces if piece is not None]  # so that their ids stay their own
    tensor = scene.joined.setdefault(key, (ir.tensor(array, name=name), held))[0]
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)


# -- is it still the node? -----------------------------------------------------------------------------------------------


def _whole(scene: _Scene, group: Group, members: Mapping[str, ir.Node], form: FusedNode) -> bool:
    if any(name is not None and value is None for name, value in zip(group.inputs, form.inputs, strict=True)):
        return False
    recipe = Recipe(form)
    try:
        RULES[group.operator].lower(form, recipe)
    except (NotLowered, ValueError, TypeError, LookupError, ArithmeticError):
        return False
    alike = len(recipe.steps) == group.steps and recipe.results.items() >= group.results.items()
    return alike and all(_same(s, members, form) for s in recipe.steps) and _closed(scene, group, members, form)


def _same(step: RecipeStep, members: Mapping[str, ir.Node], form: FusedNode) -> bool:
    """Does the member of this role do what the step says, and nothing else?"""
    node = members.get(step.role)
    if node is None or (node.op_type, node.domain, len(node.outputs)) != (step.op_type, step.domain, step.outputs):
        return False
    attributes = {name: attr.value for name, attr in node.attributes.items()}
    if attributes != {name: attr.value for name, attr in step.attributes.items()}:
        return False
    if len(node.inputs) != len(step.inputs):
        return False
    return all(_reads(value, ref, members, form) for value, ref in zip(node.inputs, step.inputs, strict=True))


def _reads(value: ir.Value | None, ref: Ref | None, members: Mapping[str, ir.Node], form: FusedNode) -> bool:
    if ref is None or value is None:
        return ref is None and value is None
    if isinstance(ref, Made):
        return value is members[ref.role].outputs[ref.output]
    if isinstance(ref, FusedInput):
        expected = form.inputs[ref.slot]
        assert expected is not None
        same_tensor = value.const_value is not None and value.const_value is expected.const_value
        return value is expected or same_tensor
    assert isinstance(ref, FusedInputPiece | Fixed)
    found = constant(value)
    return found is not None and found.dtype == ref.array.dtype and np.array_equal(found, ref.array)


def _closed(scene: _Scene, group: Group, members: Mapping[str, ir.Node], form: FusedNode) -> bool:
    """Nothing outside reads between the steps; what the node reads stands before the last step, who reads it behind."""
    order = scene.order
    inside, last = set(members.values()), max(order[node] for node in members.values())
    finals = {members[ref.role].outputs[ref.output] for ref in group.results.values()}
    if any(order.get(made, -1) > last for value in form.inputs if value is not None and (made := value.producer())):
        return False
    for node in inside:
        for value in node.outputs:
            if value not in finals and (value.is_graph_output() or any(use.node not in inside for use in value.uses())):
                return False
            if any(use.node not in inside and order.get(use.node, last + 1) < last for use in value.uses()):
                return False
    return True


# -- write ---------------------------------------------------------------------------------------------------------------


def _write(scene: _Scene, group: Group, members: Mapping[str, ir.Node], form: FusedNode) -> None:
    graph, order = scene.graph, scene.order
    place = max(members.values(), key=order.__getitem__)
    inputs = [_registered(graph, value) for value in form.inputs]
    outputs = []
    for number, (name, kind, shape, metadata) in enumerate(group.outputs):
        value = ir.Value(name=None if number in group.results else name, type=kind, shape=shape)
        value.metadata_props.update(metadata)
        outputs.append(value)
    node = ir.Node(
        group.domain,
        group.op_type,
        inputs,
        list(form.attributes.values()),
        overload=group.overload,
        outputs=outputs,
        version=group.version,
        name=group.name,
        doc_string=group.doc_string,
        metadata_props=dict(group.metadata_props),
    )
    graph.insert_after(place, node)
    order[node] = order[place]
    _redirect(group, members, outputs)
    constants = {v for member in members.values() for v in member.inputs if v is not None and v.const_value is not None}
    graph.remove(list(members.values()), safe=True)
    for number, (name, *_) in enumerate(group.outputs):
        outputs[number].name = name
        scene.named[str(name)] = outputs[number]
    for value in constants:
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(str(value.name), None)


def _redirect(group: Group, members: Mapping[str, ir.Node], outputs: list[ir.Value]) -> None:
    """Readers of the results read the fused node; a result that passes have narrowed has lost its stated shape."""
    for number, ref in group.results.items():
        old = members[ref.role].outputs[ref.output]
        outputs[number].shape, outputs[number].type = old.shape, old.type
        old.replace_all_uses_with(outputs[number], replace_graph_outputs=True)


def _registered(graph: ir.Graph, value: ir.Value | None) -> ir.Value | None:
    """A joined vector becomes an initializer now."""
    if value is None or value.const_value is None or value.producer() is not None:
        return value
    if graph.initializers.get(str(value.name)) is value:
        return value
    assert value.const_value is not None
    new = initializer(graph, f"{value.name}_narrowed", value.const_value.numpy())
    new.const_value, new.meta[SHARED_FROM] = value.const_value, f"{value.name}_narrowed"
    return new
