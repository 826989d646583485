"""What a file is that is no ONNX model, by its first bytes, and what to do about it."""

from __future__ import annotations

_CONVERT = "convert it to ONNX first"
_KINDS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    (0, b"/annex/objects", "a git-annex pointer, not the file itself", "run `git annex get`"),
    (0, b"\x93NUMPY", "a NumPy array", "give the .onnx file"),
    (0, b"\xff\xd8\xff", "a JPEG image", "give the .onnx file"),
    (0, b"\x89PNG", "a PNG image", "give the .onnx file"),
    (0, b"%PDF", "a PDF document", "give the .onnx file"),
    (0, b"PK\x03\x04", "a zip archive or a torch checkpoint", "unpack it, or `axformer-onnx export` the checkpoint"),
    (0, b"\x1f\x8b", "gzip-compressed", "unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it"),
    (0, b"BZh", "bzip2-compressed", "unpack it"),
    (0, b"\xfd7zXZ", "xz-compressed", "unpack it"),
    (0, b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (0, b"GGUF", "a GGUF file", "export the original checkpoint to ONNX"),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it with tf2onnx"),
    (4, b"ORTM", "a model in ONNX Runtime's own format", "give the .onnx file that it was made from"),
    (0, b"ftrt", "a TensorRT engine", "give the .onnx file that it was built from"),
    (0, b"\x89HDF", "an HDF5 file (Keras)", _CONVERT),
    (0, b"ARROW1", "an Arrow file", "give the .onnx file"),
    (0, b"PAR1", "a Parquet file", "give the .onnx file"),
    (0, b"\x7fELF", "a program", "give the .onnx file"),
    (0, b"#!", "a script", "give the .onnx file"),
    (0, b"<", "an HTML or XML page, perhaps an error page of a download", "download the model again"),
    (0, b"{", "a text in JSON", "give the .onnx file; a plan is the first argument of apply"),
)


def file_kind(head: bytes) -> tuple[str, str] | None:
    """(what the file is, what to do) by its first bytes (32 are enough); None where they say nothing."""
    for offset, magic, what, remedy in _KINDS:
        if head[offset : offset + len(magic)] == magic:
            return what, remedy
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 2**27:
        return "a safetensors file", "`axformer-onnx export` the checkpoint"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and len(head) > 1:
        return "a Python pickle (perhaps a torch checkpoint)", "`axformer-onnx export` the checkpoint"
    if head[:1] == b"\x0a" and head[2:3] == b"\x0a":
        return "a TensorFlow graph, it seems", "convert it with tf2onnx"
    if head and not head.strip(b"\x00"):
        return "a file of zeros, as an interrupted download leaves", "download it again"
    return None
