"""Bring a graph into the form that labels can walk: same function, same names, one use per constant.

Each step is exact and changes no arithmetic:

    Constant node                         -> initializer of the same name
    model-local function call             -> its body, inlined
    initializer read by n nodes           -> n initializers that share one tensor object (written once again by `share`)
    Transpose/Cast/... of an initializer
      read by n nodes                     -> n such chains
    Reshape/Squeeze/... of an initializer -> the reshaped initializer
    Concat of matrices                    -> one initializer
    integers that are cast and scaled     -> what they stand for
    equal matrices of several projections -> one (`copies`)
    fused node that has a rule            -> its primitive steps (`fused`)
    product under a mask of blocks        -> products by heads (`block_masks`; exact but for the rounding of sums)
"""

from __future__ import annotations

import copy
import graphlib
from collections import Counter

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from axformer_passes.errors import ModelError
from axformer_passes.graph import (
    CHAIN_OPS,
    SHARED_FROM,
    Array,
    constant,
    fresh,
    initializer,
    merge_copies,
    origin,
    source_name,
)
from axformer_passes.prepare.block_masks import by_heads
from axformer_passes.prepare.fused import lower

MOST_NODES, MOST_STEPS = 10**6, 3 * 10**7
"""Nodes that functions may give when they are inlined, and steps that onnx-ir may take for their names (some seconds)."""

_FOLD_OPS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})


def prepared(model: ir.Model) -> ir.Model:
    """A walkable clone of `model`; the memory of its tensors is shared with it, not copied.

    Raises: ModelError for a graph that contradicts itself (an input that nothing makes, a shape that does not fit).
    """
    try:
        return _prepared(model)
    except ModelError:
        raise
    except Exception as error:  # onnx-ir's and NumPy's own
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__  # onnx-ir wraps each level in the text of the whole graph
        text = str(cause).strip().splitlines() or [type(cause).__name__]
        raise ModelError(f"the graph is malformed: {text[0][:300]}") from None


def _prepared(model: ir.Model) -> ir.Model:
    clone = model.clone()
    if clone.functions:
        common.RemoveUnusedFunctionsPass()(clone)  # type: ignore[no-untyped-call]
        _require_finite(clone)
        common.InlinePass()(clone)
    if any(node.op_type == "Loop" or node.op_type == "Scan" for node in clone.graph.all_nodes()):
        raise ModelError("the graph holds a Loop or Scan node; only straight-line graphs are supported")
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(clone)
    _own_tensors(clone.graph)
    _detach_inputs(clone.graph)
    _fold(clone.graph)
    merge_copies(clone.graph)
    lower(clone)
    if by_heads(clone):
        common.RemoveUnusedNodesPass()(clone)
    isolate(clone)
    return clone


def isolate(model: ir.Model) -> None:
    """One use for each constant: at the end of `prepared`, and again where nodes were taken out of a subgraph."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _unshare_chains(model.graph)
    _unshare_initializers(model.graph)


def _require_finite(model: ir.Model) -> None:
    """Functions that call one another grow exponentially when they are inlined; onnx-ir refuses recursion by itself.

    Its inliner tries _2, _3, .. for each name that is taken: the square of how often a name is made.
    """
    calls = {
        key: Counter(node.op_identifier() for node in function.all_nodes()) for key, function in model.functions.items()
    }
    order = graphlib.TopologicalSorter({key: set(found) & set(calls) for key, found in calls.items()})
    times = Counter(node.op_identifier() for node in model.graph.all_nodes())
    made: Counter[str] = Counter()
    for key in reversed([*order.static_order()]):  # callers first
        for called, count in calls[key].items():
            times[called] += count * times[key]
        made.update({name: count * times[key] for name, count in _names_made(model.functions[key]).items()})
    nodes, steps = made[""], sum(count * count // 2 for name, count in made.items() if name)
    if nodes > MOST_NODES or steps > MOST_STEPS:
        raise ModelError(
            f"the model's functions, inlined, give {nodes} nodes: too many nodes to inline; "
            "inline them with onnx.inliner.inline_local_functions"
        )


def _names_made(function: ir.Function) -> Counter[str]:
    """How often one call of `function` makes each name; under "" the number of its nodes."""
    nodes = list(function.all_nodes())
    values = (f"value {v.name}" for node in nodes for v in node.outputs)
    return Counter({"": len(nodes)}) + Counter(f"node {node.name}" for node in nodes) + Counter(values)


def _own_tensors(graph: ir.Graph) -> None:
    """Writing a graph names each tensor object after its value: the clone needs objects of its own, or it renames the source's."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = copy.copy(tensor)
        elif tensor is not None and not isinstance(tensor, ir.StringTensor):
            value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)


