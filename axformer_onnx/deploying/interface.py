"""The names, types and axes of a graph's inputs and outputs, as a target asks for them; nothing that it computes changes.

B batch, S tokens, D width.
input    segment_ids int32[B, S]          -> token_type_ids int64[B, S] -> Cast -> what read segment_ids
output   probabilities float16[B, D]      -> Cast -> logits float32[B, D]
output   sentence_embedding float32[B, D] -> Unsqueeze -> last_hidden_state float32[B, 1, D]
axes     output [unk__17, D] that is as long as input [batch, sequence] has rows -> [batch, D]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from axformer_onnx.deploying.contents import SAME_INPUT, Contents
from axformer_onnx.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


@dataclasses.dataclass(frozen=True)
class Interface:
    """What a target feeds a graph and reads of it.

    named       inputs of texts have transformers' names, and are int64
    always      inputs that are fed whether the graph has them or not, so that it must have them
    inputs      the only inputs that it can feed; empty: any
    answers     role -> names of outputs that it reads, one of them is enough; of a role that is not there it reads any
    as_tokens   a sentence_embedding is handed out as last_hidden_state of one token, for readers that pool by themselves
    floats      outputs are float32, whatever the graph computes in
    """

    named: bool = False
    always: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    answers: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    as_tokens: bool = False
    floats: bool = False


def fitted(contents: Contents, wanted: Interface, target: str) -> ir.Model:
    """The graph with the inputs and outputs that `wanted` asks for; itself where it has them.

    Raises: UsageError where it cannot have them: an input is missing, or one that is never fed is there.
    """
    changes = _changes(contents, wanted)
    axes = _axes(contents.model)
    if not changes and not axes:
        _require(contents, contents.model, wanted, target)
        return contents.model
    model = contents.model.clone()
    for value in model.graph.outputs:
        _name_axes(value, axes.get(str(value.name), ()))
    inputs, outputs = list(model.graph.inputs), list(model.graph.outputs)
    for value in inputs:
        if str(value.name) in changes:
            _change_input(model, value, changes[str(value.name)])
    for value in outputs:
        if str(value.name) in changes:
            _change_output(model, value, changes[str(value.name)])
    _require(contents, model, wanted, target)
    return model


@dataclasses.dataclass(frozen=True)
class _Change:
    """A new name for an input or output, and how it becomes the old one: a cast, an axis."""

    name: str
    cast: bool = False
    axis: bool = False


def _changes(contents: Contents, wanted: Interface) -> dict[str, _Change]:
    import onnx_ir as ir

    changes: dict[str, _Change] = {}
    for value in contents.model.graph.inputs if wanted.named else ():
        name = SAME_INPUT.get(str(value.name), str(value.name))
        cast = name in TEXT_INPUTS and value.dtype != ir.DataType.INT64
        if name != value.name or cast:
            changes[str(value.name)] = _Change(name, cast)
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
    for value in contents.model.graph.outputs:
        name, axis = _answer(contents, str(value.name), wanted)
        cast = wanted.floats and value.dtype in halves
        if name != value.name or cast or axis:
            changes[str(value.name)] = _Change(name, cast, axis)
    return changes


def _answer(contents: Contents, name: str, wanted: Interface) -> tuple[str, bool]:
    """(what an output is called, whether it gets an axis of one token)."""
    read = wanted.answers.get(contents.role, ())
    if contents.role == "classification" and "logits" in read and "logits" not in contents.outputs:
        return ("logits" if len(contents.outputs) == 1 else name), False
    if contents.role == "embedding" and "last_hidden_state" in read:
        sentence = wanted.as_tokens and "sentence_embedding" in contents.outputs
        if sentence and name == "sentence_embedding":
            return "last_hidden_state", True
        if sentence and name == "last_hidden_state":
            return "token_embeddings", False  # its name goes to the sentence's
        if not sentence and name == "token_embeddings" and not set(read) & set(contents.outputs):
            return "last_hidden_state", False
    return name, False


def _change_input(model: ir.Model, value: ir.Value, change: _Change) -> None:
    import onnx_ir as ir

    if not change.cast:
        value.name = change.name
        return
    given = ir.Value(name=change.name, shape=value.shape, type=ir.TensorType(ir.DataType.INT64))
    place = list(model.graph.inputs).index(value)
    model.graph.inputs[place] = given
    value.name = f"{change.name}_as_given_before"
    node = ir.Node(
        "", "Cast", [given], [ir.AttrInt64("to", int(value.dtype or ir.DataType.INT32))], name=f"{change.name}_cast"
    )
    ir.convenience.replace_all_uses_with(value, node.outputs[0])
    node.outputs[0].name = value.name
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    first = next(iter(model.graph))
    model.graph.insert_before(first, node)


def _change_output(model: ir.Model, value: ir.Value, change: _Change) -> None:
    import numpy as np
    import onnx_ir as ir

    if not change.cast and not change.axis:
        value.name = change.name
        return
    place = list(model.graph.outputs).index(value)
    if value.name == change.name:
        value.name = f"{change.name}_as_computed"
    last = value
    if change.cast:
        last = _append(model, "Cast", [last], {"to": int(ir.DataType.FLOAT)}, f"{change.name}_cast")
        last.type, last.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    if change.axis:
        kind, shape = last.type, value.shape
        if model.opset_imports[""] < 13:
            last = _append(model, "Unsqueeze", [last], {"axes": [1]}, f"{change.name}_unsqueeze")
        else:
            axes = ir.Value(
                name=f"{change.name}_axes", const_value=ir.tensor(np.array([1]), name=f"{change.name}_axes")
            )
            model.graph.initializers.add(axes)
            last = _append(model, "Unsqueeze", [last, axes], {}, f"{change.name}_unsqueeze")
        last.type, last.shape = kind, None if shape is None else ir.Shape([shape[0], 1, *list(shape)[1:]])
    last.name = change.name
    model.graph.outputs[place] = last


def _append(model: ir.Model, operator: str, inputs: list[ir.Value], attributes: dict[str, Any], name: str) -> ir.Value:
    import onnx_ir as ir

    node = ir.node(operator, inputs, attributes, name=name)
    model.graph.append(node)
    return node.outputs[0]


def _require(contents: Contents, model: ir.Model, wanted: Interface, target: str) -> None:
    names = [str(value.name) for value in model.graph.inputs]
    missing = [name for name in wanted.always if name not in names]
    if missing:
        raise UsageError(
            f"{contents.path}: --for {target} always feeds {' and '.join(wanted.always)}, and the graph takes "
            f"{', '.join(names)}: it would refuse every request. Export the model with {missing[0]}"
        )
    surplus = [name for name in names if wanted.inputs and name not in wanted.inputs]
    if surplus:
        raise UsageError(
            f"{contents.path}: --for {target} feeds {', '.join(wanted.inputs)}, and the graph also takes {surplus[0]}; export the "
            "model without it"
        )
    read = wanted.answers.get(contents.role, ())
    outputs = [str(value.name) for value in model.graph.outputs]
    if read and not set(read) & set(outputs):
        raise UsageError(
            f"{contents.path}: --for {target} reads the output {' or '.join(read)}, and the graph has {', '.join(outputs)}"
        )


def _axes(model: ir.Model) -> dict[str, tuple[str | None, ...]]:
    """New names of the axes of outputs whose open axes are not called as those of inputs are: by their sizes in two probes.

    None: the axis keeps its name, or is not as long as any of an input.
    """
    known = {str(axis.value) for value in model.graph.inputs for axis in value.shape or () if not isinstance(axis, int)}
    lost = [
        value
        for value in model.graph.outputs
        if value.shape is not None
        and any(not isinstance(axis, int) and str(axis.value) not in known for axis in value.shape)
    ]
    if not lost:
        return {}
    seen = _sizes(model)
    found: dict[str, tuple[str | None, ...]] = {}
    for value in lost:
        shapes = [outputs[str(value.name)] for _, outputs in seen]
        axes = [tuple(shape[i] for shape in shapes) for i in range(len(value.shape or ()))]
        found[str(value.name)] = tuple(_axis_of(model, seen, sizes) for sizes in axes)
    return found


_Sizes = list[tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]]


def _sizes(model: ir.Model) -> _Sizes:
    """(shapes of the inputs, shapes of the outputs) of runs at two sizes, as far as it takes them."""
    from axformer_onnx.runtime import run_once
    from axformer_passes.errors import AxformerError
    from axformer_passes.io import detached
    from axformer_passes.probe import probe_feeds, usual_tokens

    found: _Sizes = []
    for batch, more in ((3, 2), (5, 4)):
        feeds = probe_feeds(model, batch, usual_tokens(model) + more)
        try:
            values = run_once(detached(model), feeds)
        except AxformerError:
            continue
        found.append(({k: v.shape for k, v in feeds.items()}, {k: v.shape for k, v in values.items()}))
    return found


def _axis_of(model: ir.Model, seen: _Sizes, sizes: tuple[int, ...]) -> str | None:
    if len(sizes) < 2 or len(set(sizes)) < 2:
        return None
    for value in model.graph.inputs:
        for i, axis in enumerate(value.shape or ()):
            if (
                not isinstance(axis, int)
                and axis.value
                and sizes == tuple(inputs[str(value.name)][i] for inputs, _ in seen)
            ):
                return str(axis.value)
    return None


def _name_axes(value: ir.Value, names: tuple[str | None, ...]) -> None:
    import onnx_ir as ir

    if value.shape is not None and any(names):
        value.shape = ir.Shape([axis if name is None else name for axis, name in zip(value.shape, names, strict=True)])
