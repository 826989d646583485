"""An older operator set or an older version of the file format, where the graph uses nothing newer; else why not.

Operator sets: where no operator of the graph changed its definition between the two versions, the number alone is written;
else ONNX's own version converter rewrites the graph. File formats (IR): nothing is rewritten; the number is lowered if the graph
holds nothing that came later (onnx.proto lists what came with which version).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from axformer_onnx.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

_LATER_TYPES = {
    9: ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"),
    10: ("UINT4", "INT4"),
    11: ("FLOAT4E2M1",),
    12: ("FLOAT8E8M0",),
    13: ("UINT2", "INT2"),
    14: ("FLOAT6E2M3", "FLOAT6E3M2"),
}
"""IR version -> element types that came with it."""
_CONVERTED_BYTES = 2**31 - 2**20
"""ONNX's converter takes a model as one message of protobuf."""


def at_opset(model: ir.Model, opset: int) -> ir.Model:
    """The model with this version of the default operator set; itself if it has that already. The given one is left alone.

    Raises: UsageError naming the node that stands in the way.
    """
    have = model.opset_imports[""]
    if have == opset:
        return model
    changed = list(_changed(model, have, opset))
    for node, before, after in changed:
        if after is None:
            raise UsageError(
                f"node {_named(node)} is {node.op_type}, which came with operator set {before}: the graph cannot be written in "
                f"operator set {opset}. Choose {before} or later"
            )
    if not changed and not model.functions:
        restamped = model.clone()
        restamped.graph.opset_imports[""] = opset
        return restamped
    return _converted(model, opset, changed)


def at_ir(model: ir.Model, version: int) -> ir.Model:
    """The model with this IR version; itself if it has that already. The given one is left alone.

    Raises: UsageError naming what came later.
    """
    if model.ir_version == version:
        return model
    for since, what in _later(model):
        if version < since:
            raise UsageError(
                f"{what} came with IR version {since}: the graph cannot be written in IR version {version}"
            )
    found = model.clone()
    found.ir_version = version
    return found


def _changed(model: ir.Model, have: int, wanted: int) -> Iterator[tuple[ir.Node, int, int | None]]:
    """(node, version of its definition now, the same in the operator set that is wanted or None) where the two differ."""
    import onnx

    for node in model.graph.all_nodes():
        if node.domain not in ("", "ai.onnx"):
            continue
        now = onnx.defs.get_schema(node.op_type, have).since_version
        try:
            then: int | None = onnx.defs.get_schema(node.op_type, wanted).since_version
        except onnx.defs.SchemaError:
            then = None
        if now != then:
            yield node, now, then


def _converted(model: ir.Model, opset: int, changed: list[tuple[ir.Node, int, int | None]]) -> ir.Model:
    import onnx
    import onnx_ir as ir
    from onnx import version_converter

    from axformer_passes.io import serialized

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size > _CONVERTED_BYTES:
        node, before, after = changed[0]
        raise UsageError(
            f"node {_named(node)}: {node.op_type} has another definition in operator set {opset} (of {after}, now of "
            f"{before}), and ONNX's converter takes models below 2 GiB; this one has {size} bytes of weights"
        )
    try:
        proto = version_converter.convert_version(onnx.ModelProto.FromString(serialized(model)), opset)
    except Exception as error:  # RuntimeError, ValueError and the converter's own
        raise UsageError(_refusal(error, opset, changed)) from None
    proto.ir_version = model.ir_version
    if not proto.graph.name:
        proto.graph.name = model.graph.name or "graph"
    found: ir.Model = ir.from_proto(proto)
    found.metadata_props.update(model.metadata_props)
    return found


def _refusal(error: Exception, opset: int, changed: list[tuple[ir.Node, int, int | None]]) -> str:
    """The node that the converter stopped at: its message names the operator."""
    from axformer_passes.io import first_line

    said = first_line(error)
    node, before, after = next((one for one in changed if one[0].op_type in said), changed[0])
    return (
        f"node {_named(node)}: {node.op_type} has another definition in operator set {opset} (of {after}, now of {before}), "
        f"and ONNX's converter does not rewrite it: {said.rpartition('Assertion')[2].strip(' `:') or said}"
    )


def _later(model: ir.Model) -> Iterator[tuple[int, str]]:
    """(IR version, what came with it) of everything in the graph that is newer than IR version 4."""
    import onnx_ir as ir

    types = [(version, getattr(ir.DataType, name, None)) for version, names in _LATER_TYPES.items() for name in names]
    since = {kind: version for version, kind in types if kind is not None}
    if model.functions:
        yield 8, f"the function {next(iter(model.functions))[1]!r} of the model"
    if any(function.overload for function in model.functions.values()):
        yield 10, "an overloaded function"
    for value in _values(model):
        if value.dtype in since:
            yield since[value.dtype], f"{value.dtype.name}, the type of {value.name!r},"
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if (
                attribute.type == ir.AttributeType.INT
                and attribute.name == "to"
                and ir.DataType(attribute.as_int()) in since
            ):
                found = ir.DataType(attribute.as_int())
                yield since[found], f"{found.name}, which node {_named(node)} makes,"
            if attribute.type == ir.AttributeType.SPARSE_TENSOR:
                yield 6, f"the sparse tensor of node {_named(node)}"


def _values(model: ir.Model) -> Iterator[Any]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _named(node: ir.Node) -> str:
    return repr(node.name or node.outputs[0].name)