def _detach_inputs(graph: ir.Graph) -> None:
    """IR version 3 lists initializers among the inputs, too; a default value can be overridden there, so keep it."""
    for value in graph.inputs:
        if value.name in graph.initializers:
            raise ModelError(
                f"initializer {value.name!r} is also a graph input, so that a caller may replace it; "
                "export with keep_initializers_as_inputs=False"
            )


def _fold(graph: ir.Graph) -> None:
    """Reshape, Squeeze, Unsqueeze, Flatten of an initializer that nobody else reads, Concat of such matrices, scaled integers:
    exact."""
    for node in list(graph):
        array = None if node.domain or not node.outputs or node.outputs[0].is_graph_output() else _folded(node)
        if array is None:
            continue
        first = node.inputs[0]
        assert first is not None
        new = initializer(graph, f"{first.name}_{node.op_type.lower()}", array)
        node.outputs[0].replace_all_uses_with(new)
        graph.remove(node, safe=True)
        behind = first.producer()
        if behind is not None and not first.uses():
            graph.remove(behind, safe=True)


def _folded(node: ir.Node) -> Array | None:
    """What the node computes of its constants; None where it computes something else, or where they are read elsewhere."""
    source = node.inputs[0] if node.inputs else None
    if node.op_type == "Mul":
        return _restored(node)
    if node.op_type not in (*_FOLD_OPS, "Concat") or source is None or source.const_value is None:
        return None
    if len(source.uses()) != 1 or any(constant(v) is None for v in node.inputs):
        return None
    arrays = [np.asarray(constant(v)) for v in node.inputs]
    if node.op_type != "Concat":
        return arrays[0].reshape(_folded_shape(node, arrays[0].shape))
    if any(a.ndim < 2 for a in arrays) or any(v is None or len(v.uses()) != 1 for v in node.inputs):
        return None  # numbers that state a shape are the cut's
    return np.concatenate(arrays, axis=node.attributes.get_int("axis"))


def _restored(node: ir.Node) -> Array | None:
    """float32: Cast of a matrix of integers, times a constant."""
    cast, scale = (node.inputs[0].producer() if node.inputs[0] is not None else None), constant(node.inputs[1])
    integers = constant(cast.inputs[0]) if cast is not None and cast.op_type == "Cast" else None
    if integers is None or scale is None or integers.ndim != 2 or integers.dtype not in (np.int8, np.uint8):
        return None
    return integers.astype(np.float32) * scale if scale.dtype == np.float32 else None


def _folded_shape(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, ...]:
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = [int(i) for i in (given if given is not None else node.attributes.get_ints("axes", []))]
    if node.op_type == "Reshape":
        return tuple(shape[i] if n == 0 else n for i, n in enumerate(axes))
    if node.op_type == "Flatten":
        axis = node.attributes.get_int("axis", 1) % (len(shape) + 1)
        return (int(np.prod(shape[:axis], dtype=np.int64)), -1)
    if node.op_type == "Squeeze":
        gone = {a % len(shape) for a in axes} or {i for i, n in enumerate(shape) if n == 1}
        return tuple(n for i, n in enumerate(shape) if i not in gone)
    out = list(shape)
    for axis in sorted(a % (len(shape) + len(axes)) for a in axes):
        out.insert(axis, 1)
    return tuple(out)


def _unshare_chains(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if node.op_type not in CHAIN_OPS or origin(node.outputs[0]) is None:
            continue
        out = node.outputs[0]
        for user, index in list(out.uses())[1:]:
            value = ir.Value(name=fresh(graph, f"{out.name}_use"), shape=out.shape, type=out.type)
            value.meta[SHARED_FROM] = out.name
            twin = ir.Node(node.domain, node.op_type, node.inputs, node.attributes, outputs=[value])
            graph.insert_after(node, twin)
            user.replace_input_with(index, value)


def _unshare_initializers(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if value.const_value is None:
            continue
        for user, index in list(value.uses())[1:]:
            if user.graph is not graph:  # read from a subgraph: leave it shared
                continue
            copy = ir.Value(
                name=fresh(graph, f"{name}_use"),
                shape=value.shape,
                type=value.type,
                const_value=value.const_value,
            )
            copy.meta[SHARED_FROM] = source_name(value)
            graph.register_initializer(copy)
            user.replace_input_with(index, copy)
