"""Take `If` nodes away whose condition is always the same: two sizes that are one and the same size.

    If(Not(Equal(Shape(q)[-2], Shape(k)[-2])), then, else)  ->  the nodes of else

Exporters that script a function write such tests (torch.jit.script: DeBERTa's `if query.size(-2) != key.size(-2)`). Sizes are
polynomials in the sizes of the inputs; two that agree on inputs of several unlike sizes agree everywhere. That two sizes *differ*
on some inputs proves nothing (a batch of one may make them equal), so such a test stays, and its tensors stay whole.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir

from axformer_passes.graph import fresh
from axformer_passes.prepare.walkable import isolate
from axformer_passes.probe import Runner, Step, traced

_STEPS = (Step(0, 0, 0), Step(1, 1, 0), Step(3, 3, 0))
_SHAPED = frozenset({"Shape", "Size"})
_ARITHMETIC = _SHAPED | {"Add", "Cast", "Concat", "Gather", "Identity", "Max", "Mul", "Reshape", "Slice", "Sub"}
_ARITHMETIC |= {"Squeeze", "Unsqueeze"}


def take_decided(model: ir.Model, runner: Runner) -> int:
    """Put the branch that is always taken in the place of each decided `If` of the main graph; returns how many went."""
    ifs = [node for node in model.graph if node.op_type == "If"]
    tests = {node: test for node in ifs if (test := _equality(node.inputs[0])) is not None}
    if not tests:
        return 0
    always = _always_equal(model, {str(equal.outputs[0].name) for equal, _ in tests.values()}, runner)
    taken = 0
    for node, (equal, negated) in tests.items():
        if str(equal.outputs[0].name) in always:
            _inline(model.graph, node, "else_branch" if negated else "then_branch")
            taken += 1
    if taken:
        isolate(model)
    return taken


def _equality(value: ir.Value | None) -> tuple[ir.Node, bool] | None:
    """(the Equal node behind a condition, is it negated?); None unless both of its sides are sizes."""
    negated = False
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Cast", "Identity", "Not", "Squeeze"):
        negated ^= node.op_type == "Not"
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != "Equal" or not all(_is_size(v) for v in node.inputs):
        return None
    return node, negated


def _is_size(value: ir.Value | None) -> bool:
    """Is this computed by plain arithmetic from shapes and constants alone?"""
    queue, seen = [value], set[int]()
    while queue:
        one = queue.pop()
        node = one.producer() if one is not None else None
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if node is None:
            if one.const_value is None:
                return False
        elif node.op_type not in _ARITHMETIC:
            return False
        elif node.op_type not in _SHAPED:
            queue.extend(node.inputs)
    return True


def _always_equal(model: ir.Model, names: set[str], runner: Runner) -> set[str]:
    """Those of the tensors `names` that hold true alone at inputs of all of `_STEPS`."""
    found = traced(model, runner, _STEPS, names=names) or [{}]
    return {name for name in names if all(name in values and np.asarray(values[name]).all() for values in found)}


def _inline(graph: ir.Graph, node: ir.Node, branch: str) -> None:
    inner = node.attributes[branch].as_graph()
    for name, value in list(inner.initializers.items()):
        del inner.initializers[name]
        value.name = fresh(graph, name)
        graph.register_initializer(value)
    steps, outputs = list(inner), list(inner.outputs)
    inner.outputs.clear()
    inner.remove(steps)
    for value in itertools.chain.from_iterable(step.outputs for step in steps):
        value.name = fresh(graph, str(value.name))
    graph.insert_before(node, steps)
    for old, new in zip(node.outputs, outputs, strict=True):
        name = str(old.name)
        old.name = fresh(graph, f"{name}_unused")
        made = new.producer()
        if made is None or made.graph is not graph or made not in steps:  # a tensor of the graph around it
            out = ir.Value(name=name, shape=old.shape, type=old.type)
            graph.insert_before(node, ir.node("Identity", [new], outputs=[out]))
            new = out
        else:
            new.name = name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
