"""Damaged and hostile model files, made by code: each case is (name, what the one line must say, builder).

A builder writes into an empty folder and returns the path that a user would give. Outside that folder lies CANARY, which
nobody may open. `said` is a part of the expected message; None: the file is odd but legal, so it may also be accepted.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

CANARY = "canary.data"
FLOATS = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
LOGITS = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
Builder = Callable[[Path], Path]


@dataclasses.dataclass(frozen=True)
class Hostile:
    """One file: its name in test ids, what the error must say, and who writes it."""

    name: str
    said: str | None
    build: Builder


CASES: list[Hostile] = []


def case(said: str | None) -> Callable[[Builder], Builder]:
    def register(build: Builder) -> Builder:
        CASES.append(Hostile(build.__name__, said, build))
        return build

    return register


def bytes_(name: str, said: str | None, content: bytes) -> None:
    def build(folder: Path) -> Path:
        return _write(folder, content)

    CASES.append(Hostile(name, said, build))


def proto_(said: str | None) -> Callable[[Callable[[], ModelProto]], None]:
    """Register a function that makes a model."""

    def register(make: Callable[[], ModelProto]) -> None:
        CASES.append(Hostile(make.__name__, said, lambda folder: _write(folder, make().SerializeToString())))

    return register


def _write(folder: Path, content: bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(content)
    return path


# -- a small whole model to damage ----------------------------------------------------------------------------------


def weight(name: str = "w", shape: tuple[int, ...] = (4, 4)) -> TensorProto:
    """A small float initializer."""
    return numpy_helper.from_array(np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape), name)


def graph(nodes: list[Any] | None = None, tensors: list[TensorProto] | None = None, **parts: Any) -> GraphProto:
    """y = Softmax(x @ w), or these parts."""
    default = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])]
    return helper.make_graph(
        default if nodes is None else nodes,
        "g",
        parts.get("inputs", [FLOATS]),
        parts.get("outputs", [LOGITS]),
        [weight()] if tensors is None else tensors,
    )


def model(made: GraphProto | None = None, opset: int = 17, **parts: Any) -> ModelProto:
    """A model of operator set 17 and IR version 8."""
    imports = parts.pop("opset_imports", [helper.make_opsetid("", opset)])
    return helper.make_model(graph() if made is None else made, opset_imports=imports, **{"ir_version": 8, **parts})


WHOLE = model().SerializeToString()

# -- bytes ----------------------------------------------------------------------------------------------------------

bytes_("empty", "0 bytes is too short", b"")
bytes_("one_byte", "1 bytes is too short", b"\x08")
bytes_("random_bytes", "not an ONNX model", np.random.default_rng(0).bytes(5000))
bytes_("zeros", "file of zeros", bytes(4096))
bytes_("ones", "not an ONNX model", b"\xff" * 4096)
for _part in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
    bytes_(f"truncated_at_{_part}", "", WHOLE[: int(len(WHOLE) * _part)])
bytes_("a_numpy_array", "a NumPy array", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'}" + bytes(100))
bytes_("a_jpeg", "a JPEG image", b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(range(256)))
bytes_(
    "a_safetensors_file", "a safetensors file", struct.pack("<Q", 40) + b'{"a":{"dtype":"F32","shape":[1]}}' + bytes(20)
)
bytes_("a_zip", "a zip archive", b"PK\x03\x04" + b"\x01" * 200)
bytes_("a_pickle", "a Python pickle", b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01u." + bytes(30))
bytes_("a_tensorflow_graph", "a TensorFlow graph", b"\x0a\x1c\x0a\x05input\x12\x0bPlaceholder\x3a\x06\x0a\x04aaaa" * 4)
bytes_("a_tflite_model", "a TensorFlow Lite model", b"\x1c\x00\x00\x00TFL3" + bytes(range(1, 100)))
bytes_("a_git_lfs_pointer", "git lfs pull", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
bytes_("a_web_page", "download the model again", b"<!DOCTYPE html><html><body>404</body></html>")
bytes_("a_json_text", "a text in JSON", b'{"format": "axformer-plan/1", "heads": {}}')
bytes_("a_gguf_file", "a GGUF file", b"GGUF\x03\x00\x00\x00" + bytes(100))
bytes_("a_gzip_file", "unpack it", b"\x1f\x8b\x08\x00" + b"\x07" * 100)


def varint(number: int) -> bytes:
    """A protobuf varint."""
    out = b""
    while number > 0x7F:
        out, number = out + bytes([number & 0x7F | 0x80]), number >> 7
    return out + bytes([number])


bytes_("a_length_that_lies", "not an ONNX model", b"\x08\x08\x3a" + varint(10**9) + b"\x0a\x02\x22\x00" * 5)
bytes_("a_length_beyond_64_bits", "not an ONNX model", b"\x08\x08\x3a" + b"\xff" * 11 + b"\x01" + bytes(20))
bytes_("a_hundred_thousand_empty_nodes", "", b"\x08\x08\x3a" + varint(2 * 10**5) + b"\x0a\x00" * 10**5)
bytes_("a_model_twice", None, WHOLE + WHOLE)
bytes_("a_model_and_rubbish", "not an ONNX model", WHOLE + b"\xff\xff\xff\x07rubbish")


# -- paths ----------------------------------------------------------------------------------------------------------


@case("a folder without model.onnx")
def an_empty_folder(folder: Path) -> Path:
    return folder


@case("a folder without model.onnx")
def a_folder_called_model(folder: Path) -> Path:
    (folder / "model.onnx").mkdir()
    return folder


@case("a pipe, expected a file")
def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


@case("a device, expected a file")
def a_link_to_dev_zero(folder: Path) -> Path:
    (folder / "model.onnx").symlink_to("/dev/zero")
    return folder / "model.onnx"


@case("cannot be read")
def a_link_to_itself(folder: Path) -> Path:
    (folder / "model.onnx").symlink_to("model.onnx")
    return folder / "model.onnx"


@case("no such file")
def a_dangling_link(folder: Path) -> Path:
    (folder / "model.onnx").symlink_to("nowhere")
    return folder / "model.onnx"


@case("cannot be read")
def a_name_too_long(folder: Path) -> Path:
    return folder / ("m" * 300 + ".onnx")


@case("2147483647")
def a_file_above_the_end_of_protobuf(folder: Path) -> Path:
    path = _write(folder, WHOLE)
    os.truncate(path, 2**31 + 10)  # a hole: takes no room
    return path


# -- external data --------------------------------------------------------------------------------------------------


def _external(name: str, said: str, prepare: Callable[[Path], None] = lambda _: None, **entries: str) -> None:
    """x @ w with w in a file of 64 bytes beside the model, its `external_data` entries replaced."""

    def build(folder: Path) -> Path:
        (folder / "w.data").write_bytes(weight().raw_data)
        prepare(folder)
        return _write(folder, model(graph(tensors=[external(**entries)])).SerializeToString())

    CASES.append(Hostile(name, said, build))


def external(name: str = "w", dims: tuple[int, ...] = (4, 4), **entries: str) -> TensorProto:
    """An initializer that points at a file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "w.data", "offset": "0", "length": "64", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def _becomes(kind: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        path = folder / "w.data"
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "hard link":
            os.link(folder.parent / CANARY, path)
        elif kind != "nothing":
            path.symlink_to(kind)

    return prepare


_OUTSIDE = "points outside the model's folder"
_external("data_in_the_folder_above", _OUTSIDE, location=f"../{CANARY}")
_external("data_by_a_detour", _OUTSIDE, location=f"a/../../{CANARY}")
_external("data_at_an_absolute_path", _OUTSIDE, location="/etc/passwd")
_external("data_at_an_absolute_path_of_a_device", _OUTSIDE, location="/dev/zero")
_external("data_at_a_url", "is missing", location=f"file:///{CANARY}")
_external("data_behind_a_link_outside", _OUTSIDE, _becomes(f"../{CANARY}"))
_external("data_behind_a_link_to_a_device", _OUTSIDE, _becomes("/dev/zero"))
_external("data_behind_a_hard_link", "is a hard link", _becomes("hard link"))
_external("data_behind_a_link_to_itself", "cannot be read", _becomes("w.data"))
_external("data_in_a_pipe", "is missing", _becomes("pipe"))
_external("data_in_a_folder", "is missing", _becomes("folder"))
_external("data_in_the_models_own_folder", "is missing", location=".")
_external("data_missing", "is missing", _becomes("nothing"))
_external("data_without_a_name", "", location="")
_external("data_with_a_null_byte", "cannot be read", location="w\0.data")
_external("data_with_a_name_too_long", "cannot be read", location="w" * 5000)
_external("data_beyond_the_end", "truncated", offset="60")
_external("data_far_beyond_the_end", "truncated", offset=str(10**18))
_external("data_before_the_start", "", offset="-8")
_external("data_of_the_wrong_length", "needs 64", length="32")
_external("data_of_negative_length", "", length="-64")
_external("data_with_a_word_for_a_number", "not an ONNX model", offset="many")
_external("data_with_digits_without_end", "not an ONNX model", offset="9" * 5000)


@case("needs")
def data_of_ten_to_the_eighteen_elements(folder: Path) -> Path:
    tensor = external(dims=(10**9, 10**9), length="64")
    (folder / "w.data").write_bytes(bytes(64))
    return _write(folder, model(graph(tensors=[tensor])).SerializeToString())


@case(_OUTSIDE)
def data_outside_in_an_attribute(folder: Path) -> Path:
    node = helper.make_node("Constant", [], ["w"], value=external(location=f"../{CANARY}"))
    nodes = [node, *graph().node]
    return _write(folder, model(graph(nodes, [])).SerializeToString())


@case(_OUTSIDE)
def data_outside_in_a_subgraph(folder: Path) -> Path:
    inner = helper.make_graph([helper.make_node("Identity", ["w"], ["o"])], "inner", [], [LOGITS])
    inner.output[0].name = "o"
    inner.initializer.append(external(location=f"../{CANARY}"))
    nodes = [*graph().node, helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)]
    condition = numpy_helper.from_array(np.array(True), "c")
    return _write(folder, model(graph(nodes, [weight(), condition])).SerializeToString())


@case(_OUTSIDE)
def data_outside_in_a_function(folder: Path) -> Path:
    node = helper.make_node("Constant", [], ["w"], value=external(location=f"../{CANARY}"))
    body = [node, helper.make_node("MatMul", ["a", "w"], ["b"])]
    made = helper.make_function("mine", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    nodes = [helper.make_node("F", ["x"], ["y"], domain="mine")]
    proto = model(graph(nodes, []), opset_imports=imports, functions=[made])
    return _write(folder, proto.SerializeToString())
