"""Mutations of a model that keep it a protobuf: bytes alone rarely get past the parser."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError, EncodeError
from onnx import AttributeProto, ModelProto, TensorProto

_NUMBERS = (0, 1, 2, 3, 7, -1, -2, 2**31 - 1, 2**31, -(2**31), 2**62, 10**18)


def mutated(data: bytes, most: int, seed: int, mutate_bytes: Callable[[bytes, int], bytes]) -> bytes:
    """`data` after one to three mutations, at most `most` bytes; bytes that are no model, and half of all, by libFuzzer's own."""
    rng = random.Random(seed)
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return mutate_bytes(data, most)
    if rng.random() < 0.5 or not model.graph.node:
        return mutate_bytes(data, most)
    try:
        for _ in range(rng.randint(1, 3)):
            rng.choice((_node, _node, _tensor, _face, _version))(model, rng)
        content = bytes(model.SerializeToString())
    except (
        EncodeError,
        TypeError,
        ValueError,
    ):  # protobuf parses names that are not UTF-8, and takes them nowhere else
        return mutate_bytes(data, most)
    return content if len(content) <= most else data


def _names(model: ModelProto) -> list[str]:
    found = [t.name for t in model.graph.initializer] + [v.name for v in model.graph.input]
    return ["", *found, *(name for node in model.graph.node for name in node.output)]


def _node(model: ModelProto, rng: random.Random) -> None:
    nodes = model.graph.node
    node = rng.choice(nodes)
    what = rng.randrange(7)
    if what == 0:
        node.op_type = rng.choice([n.op_type for n in nodes] + ["Constant", "Identity", "Reshape", "Split", "Einsum"])
    elif what == 1 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(_names(model))
    elif what == 2:
        node.input.append(rng.choice(_names(model)))
    elif what == 3 and node.input:
        del node.input[rng.randrange(len(node.input))]
    elif what == 4:
        nodes.append(rng.choice(nodes))
    elif what == 5 and len(nodes) > 1:
        del nodes[rng.randrange(len(nodes))]
    else:
        _attribute(node, rng)


def _attribute(node: Any, rng: random.Random) -> None:
    if not node.attribute:
        node.attribute.add(name=rng.choice(("axis", "perm", "axes")), type=AttributeProto.INT, i=rng.choice(_NUMBERS))
        return
    attribute = rng.choice(node.attribute)
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(_NUMBERS)
    elif rng.random() < 0.8:
        attribute.i = rng.choice(_NUMBERS)
    else:
        attribute.type = rng.randrange(15)


def _tensor(model: ModelProto, rng: random.Random) -> None:
    if not model.graph.initializer:
        return
    tensor: TensorProto = rng.choice(model.graph.initializer)
    what = rng.randrange(5)
    if what == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_NUMBERS)
    elif what == 1:
        tensor.dims.append(1)
    elif what == 2:
        tensor.data_type = rng.randrange(25)
    elif what == 3 and tensor.data_location == TensorProto.EXTERNAL and tensor.external_data:
        rng.choice(tensor.external_data).value = rng.choice(("0", "-8", "../x", "/etc/passwd", "w.data", str(10**18)))
    elif tensor.raw_data:
        raw = bytearray(tensor.raw_data)
        raw[rng.randrange(len(raw))] = rng.randrange(256)
        tensor.raw_data = bytes(raw)


def _face(model: ModelProto, rng: random.Random) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output] or [model.graph.input.add()])
    dims = value.type.tensor_type.shape.dim
    if dims and rng.random() < 0.7:
        rng.choice(dims).dim_value = rng.choice(_NUMBERS)
    else:
        value.type.tensor_type.elem_type = rng.randrange(25)


def _version(model: ModelProto, rng: random.Random) -> None:
    if model.opset_import and rng.random() < 0.5:
        rng.choice(model.opset_import).version = rng.choice((7, 11, 13, 17, 21, 10**6))
    else:
        model.ir_version = rng.choice((3, 8, 10))
