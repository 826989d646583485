"""Products of one tensor in one product: the weights side by side, and one Split behind.

    x @ Wq + bq, x @ Wk, x @ Wv + bv    ->    Split(x @ [Wq Wk Wv] + [bq 0 bv])

of numbers, and of integers with a scale a column (MatMulInteger -> Cast -> Mul -> Add). Every number is computed as before; only
which of them a kernel sums in one block may change, and with it the rounding of sums. What is alike behind all parts moves
before the Split: a Cast, a factor or an addend that is constant, or computed of such.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import constant, fresh, initializer

_STEPS = frozenset({"Cast", "Mul", "Add"})


@dataclasses.dataclass
class _Pack:
    """Parts that are becoming one tensor: its columns so far, and those that it replaces, in order."""

    whole: ir.Value
    parts: list[ir.Value]
    widths: list[int]


def pack_products(model: ir.Model) -> tuple[str, ...]:
    """Edit `model` in place; returns the tensors whose products became one. The caller cleans up."""
    if model.opset_imports.get("", 1) < 11:  # Split counts no axes from the end
        return ()
    groups: dict[tuple[object, ...], list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        key = _key(node)
        if key is not None:
            groups[key].append(node)
    packed = [nodes for nodes in groups.values() if len(nodes) > 1]
    for nodes in packed:
        _pack(model, nodes)
    if packed:
        model.graph.sort()
    return tuple(str(nodes[0].inputs[0].name) for nodes in packed)  # type: ignore[union-attr]


def _key(node: ir.Node) -> tuple[object, ...] | None:
    """What products have in common that can be one: all but the columns of their weights. None: it is no such product."""
    if node.domain or node.op_type not in ("MatMul", "MatMulInteger") or node.outputs[0].is_graph_output():
        return None
    weight = node.inputs[1]
    array = constant(weight)
    if weight is None or array is None or array.ndim != 2 or len(weight.uses()) != 1 or weight.is_graph_output():
        return None
    if constant(node.inputs[0]) is not None:
        return None
    if node.op_type == "MatMulInteger" and len(node.inputs) > 3 and node.inputs[3] is not None:
        zero = constant(node.inputs[3])
        if zero is None or zero.any():
            return None
    others = tuple(node.inputs[2:3]) if node.op_type == "MatMulInteger" else ()
    return node.op_type, node.inputs[0], others, array.dtype, array.shape[0]


def _pack(model: ir.Model, nodes: list[ir.Node]) -> None:
    graph, first = model.graph, nodes[0]
    arrays = [np.asarray(constant(node.inputs[1])) for node in nodes]
    name = str(first.outputs[0].name)
    weight = initializer(graph, f"{name}_packed_weight", np.concatenate(arrays, axis=1))
    inputs = [first.inputs[0], weight, *first.inputs[2:3]]
    if len(first.inputs) > 3 and first.inputs[3] is not None:
        inputs.append(initializer(graph, f"{name}_packed_zero", np.zeros((), arrays[0].dtype)))
    whole = _put(graph, first, first.op_type, inputs, {}, f"{name}_packed")
    pack = _Pack(whole, [node.outputs[0] for node in nodes], [a.shape[1] for a in arrays])
    while _moved(graph, pack):
        pass
    _split(model, pack)


def _moved(graph: ir.Graph, pack: _Pack) -> bool:
    """Carry out on the whole what comes behind every part; False where that differs from part to part."""
    users = [_only_user(part) for part in pack.parts]
    adds = [user is not None and user.op_type == "Add" and not user.domain for user in users]
    if any(adds):
        return _added(graph, pack, [user if add else None for user, add in zip(users, adds, strict=True)])
    first = users[0]
    if first is None or first.domain or first.op_type not in _STEPS:
        return False
    others = list[ir.Value]()
    for part, user in zip(pack.parts, users, strict=True):
        if user is None or (user.domain, user.op_type) != (first.domain, first.op_type) or _said(user) != _said(first):
            return False
        others += [v for v in user.inputs if v is not part and v is not None]
    joined = list[ir.Value]()
    if first.op_type != "Cast":
        factor = _side_by_side(graph, first, others, pack.widths) if len(others) == len(users) else None
        if factor is None:
            return False
        joined = [factor]
    name = f"{first.outputs[0].name}_packed"
    pack.whole = _put(graph, first, first.op_type, [pack.whole, *joined], first.attributes, name)
    pack.parts = [user.outputs[0] for user in users if user is not None]
    return True


def _added(graph: ir.Graph, pack: _Pack, users: list[ir.Node | None]) -> bool:
    """Constant vectors, zeros where a part has none."""
    vectors = list[np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None]()
    for part, user, width in zip(pack.parts, users, pack.widths, strict=True):
        array = (
            None
            if user is None
            else next((a for v in user.inputs if v is not part and (a := constant(v)) is not None), None)
        )
        if user is not None and (array is None or array.size != width or array.ndim != 1):
            return False
        vectors.append(array)
    kind = next(a.dtype for a in vectors if a is not None)
    row = np.concatenate([np.zeros(n, kind) if a is None else a for a, n in zip(vectors, pack.widths, strict=True)])
    first = next(user for user in users if user is not None)
    name = f"{first.outputs[0].name}_packed"
    pack.whole = _put(graph, first, "Add", [pack.whole, initializer(graph, f"{name}_bias", row)], {}, name)
    pack.parts = [p if user is None else user.outputs[0] for p, user in zip(pack.parts, users, strict=True)]
    return True


def _side_by_side(graph: ir.Graph, at: ir.Node, values: list[ir.Value], widths: list[int]) -> ir.Value | None:
    """One operand for the whole: constants side by side, one number for all, or what is computed of such in the same way."""
    arrays = [constant(v) for v in values]
    if all(a is not None and a.ndim == 1 and a.size == n for a, n in zip(arrays, widths, strict=True)):
        return initializer(graph, f"{values[0].name}_packed", np.concatenate([a for a in arrays if a is not None]))
    if all(v is values[0] for v in values) and _is_one_number(values[0]):
        return values[0]
    makers = [v.producer() for v in values]
    if any(
        m is None or m.domain or m.op_type != "Mul" or len(v.uses()) != 1 for m, v in zip(makers, values, strict=True)
    ):
        return None
    sides = [
        _side_by_side(graph, at, [m.inputs[slot] for m in makers if m is not None], widths)  # type: ignore[misc]
        for slot in (0, 1)
    ]
    if sides[0] is None or sides[1] is None:
        return None
    return _put(graph, at, "Mul", [sides[0], sides[1]], {}, f"{values[0].name}_packed")


def _is_one_number(value: ir.Value) -> bool:
    array, maker = constant(value), value.producer()
    if array is not None:
        return bool(array.size == 1 and array.ndim <= 1)
    return maker is not None and maker.op_type == "DynamicQuantizeLinear" and value.index() != 0


def _only_user(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() and len(uses[0].node.outputs) == 1 else None


def _said(node: ir.Node) -> str:
    return repr(sorted((name, repr(attribute.value)) for name, attribute in node.attributes.items()))


def _put(
    graph: ir.Graph, at: ir.Node, operator: str, inputs: list[ir.Value | None], attributes: object, base: str
) -> ir.Value:
    name = fresh(graph, base)
    given = list(attributes.values()) if attributes else []  # type: ignore[attr-defined]
    node = ir.Node("", operator, inputs, given, outputs=[ir.Value(name=name)], name=name)
    graph.insert_before(at, node)
    return node.outputs[0]


def _split(model: ir.Model, pack: _Pack) -> None:
    graph, at = model.graph, pack.whole.producer()
    assert at is not None
    sizes, attributes = [pack.whole], [ir.AttrInt64("axis", -1)]
    if model.opset_imports.get("", 1) < 13:
        attributes.append(ir.AttrInt64s("split", pack.widths))
    else:
        sizes.append(initializer(graph, f"{pack.whole.name}_widths", np.array(pack.widths, np.int64)))
    outputs = [ir.Value(name=fresh(graph, f"{p.name}_part"), shape=p.shape, type=p.type) for p in pack.parts]
    node = ir.Node("", "Split", sizes, attributes, outputs=outputs, name=fresh(graph, f"{pack.whole.name}_split"))
    graph.insert_after(at, node)
    for part, output in zip(pack.parts, outputs, strict=True):
        name = str(part.name)
        ir.convenience.replace_all_uses_with(part, output, replace_graph_outputs=True)
        output.name, part.name = name, fresh(graph, f"{name}_apart")


__all__ = ["pack_products"]
